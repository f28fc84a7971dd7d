"""Rows that a user may write, and what they do to others: stop their tasks, lock them, or tell of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg import sql

from tests.conftest_db import PgServer
from tests.contract_bench import Admin, claim, end, row, take
from tests.database_roles import (
    ANN,
    BOB,
    DENIED,
    as_hosted,
    as_login,
    do,
    hosted_database,
    one,
)
from wan2gp.supervisor.postgres import PostgresQueue
from wan2gp.supervisor.queue import Verb


@pytest.fixture
def hosted(pg_server: PgServer) -> Iterator[str]:
    """A database as Supabase hosts it."""
    yield from hosted_database(pg_server, pg_server.supabase_bare_template())


@pytest.fixture
def admin(hosted: str) -> Iterator[Admin]:
    with psycopg.connect(hosted, autocommit=True) as connection:
        yield connection


def test_a_stranger_who_listens_hears_nothing_but_that_there_is_something(hosted: str, admin: Admin) -> None:
    with as_login(hosted, "stranger") as stranger:
        do(stranger, "LISTEN wan2gp_tasks")
        do(admin, f"INSERT INTO tasks (task_type, params, user_id) VALUES ('comfy', '{{\"secret\": 1}}', '{ANN}')")
        do(admin, "UPDATE tasks SET status = 'Cancelled'")
        do(admin, "NOTIFY wan2gp_tasks, 'end'")
        heard = [notice.payload for notice in stranger.notifies(timeout=30, stop_after=2)]
        assert set(heard) <= {"", "end"}


POISON = [
    *(("attempts", value) for value in ("2147483647", "-2147483648")),
    *(("run_after", value) for value in ("'infinity'", "'-infinity'", "'290000-01-01'")),
    *(("created_at", value) for value in ("'infinity'", "'-infinity'", "'0044-03-15 BC'", "'200000-01-01'")),
    *(("max_attempts", value) for value in ("2147483647", "-2147483648")),
    *(("generation_started_at", value) for value in ("'infinity'", "'-infinity'")),
    *(("result_data", value) for value in ("'[1]'", "'\"x\"'")),
    ("priority", "2147483647"),
    ("worker_id", "repeat('x', 100000)"),
]


def test_no_value_in_a_users_row_stops_the_tasks_of_others(hosted: str, admin: Admin) -> None:
    """attempts = 2147483647 was claimed first and could not be counted up, run_after = infinity was no number of
    seconds: each claim of every worker failed until somebody deleted the row. Here users may write all columns."""
    do(admin, "CREATE POLICY all_of_it ON tasks TO authenticated USING (true) WITH CHECK (true)")
    with as_hosted(hosted, "authenticated") as user, closing(PostgresQueue(hosted)) as queue:
        for how in ("insert", "update"):
            for column, value in POISON:
                do(admin, "DELETE FROM tasks")
                if how == "insert":
                    do(
                        user,
                        f"INSERT INTO public.tasks (task_type, params, {column}) VALUES ('comfy', '{{}}', {value})",
                    )
                else:
                    do(user, "INSERT INTO public.tasks (task_type, params) VALUES ('comfy', '{}')")
                    do(user, f"UPDATE public.tasks SET {column} = {value}")
                good = queue.enqueue("comfy", {})
                claimed = claim(queue, limit=2) + claim(queue)
                assert good in [task.id for task in claimed], (how, column, value)
                assert queue.stats()["counts"] and len(queue.tasks()) == 2
                for task in claimed:
                    assert end(queue, task, Verb.RETRY).accepted, (how, column, value)
                assert good in [task.id for task in claim(queue, limit=2)], (how, column, value)


class TestAnothersTask:
    """Waiting for a task tells when and why it ends, and locks it for a while."""

    @pytest.fixture
    def user(self, hosted: str, admin: Admin) -> Iterator[Admin]:
        do(
            admin,
            "CREATE POLICY own ON tasks TO authenticated USING (user_id = auth.uid())",
        )
        with as_hosted(hosted, "authenticated") as connection:
            do(connection, f'SET request.jwt.claims = \'{{"sub": "{BOB}"}}\'')
            yield connection

    def insert(self, connection: Admin, user_id: str | None, waits_for: str | None = None, **more: str) -> str:
        columns = ["user_id", "dependant_on", *more]
        statement = sql.SQL(
            "INSERT INTO public.tasks (task_type, params, {}) VALUES ('comfy', '{{}}', {}) RETURNING id"
        )
        query = statement.format(
            sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join([sql.Placeholder()] * len(columns))
        )
        found = connection.execute(query, [user_id, waits_for, *more.values()]).fetchone()
        assert found is not None
        return str(found[0])

    def test_nobody_waits_for_it(self, admin: Admin, user: Admin) -> None:
        anns, own = self.insert(admin, ANN), self.insert(user, BOB)
        with pytest.raises(DENIED, match="another user's"):
            self.insert(user, BOB, anns)
        with pytest.raises(DENIED, match="another user's"):
            user.execute("UPDATE public.tasks SET dependant_on = %s WHERE id = %s", (anns, own))
        self.insert(user, BOB, own)

    def test_nobody_waits_for_the_operators(self, admin: Admin, user: Admin) -> None:
        operators, own = self.insert(admin, None), self.insert(user, BOB)
        with pytest.raises(DENIED, match="another user's"):
            self.insert(user, BOB, operators)
        with pytest.raises(DENIED, match="another user's"):
            user.execute("UPDATE public.tasks SET dependant_on = %s WHERE id = %s", (operators, own))
        self.insert(admin, None, self.insert(admin, None))
        self.insert(admin, None, own)

    def test_nobody_locks_it(self, hosted: str, admin: Admin, user: Admin) -> None:
        anns = self.insert(admin, ANN)
        with user.transaction():
            with pytest.raises(DENIED), user.transaction():
                self.insert(user, BOB, anns)
            with closing(PostgresQueue(hosted)) as queue:
                assert take(queue).id == anns

    def test_users_of_one_project_may(self, admin: Admin) -> None:
        project = "cccccccc-1111-4000-8000-000000000003"
        anns = self.insert(admin, ANN, project_id=project)
        self.insert(admin, BOB, anns, project_id=project)
        with pytest.raises(DENIED):
            self.insert(admin, BOB, anns)

    def test_why_it_ended_is_told_to_its_own_user_alone(self, hosted: str, admin: Admin, user: Admin) -> None:
        shared = {"project_id": "cccccccc-1111-4000-8000-000000000003"}
        nobodys, anns = self.insert(admin, None, **shared), self.insert(admin, ANN)
        waiting = {self.insert(user, BOB, nobodys, **shared): False, self.insert(admin, None, nobodys): True}
        waiting[self.insert(admin, ANN, anns)] = True
        do(
            admin,
            "UPDATE tasks SET status = 'Failed', error_message = 'x.y: /home/ann/diary' WHERE dependant_on IS NULL",
        )
        for task, told in waiting.items():
            with closing(PostgresQueue(hosted)) as queue:
                found = row(queue, task)
            assert found["status"] == "Failed" and found["error_message"].startswith("task.dependency_failed: ")
            assert ("diary" in str(found)) == told


CHAIN = """
    WITH link AS MATERIALIZED (SELECT n, gen_random_uuid() AS id FROM generate_series(1, {length}) AS n)
    INSERT INTO tasks (id, task_type, params, dependant_on)
    SELECT link.id, 'comfy', '{{}}', coalesce(before.id, '{first}')
      FROM link LEFT JOIN link AS before ON before.n = link.n - 1 ORDER BY link.n"""
CROWD = """
    INSERT INTO tasks (task_type, params, dependant_on)
    SELECT 'comfy', '{{}}', '{first}' FROM generate_series(1, {length})"""


@pytest.mark.parametrize(
    ("shape", "most"), [(CHAIN, 500), pytest.param(CROWD, 10_000, marks=pytest.mark.long)], ids=["chain", "crowd"]
)
def test_what_waits_for_one_task_is_never_more_than_its_end_can_carry(
    hosted: str, admin: Admin, shape: str, most: int
) -> None:
    """A worker whose task ended could not store that within its deadline any more, nor whatever else it had done."""
    with closing(PostgresQueue(hosted, call_timeout_s=120)) as queue:
        queue.enqueue("comfy", {})
        task = take(queue)
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            do(admin, shape.format(length=most + 1, first=task.id))
        do(admin, shape.format(length=most, first=task.id))
        last = str(
            one(
                admin,
                "SELECT max(id::text) FROM tasks t WHERE NOT EXISTS (SELECT FROM tasks d WHERE d.dependant_on = t.id)",
            )
        )
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            do(admin, shape.format(length=1, first=last if shape is CHAIN else task.id))
        assert end(queue, task, Verb.FAIL, error_message="x.y: z").accepted
    assert one(admin, "SELECT count(*) FROM tasks WHERE status = 'Failed'") == most + 1
