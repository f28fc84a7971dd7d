"""docs/supabase.md, "Users of your app": its statements are run as they stand, then users try over real PostgREST."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing

import jwt
import psycopg
import pytest

from tests.app_users import AppUser, refused, somebody
from tests.conftest_db import PgServer
from tests.conftest_worker import ROOT
from tests.contract_bench import Admin, beat, end, row, take
from tests.supabase_stack import Stack
from wan2gp.config_options import Secret
from wan2gp.supervisor.queue import Verb
from wan2gp.supervisor.supabase_project import SupabaseProject
from wan2gp.supervisor.supabase_queue import SupabaseQueue

PAGE = (ROOT / "docs" / "supabase.md").read_text()
SECTION = PAGE.partition("\n## Users of your app\n")[2].partition("\n## ")[0]
POLICIES, LIMIT, PROJECTS = re.findall(r"```sql\n(.*?)```", SECTION, re.DOTALL)
PRIVATE = ("task_leases", "task_dependencies", "task_children", "task_events", "worker_contacts", "workers")


def run(url: str, *scripts: str) -> None:
    with psycopg.connect(url, autocommit=True) as owner:
        for script in scripts:
            owner.execute(script.encode())


@pytest.fixture(scope="module")
def stack(_pg_session: PgServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A project whose owner has typed what the page says."""
    _pg_session.start_server()
    for url in _pg_session.borrow(_pg_session.supabase_template()):
        run(url, POLICIES, LIMIT)
        with Stack(url, tmp_path_factory.mktemp("policies")) as project:
            yield project


@pytest.fixture
def admin(stack: Stack) -> Iterator[Admin]:
    with psycopg.connect(stack.database, autocommit=True) as connection:
        connection.execute("DELETE FROM tasks")
        yield connection


@pytest.fixture
def queue(stack: Stack) -> Iterator[SupabaseQueue]:
    project = SupabaseProject(stack.url, Secret(stack.key))
    with closing(project), closing(SupabaseQueue(project)) as found:
        yield found


@pytest.fixture
def users(stack: Stack, admin: Admin) -> Iterator[tuple[AppUser, AppUser, AppUser]]:
    """Two users, and somebody who is not signed in."""
    found = AppUser(stack, somebody()), AppUser(stack, somebody()), AppUser(stack, None)
    yield found
    for user in found:
        user.close()


@pytest.fixture
def ann(users: tuple[AppUser, AppUser, AppUser]) -> AppUser:
    return users[0]


@pytest.fixture
def bob(users: tuple[AppUser, AppUser, AppUser]) -> AppUser:
    return users[1]


@pytest.fixture
def nobody(users: tuple[AppUser, AppUser, AppUser]) -> AppUser:
    return users[2]


def status(admin: Admin, task_id: str) -> str:
    found = admin.execute("SELECT status FROM tasks WHERE id = %s", (task_id,)).fetchone()
    assert found is not None
    return str(found[0])


def test_a_users_task_is_run_and_its_result_is_seen(ann: AppUser, queue: SupabaseQueue) -> None:
    task_id = ann.inserted()
    task = take(queue)
    assert (task.id, task.params, task.user_id) == (task_id, {"of": ann.id}, ann.id)
    assert end(queue, task, Verb.COMPLETE, output_location="https://x.example/y.mp4").accepted
    (seen,) = ann.asks("GET", f"tasks?id=eq.{task_id}&select=status,output_location").json()
    assert seen == {"status": "Complete", "output_location": "https://x.example/y.mp4"}


def test_a_user_sees_own_rows_and_the_anonymous_none(ann: AppUser, bob: AppUser, nobody: AppUser) -> None:
    anns, bobs = ann.inserted(), bob.inserted()
    assert (ann.sees(), bob.sees()) == ({anns}, {bobs})
    assert bob.asks("GET", f"tasks?id=eq.{anns}").json() == []
    assert refused(nobody.asks("GET", "tasks")) and refused(nobody.inserts(user_id=None))
    count = bob.asks("HEAD", "tasks?select=id", None, Prefer="count=exact").headers["Content-Range"]
    assert count == "0-0/1"


def test_a_user_inserts_for_nobody_else(ann: AppUser, bob: AppUser, admin: Admin) -> None:
    for user_id in (ann.id, None, ...):
        assert refused(bob.inserts(user_id=user_id))
    assert refused(bob.inserts(project_id=somebody()))
    assert admin.execute("SELECT count(*) FROM tasks").fetchone() == (0,)


def test_a_user_sets_nothing_that_is_not_theirs_to_set(ann: AppUser) -> None:
    for column, value in {
        "priority": 1,
        "attempts": -5,
        "max_attempts": 1000,
        "worker_id": "w",
        "run_after": "infinity",
        "created_at": "2000-01-01",
        "updated_at": "2000-01-01",
        "open_dependencies": 1,
        "output_location": "https://evil.example/x",
        "error_message": "x.y: z",
        "result_data": {"artifacts": []},
        "generation_started_at": "2000-01-01",
        "generation_processed_at": "2000-01-01",
    }.items():
        assert refused(ann.inserts(**{column: value})), column
        assert refused(ann.changes(ann.inserted(), **{column: value})), column
    assert refused(ann.changes(ann.inserted(), params={}))
    for columns in ({"status": "Complete"}, {"status": "in progress"}, {"status": "Failed"}, {"task_type": "shell"}):
        assert refused(ann.inserts(**columns)), columns


def test_a_user_cancels_own_tasks_waiting_or_at_work(ann: AppUser, queue: SupabaseQueue, admin: Admin) -> None:
    running = ann.inserted()
    task = take(queue)
    waiting = ann.inserted()
    for task_id in (running, waiting):
        assert ann.changes(task_id, status="canceled").json()[0]["status"] == "Cancelled"
    assert beat(queue, task) == ([running], [])
    assert row(queue, waiting)["error_message"] == "task.cancelled: cancelled by its user"


def test_a_user_moves_no_task_anywhere_else(ann: AppUser, queue: SupabaseQueue, admin: Admin) -> None:
    waiting = ann.inserted()
    for wanted in ("Complete", "In Progress", "Failed", "Queued"):
        assert refused(ann.changes(waiting, status=wanted)), wanted
    assert ann.changes(waiting, status="Cancelled").status_code == 200
    for wanted in ("Queued", "Cancelled"):
        assert ann.changes(waiting, status=wanted).json() == [], "an ended one is not theirs to change"
    assert refused(ann.asks("DELETE", f"tasks?id=eq.{waiting}"))
    assert status(admin, waiting) == "Cancelled"


def test_a_user_cancels_claims_and_overwrites_nothing_of_anothers(
    ann: AppUser, bob: AppUser, nobody: AppUser, admin: Admin
) -> None:
    anns = ann.inserted()
    assert bob.changes(anns, status="Cancelled").json() == []
    assert refused(nobody.changes(anns, status="Cancelled"))
    assert bob.asks("PATCH", "tasks", {"status": "Cancelled"}).json() == []
    assert bob.inserts(id=anns).status_code == 409
    body: dict[str, object] = {"id": anns, "task_type": "comfy", "params": {}, "status": "Cancelled", "user_id": bob.id}
    merged = bob.asks("POST", "tasks", body, Prefer="resolution=merge-duplicates,return=representation")
    assert merged.status_code in (401, 403), merged.text
    ignored = bob.asks(
        "POST", "tasks", body | {"status": "queued"}, Prefer="resolution=ignore-duplicates,return=representation"
    )
    assert ignored.json() == []
    assert admin.execute("SELECT user_id::text, status, params FROM tasks").fetchall() == [
        (ann.id, "Queued", {"of": ann.id})
    ]


def test_a_user_waits_for_own_tasks_alone(ann: AppUser, bob: AppUser, admin: Admin) -> None:
    first = ann.inserted()
    second = ann.inserted(dependant_on=first)
    answer = bob.inserts(dependant_on=first)
    assert refused(answer) and "another user's" in answer.json()["message"]
    assert ann.changes(first, status="Cancelled").json()
    assert status(admin, second) == "Failed"


def test_no_user_reads_leases_events_workers_or_calls_a_function(
    ann: AppUser, nobody: AppUser, queue: SupabaseQueue, admin: Admin
) -> None:
    ann.inserted()
    take(queue)
    functions = admin.execute("SELECT DISTINCT proname FROM pg_proc WHERE proname LIKE 'wan2gp%'").fetchall()
    assert len(functions) > 40
    for (name,) in functions:
        assert ann.asks("POST", f"rpc/{name}", {}).status_code in (403, 404), name
    for user in (ann, nobody):
        for table in PRIVATE:
            for answer in (
                user.asks("GET", f"{table}?select=*"),
                user.asks("POST", table, {}),
                user.asks("DELETE", f"{table}?task_id=not.is.null"),
            ):
                assert answer.status_code in (400, 401, 403, 404), (table, answer.text)
                assert answer.json()["code"] in ("42501", "42703"), (table, answer.text)
            assert user.asks("GET", f"tasks?select=*,{table}(*)").status_code in (400, 401, 403)
    for call, body in {
        "claim": {"p_claim_id": "c", "p_worker": "w", "p_types": ["comfy"], "p_limit": 9, "p_lease_s": 90},
        "cancel": {"p_task_id": somebody()},
        "finish_many": {"p_settlements": []},
        "heartbeat": {"p_worker": "w", "p_leases": [], "p_lease_s": 90},
        "tasks": {},
        "stats": {},
        "version": {},
        "enqueue": {"p_task_type": "comfy", "p_params": {}, "p_priority": 9},
        "task": {"p_task_id": somebody()},
    }.items():
        for user in (ann, nobody):
            assert refused(user.asks("POST", f"rpc/wan2gp_{call}", body)), call


def test_the_schema_that_a_user_is_shown_has_nothing_of_the_queues(ann: AppUser, nobody: AppUser) -> None:
    shown = set(ann.asks("GET", "").json()["paths"])
    assert shown == {"/", "/tasks"}
    assert set(nobody.asks("GET", "").json()["paths"]) == {"/"}


def test_a_token_that_the_project_did_not_sign_is_nobodys(stack: Stack, ann: AppUser) -> None:
    task_id = ann.inserted()
    claims = {"role": "service_role", "sub": ann.id, "exp": 2**31}
    expired = stack.keys.sign("authenticated", user_id=ann.id, lives_s=-3600)
    for token in (jwt.encode(claims, "x" * 64), jwt.encode(claims, "", algorithm="none"), expired):
        with closing(AppUser(stack, ann.id, token)) as forger:
            assert forger.changes(task_id, status="Cancelled").status_code == 401
            assert forger.asks("POST", "rpc/wan2gp_stats", {}).status_code == 401
    with closing(AppUser(stack, ann.id, stack.keys.sign("postgres", user_id=ann.id))) as other_role:
        assert other_role.asks("GET", "tasks").status_code in (400, 401, 403)


def test_no_user_fills_the_queue(ann: AppUser, bob: AppUser, admin: Admin) -> None:
    one: dict[str, object] = {"task_type": "comfy", "params": {}, "status": "queued", "user_id": ann.id}
    answer = ann.asks("POST", "tasks", [one] * 21)
    assert answer.status_code == 429 and answer.json()["code"] == "PT429"
    assert ann.asks("POST", "tasks", [one] * 20).status_code == 201
    assert ann.inserts().status_code == 429 and bob.inserted()
    assert ann.asks("PATCH", "tasks", {"status": "Cancelled"}).status_code == 200
    assert ann.inserted()
    admin.execute("INSERT INTO tasks (task_type, params) SELECT 'comfy', '{}' FROM generate_series(1, 50)")


def test_on_the_predecessors_app_a_user_works_in_own_projects_alone(
    _pg_session: PgServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its functions for workers, its views and its tokens were open to everybody who had the public key."""
    mine, anothers = somebody(), somebody()
    for url in _pg_session.borrow(_pg_session.supabase_predecessor_template()):
        with Stack(url, tmp_path_factory.mktemp("theirs")) as project, closing(AppUser(project, somebody())) as user:
            assert user.id is not None
            run(url, f"INSERT INTO projects VALUES ('{mine}', 'm', '{user.id}'), ('{anothers}', 'a', '{somebody()}')")
            run(url, f"INSERT INTO tasks (task_type, params, user_id) VALUES ('comfy', '{{}}', '{somebody()}')")
            assert user.asks("GET", "task_queue_analysis").json() and len(user.sees()) == 1, "open until it is closed"
            run(url, POLICIES, LIMIT, PROJECTS)
            project.reload_schema()
            task_id = user.inserted(project_id=mine)
            assert refused(user.inserts(project_id=anothers)) and refused(user.inserts())
            assert user.sees() == {task_id}
            for view in ("task_queue_analysis", "active_workers_health", "system_logs", "user_api_tokens"):
                assert refused(user.asks("GET", view)), view
            for call, body in {
                "func_claim_available_task": {"worker_id_param": "w"},
                "func_worker_heartbeat_with_logs": {"worker_id_param": "w"},
                "func_mark_task_complete": {"task_id_param": task_id, "result_data_param": {}},
            }.items():
                assert refused(user.asks("POST", f"rpc/{call}", body)), call
            assert user.changes(task_id, status="Cancelled").json()[0]["status"] == "Cancelled"
