"""Moving in with the predecessor: its functions answer the same after our migration, its data stay, and both kinds of
worker share one queue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.conftest_db import PREDECESSOR, PgServer
from tests.contract_bench import Admin, beat, claim, end, row, status, take
from wan2gp.supervisor.migrate import migrate
from wan2gp.supervisor.postgres import PostgresQueue
from wan2gp.supervisor.queue import FinishReply, Verb

PROJECT = "aaaaaaaa-0000-4000-8000-000000000001"
TABLES = ("tasks", "workers", "projects", "task_types", "generations", "generation_variants", "system_logs")
# The life of its workers and of its scaler, as its own functions live it. Times and ids differ from run to run.
LIFE = (
    "DELETE FROM tasks WHERE dependant_on IS NOT NULL",
    f"""INSERT INTO tasks (id, task_type, params, project_id, created_at)
        SELECT ('dddddddd-0000-4000-8000-00000000000' || n)::uuid, CASE n WHEN 5 THEN 'x_orchestrator' ELSE 't2v' END,
               jsonb_build_object('n', n), '{PROJECT}', now() + make_interval(secs => n)
          FROM generate_series(1, 6) AS n""",
    "SELECT status, attempts, worker_id, task_data, task_type FROM func_claim_available_task('w1')",
    "SELECT status, attempts, worker_id, task_data, task_type FROM func_claim_task('tasks', 'w2')",
    "SELECT func_mark_task_complete('dddddddd-0000-4000-8000-000000000001', '{\"url\": \"u\"}')",
    "SELECT func_mark_task_failed('dddddddd-0000-4000-8000-000000000002', 'boom')",
    "SELECT task_data FROM func_claim_available_task('w2')",
    "SELECT func_mark_task_failed('dddddddd-0000-4000-8000-000000000002', 'boom')",
    "SELECT task_data FROM func_claim_available_task('w2')",
    "SELECT func_mark_task_failed('dddddddd-0000-4000-8000-000000000002', 'boom')",
    "SELECT task_data FROM func_claim_available_task('w3')",
    "SELECT task_data FROM func_claim_available_task('w3')",
    "SELECT func_reset_orphaned_tasks(ARRAY['w3', 'nobody'])",
    "SELECT func_update_worker_heartbeat('w1', 24564, 1024)",
    "SELECT func_update_worker_heartbeat('gpu-old', 24564, 2048)",
    """SELECT func_worker_heartbeat_with_logs('w9', 24564, 512, ARRAY[
           '{"level": "INFO", "message": "one", "task_id": "dddddddd-0000-4000-8000-000000000001"}',
           '{"level": "ODD", "message": "two"}', '{"level": "ERROR", "message": "three", "task_id": "no uuid"}'
           ]::jsonb[], NULL, 'active')""",
    """SELECT func_insert_logs_batch('[{"source_type": "orchestrator_gpu", "source_id": "o", "level": "WARNING",
           "message": "m", "cycle_number": 7}, {"source_type": "nobody", "source_id": "o", "message": "m"}]')""",
    "UPDATE workers SET status = 'terminating' WHERE id = 'w9'",
    "SELECT task_data FROM func_claim_available_task('w9')",
    "SELECT func_cleanup_old_logs(48)",
    """SELECT id, status, attempts, worker_id, error_message, result_data, generation_started_at IS NULL
         FROM func_get_tasks_by_status(ARRAY['Complete', 'Failed', 'Queued', 'In Progress'])""",
    "SELECT id, instance_type, status, metadata - 'vram_timestamp' FROM workers ORDER BY id",
    """SELECT source_type, source_id, log_level, message, task_id, worker_id, cycle_number, metadata
         FROM system_logs ORDER BY message""",
    "SELECT * FROM task_queue_analysis ORDER BY 1, 2",
    "SELECT id, status, vram_total_mb, vram_used_mb, current_task FROM active_workers_health ORDER BY id",
)


@pytest.fixture(scope="module")
def theirs(_pg_session: PgServer) -> str:
    """The name of a database as the predecessor left it, with data and without our contract."""
    _pg_session.start_server()
    url = _pg_session.new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(PREDECESSOR.encode())
    return str(conninfo_to_dict(url)["dbname"])


@pytest.fixture
def database(pg_server: PgServer, theirs: str) -> Iterator[str]:
    url = pg_server.new_database(theirs)
    yield url
    pg_server.drop_database(url)


@pytest.fixture
def admin(database: str) -> Iterator[Admin]:
    """On a migrated database."""
    migrate(database)
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def queue(admin: Admin, database: str) -> Iterator[PostgresQueue]:
    with closing(PostgresQueue(database)) as queue:
        yield queue


def live(url: str) -> list[tuple[str, list[tuple[Any, ...]]]]:
    answers = []
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in LIFE:
            done = connection.execute(statement.encode())
            answers.append((statement, done.fetchall() if done.description else []))
    return answers


def contents(url: str, columns: dict[str, str]) -> dict[str, list[tuple[Any, ...]]]:
    with psycopg.connect(url) as connection:
        return {
            table: connection.execute(f"SELECT {columns[table]} FROM {table} ORDER BY 1".encode()).fetchall()
            for table in TABLES
        }


def test_its_functions_answer_the_same_before_and_after(pg_server: PgServer, theirs: str, database: str) -> None:
    migrate(database)
    untouched = pg_server.new_database(theirs)
    before, after = live(untouched), live(database)
    for (statement, expected), (_, found) in zip(before, after, strict=True):
        assert found == expected, statement
    assert sum(len(rows) for _, rows in before) > 30, "a life in which something happened"
    pg_server.drop_database(untouched)


def test_its_data_stay(database: str) -> None:
    with psycopg.connect(database) as connection:
        columns = {
            table: ", ".join(
                f'"{name}"'
                for (name,) in connection.execute(
                    "SELECT column_name::text FROM information_schema.columns WHERE table_name = %s"
                    " ORDER BY ordinal_position",
                    (table,),
                )
            )
            for table in TABLES
        }
    before = contents(database, columns)
    migrate(database)
    after = contents(database, columns)
    waited = before["tasks"].pop(), after["tasks"].pop()  # the one that waited for a task that had failed
    assert after == before and all(before[table] for table in before if table != "task_types")
    assert "task.dependency_failed" in str(waited[1]) and "task.dependency_failed" not in str(waited[0])


def test_both_kinds_of_worker_share_a_queue_and_no_task(queue: PostgresQueue, admin: Admin) -> None:
    admin.execute("DELETE FROM tasks")
    ids = [queue.enqueue("t2v", {"n": n}) for n in range(4)]
    their_claim = "SELECT id::text FROM func_claim_available_task('old')"
    order = [take(queue, "t2v").id, str((admin.execute(their_claim).fetchone() or [])[0])]
    order += [take(queue, "t2v").id, str((admin.execute(their_claim).fetchone() or [])[0])]
    assert order == ids
    assert claim(queue, "t2v") == [] and admin.execute(their_claim).fetchone() is None
    assert queue.rescue("w") == 0 and queue.reclaim_own("old") == ()
    later = queue.enqueue("next", {}, depends_on=[ids[1]])
    admin.execute("SELECT func_mark_task_complete(%s, '{}')", (ids[1],))
    assert take(queue, "next").id == later
    admin.execute("SELECT func_mark_task_failed(%s, 'boom')", (ids[3],))
    assert take(queue, "t2v").id == ids[3]


def test_their_reset_of_a_dead_workers_tasks_takes_them_from_us(queue: PostgresQueue, admin: Admin) -> None:
    queue.enqueue("t2v", {})
    task = take(queue, "t2v", worker="gpu-1")
    assert admin.execute("SELECT func_reset_orphaned_tasks(ARRAY['gpu-1'])").fetchone() == (1,)
    assert beat(queue, task) == ([], [task.id])
    assert end(queue, task) == FinishReply(False, "Queued")


def test_their_ways_to_end_a_task_are_no_completion_of_ours(queue: PostgresQueue, admin: Admin) -> None:
    """Only complete_task under a marked lease is; what fails or resets the row meanwhile is still a foreign hand."""
    for how, left in (
        ("func_mark_task_failed(%s, 'boom')", "Queued"),
        ("func_mark_task_complete(%s, '{}')", "Complete"),
    ):
        queue.enqueue("t2v", {})
        task = take(queue, "t2v")
        if left == "Queued":
            queue.completing(task.id, task.token, 90)
        admin.execute(f"SELECT {how}".encode(), (task.id,))
        assert beat(queue, task) == ([], [task.id])
        assert end(queue, task) == FinishReply(False, left)
        admin.execute("DELETE FROM tasks")


def test_their_view_of_our_worker_is_complete(queue: PostgresQueue, admin: Admin) -> None:
    queue.enqueue("t2v", {})
    task = take(queue, "t2v", worker="gpu-new")
    vram = {"vram_total_mb": 81559, "vram_used_mb": 1024, "vram_timestamp": 1764000000}
    queue.heartbeat("gpu-new", [], 90, {**vram, "version": "1"})
    found = admin.execute(
        "SELECT id, vram_total_mb, vram_used_mb, vram_at IS NOT NULL, current_task::text FROM active_workers_health"
        " WHERE last_heartbeat > now() - interval '60 s'"
    ).fetchall()
    assert found == [("gpu-new", 81559, 1024, True, task.id)]


def test_a_trigger_on_the_status_sees_a_row_complete_once(queue: PostgresQueue, admin: Admin) -> None:
    """The app made a generation whenever a row's status was written as Complete, and got two."""
    admin.execute("""
        CREATE FUNCTION make_generation() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO public.generations (tasks, location) VALUES (ARRAY[to_jsonb(NEW.id)], NEW.output_location);
            RETURN NULL;
        END $$;
        CREATE TRIGGER make_generation AFTER UPDATE OF status ON tasks FOR EACH ROW
            WHEN (NEW.status = 'Complete') EXECUTE FUNCTION make_generation()""")
    queue.enqueue("t2v", {})
    task = take(queue, "t2v")
    queue.completing(task.id, task.token, 90)
    admin.execute("UPDATE tasks SET status = 'Complete', output_location = '/their' WHERE id = %s", (task.id,))
    assert end(queue, task, output_location="/ours", result_data={"artifacts": []}).accepted
    made = admin.execute("SELECT location FROM generations WHERE %s = ANY (tasks)", (f'"{task.id}"',)).fetchall()
    assert made == [("/their",)]
    assert row(queue, task.id)["result_data"] == {"artifacts": []}


def test_withheld_work_of_a_project_is_still_the_projects(queue: PostgresQueue, admin: Admin) -> None:
    (task_id,) = admin.execute(
        "INSERT INTO tasks (task_type, params, project_id) VALUES ('t2v', '{}', %s) RETURNING id::text", (PROJECT,)
    ).fetchone() or ("",)
    task = take(queue, "t2v")
    assert (task.id, task.project_id) == (task_id, PROJECT)
    end(queue, task, Verb.WITHHOLD, error_message="publish.complete_task: no")
    assert queue.completing(task.id, task.token, 90).held and status(queue, task.id) == "In Progress"
    admin.execute(
        "INSERT INTO generations (tasks, project_id) VALUES (ARRAY[to_jsonb(%s::text)], %s)", (task.id, PROJECT)
    )
    assert queue.completing(task.id, task.token, 90).made
