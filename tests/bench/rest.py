"""What a Supabase project costs a worker: a claim's time beside the bare call's, and an idle worker's requests."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg

from tests.bench.stage import percentile, say, settle, stop
from tests.conftest_db import PgServer
from tests.conftest_worker import eventually, launch, worker_environment
from tests.supabase_stack import Stack
from wan2gp.config_options import Secret
from wan2gp.supervisor.supabase_project import SupabaseProject
from wan2gp.supervisor.supabase_queue import SupabaseQueue

CLAIMS = 500
WARM = 20
IDLE_S = 120.0


@contextlib.contextmanager
def project_stack() -> Iterator[tuple[Stack, Path]]:
    """A project on a database of its own, and a folder; both vanish."""
    folder, run_dir = Path(tempfile.mkdtemp(prefix="w2g-bench-")), Path(tempfile.mkdtemp(prefix="w2g-pg-"))
    server = PgServer(folder / "pg", run_dir)
    try:
        with Stack(server.new_database(server.supabase_template()), folder / "stack") as stack:
            yield stack, folder
    finally:
        server.stop_server()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(run_dir, ignore_errors=True)


def rest_claim() -> bool:
    """The queue's own claim through supabase-py, and the same call by the same client with nothing around it."""
    with project_stack() as (stack, _), contextlib.closing(direct(stack)) as project:
        queue = SupabaseQueue(project)
        with psycopg.connect(stack.database, autocommit=True) as connection:
            insert = "INSERT INTO tasks (task_type, params) SELECT 'noop', %s FROM generate_series(1, %s)"
            connection.execute(insert, ['{"text": "' + "x" * 2000 + '"}', 2 * (CLAIMS + WARM)])

        def ours() -> None:
            assert queue.claim(str(uuid.uuid4()), "w", ["noop"], 1, 90).tasks

        def bare() -> None:
            assert claim_by_hand(project)["tasks"]

        for _ in range(WARM):
            ours()
            bare()
        took: dict[Any, list[float]] = {ours: [], bare: []}
        for turn in range(CLAIMS):  # by turns, and in either order, so that both meet the same machine
            for call in (ours, bare) if turn % 2 else (bare, ours):
                started = time.perf_counter()
                call()
                took[call].append((time.perf_counter() - started) * 1000)
        queue.close()
    mine, plain = percentile(took[ours], 0.5), percentile(took[bare], 0.5)
    shown = f"{mine / plain:.2f} ({mine:.2f} / {plain:.2f} ms)"
    return say("claim over supabase-py → PostgREST: of the bare call, p50", shown, "<= 1.5", mine <= 1.5 * plain)


def direct(stack: Stack) -> SupabaseProject:
    """Straight to PostgREST: a front in between would cost both alike, and hide the difference."""
    project = SupabaseProject(stack.postgrest.address, Secret(stack.jwt_key))

    def strip(request: httpx.Request) -> None:
        request.url = request.url.copy_with(path=request.url.path.removeprefix("/rest/v1"))

    project.http.event_hooks = {**project.http.event_hooks, "request": [*project.http.event_hooks["request"], strip]}
    return project


def claim_by_hand(project: SupabaseProject) -> Any:
    arguments = {
        "p_claim_id": str(uuid.uuid4()),
        "p_worker": "w",
        "p_types": ["noop"],
        "p_limit": 1,
        "p_lease_s": 90,
    }
    url = f"{project.rest_url}/rpc/wan2gp_claim"
    return project.http.post(url, json=arguments, headers=project.headers()).raise_for_status().json()


def rest_idle() -> bool:
    """Requests and bytes of a worker that has nothing to do, with every interval as it comes."""
    with project_stack() as (stack, folder):
        variables = worker_environment(
            folder,
            Path(tempfile.mkdtemp(prefix="w2g-", dir=folder)),
            SUPABASE_URL=stack.url,
            SUPABASE_SERVICE_ROLE_KEY=stack.key,
            WAN2GP_QUEUE="supabase",
            WORKER_ID="bench",
            WAN2GP_LEASE_S="90",
            WAN2GP_RENEW_S="20",
        )
        worker = launch(folder / "data", "", variables)
        try:
            eventually("it asks for tasks", lambda: bool(stack.front.seen("wan2gp_claim")), 30)
            settle(5)
            first = len(stack.front.requests)
            settle(IDLE_S)
            seen = stack.front.requests[first:]
        finally:
            stop(worker)
    hourly = 3600 / IDLE_S
    bytes_each_hour = sum(one.head_in + one.bytes_in + one.head_out + one.bytes_out for one in seen) * hourly
    rate = len(seen) / IDLE_S * 60
    kinds = ", ".join(f"{name} {sum(name in one.path for one in seen) * hourly:.0f}" for name in ("claim", "heartbeat"))
    say("idle worker over Supabase, calls an hour", f"{len(seen) * hourly:.0f} ({kinds})", "600", rate <= 10)
    kib = bytes_each_hour / 1024
    good = say("idle worker over Supabase, HTTP bytes an hour, both ways", f"{kib:.0f} KiB", "1,024 KiB", kib <= 1024)
    return good & say("idle worker over Supabase, requests a minute", f"{rate:.1f}", "<= 10", rate <= 10)
