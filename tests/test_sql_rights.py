"""What each role of the database can read, call and change of the queue: nothing, or what a worker may."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.conftest_db import PgServer
from tests.contract_bench import Admin, claim, end, row, take
from tests.database_roles import (
    ANN,
    DENIED,
    EVERYBODY,
    LOGINS,
    OURS,
    PASSWORD,
    SHARED,
    VERBS,
    as_hosted,
    as_login,
    callable_verbs,
    do,
    enter,
    hosted_database,
    one,
    touches_nothing,
)
from tests.supabase_roles import host_as_supabase
from wan2gp.supervisor.postgres import PostgresQueue
from wan2gp.supervisor.queue import AccessDenied, QueueError, Verb


@pytest.fixture(scope="module")
def hosted(_pg_session: PgServer) -> Iterator[str]:
    """A database as Supabase hosts it."""
    yield from hosted_database(_pg_session, _pg_session.supabase_bare_template())


@pytest.fixture(scope="module")
def theirs(_pg_session: PgServer) -> Iterator[str]:
    """The same on the predecessor's tables, which everybody may use."""
    yield from hosted_database(_pg_session, _pg_session.supabase_untouched_template())


@pytest.fixture
def admin(hosted: str, pg_server: PgServer) -> Iterator[Admin]:
    with psycopg.connect(hosted, autocommit=True) as connection:
        connection.execute("DELETE FROM tasks")
        yield connection


def test_no_table_of_the_queue_is_forgotten_here(admin: Admin) -> None:
    """One that a later migration adds is open to everybody on a hosted database, unless its rights are looked at."""
    tables = admin.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'")
    assert {name for (name,) in tables} == {*OURS, *SHARED}
    sequences = admin.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'S'"
    )
    assert [name for (name,) in sequences] == ["task_events_id_seq"]


@pytest.mark.parametrize("role", EVERYBODY)
def test_no_role_touches_leases_events_or_what_waits_for_what(hosted: str, role: str) -> None:
    touches_nothing(hosted, role)


@pytest.mark.parametrize("role", EVERYBODY)
def test_a_role_may_call_all_verbs_or_nothing(hosted: str, admin: Admin, role: str) -> None:
    """Also none of what the verbs are made of: with wan2gp_settle nobody needs a token."""
    assert callable_verbs(admin, role) == (VERBS if role in ("service_role", "wan2gp_worker") else set())


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_users_see_no_row_and_empty_no_table(hosted: str, admin: Admin, role: str) -> None:
    do(admin, "INSERT INTO tasks (task_type, params) VALUES ('comfy', '{}')")
    with enter(hosted, role) as connection:
        assert one(connection, "SELECT count(*) FROM public.tasks") == 0
        with pytest.raises(DENIED):
            do(connection, "INSERT INTO public.tasks (task_type, params) VALUES ('comfy', '{}')")
        for table in SHARED:
            with pytest.raises(DENIED):
                do(connection, f"TRUNCATE public.{table}")
        with pytest.raises(DENIED):
            do(connection, "SELECT * FROM public.workers")
    assert one(admin, "SELECT count(*) FROM tasks") == 1


PLANT = "CREATE FUNCTION pg_temp.plant() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"


@pytest.mark.parametrize("role", EVERYBODY)
@pytest.mark.parametrize("database", ["hosted", "theirs"])
def test_nobody_hangs_code_on_a_table_that_the_functions_write(
    request: pytest.FixtureRequest, database: str, role: str
) -> None:
    """It would run with the rights of the functions' owner. The right to do so comes with GRANT ALL."""
    with enter(request.getfixturevalue(database), role) as connection:
        do(connection, PLANT)
        for table in (*SHARED, *OURS):
            with pytest.raises(DENIED):
                do(connection, f"CREATE TRIGGER plant AFTER INSERT ON public.{table} EXECUTE FUNCTION pg_temp.plant()")


@pytest.mark.parametrize("role", LOGINS)
def test_our_trigger_functions_fire_on_no_table_of_somebody_elses(hosted: str, role: str) -> None:
    """wan2gp_after_delete believes the rows that it is shown: it would end any lease."""
    with as_login(hosted, role) as connection:
        do(connection, "CREATE TEMP TABLE mine (id uuid)")
        with pytest.raises(DENIED):
            do(
                connection,
                "CREATE TRIGGER t AFTER DELETE ON mine REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT "
                "EXECUTE FUNCTION public.wan2gp_after_delete()",
            )


def test_temporary_tables_and_types_shadow_nothing(hosted: str, admin: Admin) -> None:
    with as_login(hosted, "wan2gp_worker") as worker:
        do(worker, "SET search_path = pg_temp, public")
        for table in (*OURS, *SHARED, "pg_roles", "pg_attribute", "pg_proc"):
            do(worker, f"CREATE TEMP TABLE {table} (id uuid, task_id uuid, status text, token text)")
        do(worker, "CREATE DOMAIN pg_temp.uuid AS text CHECK (false)")
        task_id = one(worker, "SELECT public.wan2gp_enqueue('comfy', '{}')")
        claimed = one(worker, "SELECT public.wan2gp_claim('c', 'w', ARRAY['comfy'], 1, 90)")
        assert [task["id"] for task in claimed["tasks"]] == [task_id]
    assert one(admin, "SELECT status FROM tasks") == "In Progress"


def test_a_workers_key_reads_no_lease_token_of_another_worker(hosted: str, admin: Admin) -> None:
    with closing(PostgresQueue(make_conninfo(hosted, user="wan2gp_worker", password=PASSWORD))) as queue:
        queue.enqueue("comfy", {})
        task = take(queue)
        said = f"{queue.task(task.id)} {queue.tasks()} {queue.stats()} {queue.facts()}"
        assert task.lease_id in said and task.token not in said
        assert not end(queue, task, Verb.RELEASE, output_location=None).repeated
        task = take(queue)
        for forged in ("", task.lease_id, task.id):
            call = "SELECT public.wan2gp_finish(%s, %s, 'complete', 'https://evil.example/x')"
            reply = admin.execute(call, (task.id, forged)).fetchone()
            assert reply is not None and reply[0]["accepted"] is False
        assert row(queue, task.id)["status"] == "In Progress"


def test_a_hosted_database_stays_as_it_was_for_its_own_roles(hosted: str, admin: Admin) -> None:
    """service_role inserts and reads tasks over REST; PostgREST's watch on the schema works on."""
    with as_hosted(hosted, "service_role") as service:
        do(service, "INSERT INTO public.tasks (task_type, params, status) VALUES ('comfy', '{}', 'queued')")
        do(service, "UPDATE public.tasks SET priority = 3")
        assert one(service, "SELECT status FROM public.tasks") == "Queued"
        do(service, "SELECT * FROM public.workers")
    host_as_supabase(hosted)


def test_a_role_without_the_functions_is_told_which_it_lacks(hosted: str) -> None:
    with closing(PostgresQueue(make_conninfo(hosted, user="stranger", password=PASSWORD))) as queue:
        calls = (queue.check, queue.stats, lambda: claim(queue), lambda: queue.cancel(ANN), lambda: queue.rescue("w"))
        for call in calls:
            with pytest.raises(QueueError) as refused:
                call()
            assert isinstance(refused.value, AccessDenied)
