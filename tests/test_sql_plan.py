"""A claim may not grow slower with the table: the plans of its statements at 100,000 rows, taken from the functions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Json

from tests.contract_bench import Admin
from wan2gp.supervisor.migrate import steps

ROWS = 100_000
FILL = f"""
    INSERT INTO tasks (task_type, params, status, created_at, run_after)
    SELECT 'type' || n % 5, '{{}}', 'Queued', now() - n * interval '1 s', NULL FROM generate_series(1, {ROWS // 2}) n;
    INSERT INTO tasks (task_type, params, status, created_at)
    SELECT 'type' || n % 5, '{{}}', 'Complete', now() - n * interval '1 s' FROM generate_series(1, {ROWS // 4}) n;
    INSERT INTO tasks (task_type, params, status, run_after)
    SELECT 'type' || n % 5, '{{}}', 'Queued', now() + n * interval '1 s' FROM generate_series(1, {ROWS // 4}) n;
    INSERT INTO task_leases (task_id, claim_id, token, expires_at)
    SELECT id, id::text, CASE WHEN random() < 0.01 THEN id::text END, now() + interval '1 h' FROM tasks
     WHERE status = 'Complete';"""
FORBIDDEN = {"Seq Scan", "Hash Join", "Merge Join", "Bitmap Heap Scan"}
ARGUMENTS = {
    "p_claim_id": "'c'::text",
    "p_worker": "'w'::text",
    "p_types": "ARRAY['type1', 'type2', 'none']",
    "p_type": "'type1'::text",
    "p_lease_s": "90::float8",
    "v_quiet_s": "90::float8",
    "v_token": "'t'::text",
    "p_task": "gen_random_uuid()",
    "p_ids": "ARRAY[gen_random_uuid()]",
    "p_id": "'00000000-0000-0000-0000-000000000001'::uuid",
    "v_id": "'00000000-0000-0000-0000-000000000001'::uuid",
    "v_priority": "0",
    "v_group": """'{"types": {"type1": "m", "type3": null}, "model": "other"}'::jsonb""",
}


@pytest.fixture(params=["no statistics", "analyzed"])
def full(queue_db: str, request: pytest.FixtureRequest) -> Iterator[Admin]:
    with psycopg.connect(queue_db, autocommit=True) as admin:
        admin.execute("ALTER TABLE tasks SET (autovacuum_enabled = off)")
        admin.execute("ALTER TABLE tasks DISABLE TRIGGER USER")
        admin.execute(FILL.encode())
        admin.execute("ALTER TABLE tasks ENABLE TRIGGER USER")
        if request.param == "analyzed":
            admin.execute("ANALYZE")
        yield admin


def body(name: str) -> str:
    """The source of a function, without its comments."""
    text = "\n".join(step.sql for step in steps())
    found = re.search(rf"FUNCTION public\.{name}\(.*?AS \$fn\$(.*?)\$fn\$", text, re.DOTALL)
    assert found is not None, name
    return re.sub(r"--[^\n]*", "", found.group(1))


def statement(name: str, pattern: str) -> str:
    """The part of a function's body that ``pattern`` captures, its parameters filled in."""
    found = re.search(pattern, body(name), re.DOTALL)
    assert found is not None, f"{name}: {pattern}"
    text = found.group(1)
    for argument, value in ARGUMENTS.items():
        text = re.sub(rf"\b{argument}\b(\[1\])?", value, text)
    return text


STATEMENTS = {
    "claim one": ("wan2gp_claim_one", r"INTO v_id( FROM public.tasks.*?);"),
    "lease it out": ("wan2gp_lease_out", r"(WITH taken AS.*?phase = NULL.*?);"),
    "whose turn it is": ("wan2gp_claim_warm", r"SELECT t\.priority, t\.params INTO v_priority, v_params(.*?);"),
    "who needs nothing loaded": ("wan2gp_claim_warm", r"FOR v_id IN(.*?)LOOP"),
    "take it": ("wan2gp_claim_warm", r"PERFORM( FROM public.tasks.*?);"),
    "heads of the types": ("wan2gp_claim", r"FOR v_type IN(.*?)LOOP"),
    "is anything due": ("wan2gp_claim", r"IF EXISTS \((SELECT FROM public.tasks.*?)\) THEN"),
    "promote what is due": ("wan2gp_claim", r"(UPDATE public.tasks t SET run_after = NULL.*?);"),
    "when is the next due": ("wan2gp_claim", r"SELECT t\.run_after INTO v_due(.*?);"),
    "what is held": ("wan2gp_claimed", r"RETURN \((\s*SELECT jsonb_agg.*)\);"),
    "expired leases": ("wan2gp_take_expired", r"FOR v_one IN(.*?)LOOP"),
    "leases from the future": ("wan2gp_mend_stamps", r"(UPDATE public.task_leases l SET expires_at.*?);"),
    "pauses from the future": ("wan2gp_mend_stamps", r"v_ids := ARRAY\((.*?)\);"),
    "has it dependants": ("wan2gp_fail_dependants", r"PERFORM( FROM public.tasks.*?);"),
}


def nodes(plan: dict[str, Any]) -> Iterator[str]:
    yield plan["Node Type"]
    for child in plan.get("Plans", []):
        yield from nodes(child)


def plan_of(admin: Admin, query: str) -> dict[str, Any]:
    row = admin.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}".encode()).fetchone()
    assert row is not None
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


def settings_of_claim(admin: Admin) -> list[str]:
    row = admin.execute("SELECT proconfig FROM pg_proc WHERE proname = 'wan2gp_claim'").fetchone()
    assert row is not None
    return [item for item in row[0] if not item.startswith("search_path")]


def offences(admin: Admin, name: str) -> str | None:
    """What is wrong with the plan of one statement, run under the claim's own settings."""
    query = statement(*STATEMENTS[name])
    query = query if re.match(r"\s*(SELECT|WITH|UPDATE)", query) else f"SELECT t.run_after {query}"
    with admin.transaction(force_rollback=True):
        for setting in settings_of_claim(admin):
            admin.execute(f"SET LOCAL {setting.replace('=', ' = ')}".encode())
        found = set(nodes(plan_of(admin, query)))
    if found & FORBIDDEN or not any("Index" in node for node in found):
        return f"{name}: {sorted(found)}"
    return None


def test_no_statement_of_a_claim_reads_the_table(full: Admin) -> None:
    assert not list(filter(None, (offences(full, name) for name in STATEMENTS)))
    for n in range(8):  # until the session's plans are made
        full.execute("SELECT wan2gp_claim(%s, 'w', ARRAY['type1', 'type2'], 1, 90)", (f"warm{n}",))
    assert pages_of_claim(full, "'c', 'w', ARRAY['type1', 'type2'], 1, 90") < 300, "the table has thousands of pages"


def test_a_claim_that_prefers_what_is_loaded_looks_at_a_few_rows_of_each_type(full: Admin) -> None:
    warm = Json([{"types": {"type1": "m", "type2": "n", "type3": None}, "model": "m", "others": ["type4"]}])
    for n in range(8):
        types = [f"type{n}" for n in range(5)]
        full.execute("SELECT wan2gp_claim(%s, 'w', %s, 1, 90, %s::jsonb)", (f"warm{n}", types, warm))
    prefer = """'[{"types": {"type1": "m", "type2": "n", "type3": null}, "model": "m", "others": ["type4"]}]'"""
    assert pages_of_claim(full, f"'c', 'w', ARRAY['type1', 'type2', 'type3', 'type4'], 1, 90, {prefer}") < 1200


def pages_of_claim(full: Admin, arguments: str) -> int:
    """How many pages one claim touches, of the table or not."""
    row = full.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT wan2gp_claim({arguments})".encode()).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
