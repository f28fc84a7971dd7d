"""Installing the contract: on nothing, on the predecessor's tables, twice, by two at once, from an SQL editor."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.conftest_db import PREDECESSOR
from tests.contract_bench import Admin, beat, claim, row, take, until_blocked
from tests.contract_predecessor import GENERATIONS, SYSTEM_LOGS
from wan2gp.supervisor.contract_queue import CONTRACT_VERSION
from wan2gp.supervisor.migrate import MigrationFailed, migrate, sql_text, steps, transactions
from wan2gp.supervisor.postgres import PostgresQueue
from wan2gp.supervisor.queue import AccessDenied, FinishReply, Settlement, Verb

SHAPE = """
    SELECT 'column', table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable || ' '
           || coalesce(column_default, '') FROM information_schema.columns WHERE table_schema = 'public'
    UNION ALL SELECT 'index', indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT 'trigger', oid || pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT 'function', p.oid || pg_get_functiondef(p.oid) || coalesce(p.proacl::text, '') FROM pg_proc p
               WHERE p.pronamespace = 'public'::regnamespace
    UNION ALL SELECT 'enum', enumtypid || enumlabel FROM pg_enum
    UNION ALL SELECT 'table', oid || relname || relrowsecurity || coalesce(relacl::text, '') FROM pg_class
               WHERE relnamespace = 'public'::regnamespace
    ORDER BY 1, 2"""


def shape(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(SHAPE).fetchall()


def execute(url: str, script: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(script.encode())


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


@pytest.fixture(params=["nothing", "predecessor"])
def before(request: pytest.FixtureRequest, empty_db: str) -> str:
    if request.param == "predecessor":
        execute(empty_db, PREDECESSOR)
    return empty_db


def test_a_second_migration_changes_nothing(before: str) -> None:
    migrate(before)
    first = shape(before)
    migrate(before)
    execute(before, sql_text())
    assert shape(before) == first


OURS = "tasks, workers, task_leases, task_dependencies, task_children, task_events, worker_contacts"


def test_a_second_migration_waits_for_nobody_who_works(before: str) -> None:
    """Each took the lock that nobody else may hold: it waited for the longest transaction, and all workers for it."""
    migrate(before)
    with psycopg.connect(before) as worker:
        worker.execute(f"LOCK TABLE {OURS} IN ROW EXCLUSIVE MODE".encode())
        migrate(before, lock_timeout_s=0.1, tries=1)
        worker.execute(f"LOCK TABLE {OURS} IN SHARE UPDATE EXCLUSIVE MODE".encode())
        migrate(before, lock_timeout_s=0.1, tries=1)


def test_a_first_migration_lets_others_go_on_between_its_tries(empty_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(empty_db, PREDECESSOR)
    with psycopg.connect(empty_db) as worker:
        worker.execute("LOCK TABLE tasks IN ROW EXCLUSIVE MODE")
        monkeypatch.setattr("wan2gp.supervisor.migrate.PAUSE_S", 0.01)
        with pytest.raises(MigrationFailed, match="holds a lock for too long"):
            migrate(empty_db, lock_timeout_s=0.05, tries=2)
        assert rows(empty_db, "SELECT to_regclass('task_leases'), to_regprocedure('wan2gp_version()')") == [
            (None, None)
        ]
        with ThreadPoolExecutor(1) as pool:
            patient = pool.submit(migrate, empty_db, lock_timeout_s=0.05, tries=1000)
            until_blocked(worker, patient)
            worker.rollback()
            patient.result()


def test_the_verbs_work_while_a_migration_runs(empty_db: str) -> None:
    """Between a function's definition and its rights it was everybody's, and could do nothing: finished work failed."""
    with psycopg.connect(empty_db, autocommit=True) as admin:
        if admin.execute("SELECT FROM pg_roles WHERE rolname = 'service_role'").fetchone() is None:
            admin.execute("CREATE ROLE service_role NOLOGIN BYPASSRLS")
    migrate(empty_db)
    with closing(PostgresQueue(psycopg.conninfo.make_conninfo(empty_db, options="-c role=service_role"))) as queue:
        with psycopg.connect(empty_db) as migrating:
            for step in transactions()[1]:
                migrating.execute(step.sql.encode())
                task_id = queue.enqueue("comfy", {})
                task = take(queue)
                assert beat(queue, task) == ([], []), step.name
                assert queue.completing(task.id, task.token, 90).held
                assert queue.finish_many([Settlement(task_id, task.token, Verb.COMPLETE)]) == (
                    FinishReply(True, "Complete"),
                ), step.name
        assert row(queue, task_id)["status"] == "Complete"


@pytest.mark.parametrize("how", [migrate, lambda url: execute(url, sql_text())], ids=["migrate", "pasted"])
def test_an_older_program_takes_nothing_back(empty_db: str, how: Callable[[str], None]) -> None:
    migrate(empty_db)
    newer = f"SELECT {CONTRACT_VERSION + 1}"
    execute(empty_db, f"CREATE OR REPLACE FUNCTION wan2gp_version() RETURNS int LANGUAGE sql AS '{newer}'")
    before = shape(empty_db)
    with pytest.raises((MigrationFailed, psycopg.Error), match="this program is older than the database's functions"):
        how(empty_db)
    assert shape(empty_db) == before


def test_two_that_migrate_at_once_take_turns(before: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(migrate, [before] * 3))
    with closing(PostgresQueue(before)) as queue:
        queue.check()


def test_the_printed_script_does_the_same_when_it_is_pasted_as_a_whole(before: str) -> None:
    execute(before, sql_text())  # one simple query, as an SQL editor sends it
    with closing(PostgresQueue(before)) as queue:
        queue.check()
        execute(before, "INSERT INTO tasks (task_type, params, status) VALUES ('comfy', '{}', 'queued')")
        assert len(claim(queue)) == 1


def test_nothing_of_the_predecessor_is_altered(empty_db: str) -> None:
    execute(empty_db, PREDECESSOR)
    old, old_rows = (
        set(shape(empty_db)),
        rows(empty_db, "SELECT id, params::text, project_id, worker_id, attempts FROM tasks"),
    )
    migrate(empty_db)
    assert old <= set(shape(empty_db))
    assert set(rows(empty_db, "SELECT id, params::text, project_id, worker_id, attempts FROM tasks")) == set(old_rows)


def test_tasks_that_waited_before_the_migration_still_wait(empty_db: str) -> None:
    execute(empty_db, PREDECESSOR)
    migrate(empty_db)
    found = dict(rows(empty_db, "SELECT right(id::text, 1), status::text || open_dependencies FROM tasks"))
    assert found == {
        "1": "Complete0",
        "2": "In Progress0",
        "3": "Failed0",
        "4": "Queued0",
        "5": "Queued1",
        "6": "Failed1",
    }
    with closing(PostgresQueue(empty_db)) as queue:
        assert [task.id[-1] for task in claim(queue, "old_t2v", limit=9)] == ["4"]
        execute(empty_db, "UPDATE tasks SET status = 'Complete' WHERE right(id::text, 1) = '2'")
        assert [task.id[-1] for task in claim(queue, "old_t2v", limit=9)] == ["5"]


def test_an_enum_that_lacks_a_status_gets_it(empty_db: str) -> None:
    execute(empty_db, PREDECESSOR.replace(", 'Cancelled');", ");", 1))
    migrate(empty_db)
    with closing(PostgresQueue(empty_db)) as queue:
        task_id = queue.enqueue("comfy", {})
        assert queue.cancel(task_id) == "Queued"
        assert (queue.task(task_id) or {})["status"] == "Cancelled"


def test_a_step_that_fails_leaves_nothing_half_done(empty_db: str) -> None:
    execute(empty_db, "CREATE VIEW tasks AS SELECT 1 AS id")
    with pytest.raises(MigrationFailed, match="cannot apply 020_tables.sql"):
        migrate(empty_db)
    assert rows(empty_db, "SELECT to_regclass('workers'), to_regclass('task_leases')") == [(None, None)]


def test_an_unreachable_database_is_said_to_be_so(empty_db: str) -> None:
    with pytest.raises(MigrationFailed, match="cannot connect") as failed:
        migrate(psycopg.conninfo.make_conninfo(empty_db, password="s3cret"))
    assert "s3cret" not in str(failed.value)
    with pytest.raises(MigrationFailed) as failed:
        migrate("postgresql://u:s3cret@[bad/x")
    assert "s3cret" not in str(failed.value)


def test_the_steps_come_in_order() -> None:
    assert [step.name for step in steps()] == sorted(step.name for step in steps())
    assert steps()[0].name == "010_status.sql"


class TestRights:
    """Who may do what, with the roles that a hosted database has."""

    @pytest.fixture
    def roles(self, empty_db: str) -> str:
        with psycopg.connect(empty_db, autocommit=True) as admin:
            for role, more in (
                ("anon", "NOLOGIN"),
                ("authenticated", "NOLOGIN"),
                ("service_role", "NOLOGIN BYPASSRLS"),
                ("wan2gp_worker", "LOGIN PASSWORD 'only here'"),
            ):
                self.make_role(admin, role, more)
            admin.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated")
            admin.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON FUNCTIONS TO anon, authenticated")
        migrate(empty_db)
        return empty_db

    @staticmethod
    def make_role(admin: Admin, role: str, more: str) -> None:
        if admin.execute("SELECT FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is None:
            admin.execute(sql.SQL("CREATE ROLE {} " + more).format(sql.Identifier(role)))  # type: ignore[arg-type]

    def test_the_anonymous_role_reads_and_does_nothing(self, roles: str) -> None:
        with psycopg.connect(roles, autocommit=True) as admin:
            admin.execute("INSERT INTO tasks (task_type, params) VALUES ('comfy', '{}')")
            for role in ("anon", "authenticated"):
                admin.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
                assert admin.execute("SELECT count(*) FROM tasks").fetchone() == (0,), "row level security hides it"
                for query in (
                    "SELECT token FROM task_leases",
                    "SELECT * FROM task_events",
                    "SELECT wan2gp_stats()",
                    "SELECT wan2gp_claim('c', 'w', ARRAY['comfy'], 1, 90)",
                    "SELECT wan2gp_settle(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
                ):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        admin.execute(query.encode())
                admin.execute("RESET ROLE")

    def test_the_workers_role_needs_nothing_but_the_functions(self, roles: str) -> None:
        url = psycopg.conninfo.make_conninfo(roles, user="wan2gp_worker", password="only here")
        with closing(PostgresQueue(url)) as queue:
            queue.check()
            task_id = queue.enqueue("comfy", {})
            assert [task.id for task in claim(queue)] == [task_id]
        with psycopg.connect(url) as worker, pytest.raises(psycopg.errors.InsufficientPrivilege):
            worker.execute("SELECT * FROM tasks")

    def test_the_workers_role_needs_no_right_on_the_predecessors_tables(self, roles: str) -> None:
        with psycopg.connect(roles, autocommit=True) as admin:
            admin.execute(SYSTEM_LOGS.encode())
            admin.execute(GENERATIONS.encode())
            for table in ("system_logs", "generations", "generation_variants"):
                admin.execute(f"REVOKE ALL ON {table} FROM PUBLIC, anon, authenticated".encode())
        url = psycopg.conninfo.make_conninfo(roles, user="wan2gp_worker", password="only here")
        with closing(PostgresQueue(url)) as queue:
            assert queue.facts()["system_logs"] is True
            assert queue.log("w", [{"level": "INFO", "message": "m"}]) == 1
            queue.enqueue("comfy", {})
            (task,) = claim(queue)
            assert queue.completing(task.id, task.token, 90).held

    def test_a_role_without_rights_is_told_so(self, roles: str) -> None:
        with psycopg.connect(roles, autocommit=True) as admin:
            self.make_role(admin, "stranger", "LOGIN PASSWORD 'only here'")
        url = psycopg.conninfo.make_conninfo(roles, user="stranger", password="only here")
        with closing(PostgresQueue(url)) as queue, pytest.raises(AccessDenied, match="grant it EXECUTE") as refused:
            queue.check()
        assert refused.value.code == "42501"

    def test_an_ordinary_user_may_insert_and_cancel_without_seeing_our_tables(self, roles: str) -> None:
        with psycopg.connect(roles, autocommit=True) as admin:
            admin.execute("CREATE POLICY own ON tasks TO authenticated USING (true) WITH CHECK (true)")
            admin.execute("SET ROLE authenticated")
            admin.execute("SET search_path = ''")
            admin.execute("INSERT INTO public.tasks (task_type, params, status) VALUES ('comfy', '{}', 'queued')")
            admin.execute("UPDATE public.tasks SET status = 'canceled'")
            assert admin.execute("SELECT status FROM public.tasks").fetchone() == ("Cancelled",)
            admin.execute("DELETE FROM public.tasks")
