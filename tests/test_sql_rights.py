"""The database's side of the sandbox: what each role can read, call and plant, and what a hostile row can stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.conftest_db import PgServer
from tests.contract_bench import Admin, claim, end, row, take
from tests.supabase_roles import authenticator_url, host_as_supabase
from wan2gp.supervisor.migrate import MigrationFailed, migrate
from wan2gp.supervisor.postgres import PostgresQueue
from wan2gp.supervisor.queue import AccessDenied, QueueError, Verb

OURS = ("task_leases", "task_dependencies", "task_children", "task_events", "worker_contacts")
SHARED = ("tasks", "workers")
VERBS = {
    *(
        "claim",
        "claim_bare",
        "heartbeat",
        "finish",
        "finish_many",
        "spawn",
        "enqueue",
        "cancel",
        "retry",
        "reclaim_own",
    ),
    *("rescue", "task", "tasks", "stats", "event", "version", "completing", "facts", "log"),
}
LOGINS = ("stranger", "wan2gp_worker")
HOSTED = ("anon", "authenticated", "service_role")
PASSWORD = "only here"
ANN, BOB = "aaaaaaaa-1111-4000-8000-000000000001", "bbbbbbbb-1111-4000-8000-000000000002"
DENIED = psycopg.errors.InsufficientPrivilege


def logins(url: str) -> None:
    """Two who may log in: one that nobody has given anything, and a worker's."""
    with psycopg.connect(url, autocommit=True) as admin:
        for role in LOGINS:
            if admin.execute("SELECT FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is None:
                admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
            admin.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(PASSWORD)))


@pytest.fixture
def hosted(pg_server: PgServer) -> Iterator[str]:
    """A database as Supabase hosts it, with our contract and two more roles that may log in."""
    for url in pg_server.borrow(pg_server.supabase_bare_template()):
        logins(url)
        migrate(url)
        yield url


@pytest.fixture
def theirs(pg_server: PgServer) -> Iterator[str]:
    """The same on the predecessor's tables, which everybody may use."""
    for url in pg_server.borrow(pg_server.supabase_untouched_template()):
        logins(url)
        migrate(url)
        yield url


@pytest.fixture
def open_schema(pg_server: PgServer) -> Iterator[str]:
    """An empty database in which everybody may create, as Postgres 13 and 14 make them."""
    for url in pg_server.borrow(None):
        logins(url)
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        yield url


@pytest.fixture
def admin(hosted: str) -> Iterator[Admin]:
    with psycopg.connect(hosted, autocommit=True) as connection:
        yield connection


def as_login(url: str, role: str) -> Admin:
    return psycopg.connect(make_conninfo(url, user=role, password=PASSWORD), autocommit=True)


def as_hosted(url: str, role: str) -> Admin:
    """As PostgREST has it: logged in as nobody much, then that role."""
    connection = psycopg.connect(authenticator_url(url), autocommit=True)
    connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
    return connection


def enter(url: str, role: str) -> Admin:
    return as_login(url, role) if role in LOGINS else as_hosted(url, role)


def do(connection: Admin, statement: str) -> None:
    connection.execute(statement.encode())


def one(connection: Admin, query: str) -> Any:
    found = connection.execute(query.encode()).fetchone()
    assert found is not None
    return found[0]


@pytest.mark.parametrize("role", [*HOSTED, *LOGINS])
def test_no_role_touches_leases_events_or_what_waits_for_what(hosted: str, role: str) -> None:
    with enter(hosted, role) as connection:
        for table in OURS:
            for statement in (
                f"SELECT * FROM public.{table}",
                f"SELECT FROM public.{table} FOR UPDATE",
                f"INSERT INTO public.{table} DEFAULT VALUES",
                f"DELETE FROM public.{table}",
                f"TRUNCATE public.{table}",
                f"DO $$ BEGIN LOCK TABLE public.{table} IN ACCESS SHARE MODE; END $$",
                f"COPY public.{table} TO STDOUT",
            ):
                with pytest.raises(DENIED):
                    do(connection, statement)
        for statement in (
            "SELECT token FROM public.task_leases",
            "UPDATE public.task_leases SET expires_at = 'infinity'",
            "SELECT last_value FROM public.task_events_id_seq",
            "SELECT nextval('public.task_events_id_seq')",
            "SELECT setval('public.task_events_id_seq', 1, false)",
        ):
            with pytest.raises(DENIED):
                do(connection, statement)


@pytest.mark.parametrize("role", [*HOSTED, *LOGINS])
def test_a_role_may_call_all_verbs_or_nothing(hosted: str, admin: Admin, role: str) -> None:
    """Also none of what the verbs are made of: with wan2gp_settle nobody needs a token."""
    query = "SELECT proname FROM pg_proc WHERE proname LIKE 'wan2gp%%' AND has_function_privilege(%s, oid, 'EXECUTE')"
    may = {name.removeprefix("wan2gp_") for (name,) in admin.execute(query, (role,))}
    assert may == (VERBS if role in ("service_role", "wan2gp_worker") else set())


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


@pytest.mark.parametrize("role", [*HOSTED, *LOGINS])
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


def test_every_function_has_a_path_of_its_own_with_the_temporary_schema_last(hosted: str, admin: Admin) -> None:
    found = admin.execute(
        "SELECT proname, prosecdef, prorettype = 'trigger'::regtype, coalesce(array_to_string(proconfig, ';'), '')"
        "  FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'wan2gp%'"
    ).fetchall()
    assert len(found) > 40
    for name, definer, fires, settings in found:
        assert settings.split(";")[0] == "search_path=pg_catalog, public, extensions, pg_temp", name
        assert definer == (fires or name.removeprefix("wan2gp_") in VERBS), name


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


BETTER = """
CREATE FUNCTION {schema}.{name} LANGUAGE plpgsql AS $$
BEGIN EXECUTE format('ALTER ROLE %I SUPERUSER', session_user); RETURN {value}; END $$"""
BETTER_NOTE = BETTER.format(schema="public", name="wan2gp_note(uuid, text, jsonb) RETURNS void", value="").replace(
    "RETURN ;", ""
)
BETTER_FORMAT = BETTER.format(schema="public", name="format(text, uuid) RETURNS text", value="''")
BETTER_VERSION = BETTER.format(schema="public", name="wan2gp_version() RETURNS int", value="1")


@pytest.mark.parametrize("role", LOGINS)
def test_after_the_migration_nobody_creates_where_the_functions_look(open_schema: str, role: str) -> None:
    """A function that fits a call better than the one that is meant would be called with the owner's rights."""
    migrate(open_schema)
    with as_login(open_schema, role) as connection:
        for statement in (
            BETTER_NOTE,
            BETTER_FORMAT,
            "CREATE TABLE public.mine ()",
            "CREATE OPERATOR public.= (FUNCTION = texteq, LEFTARG = text, RIGHTARG = text)",
            "CREATE SCHEMA extensions",
            "CREATE SCHEMA pg_catalogue",
        ):
            with pytest.raises(DENIED):
                do(connection, statement)


@pytest.mark.parametrize("planted", [BETTER_NOTE, BETTER_FORMAT, BETTER_VERSION])
def test_a_function_that_somebody_left_for_the_migration_is_not_called(open_schema: str, planted: str) -> None:
    with as_login(open_schema, "stranger") as connection:
        do(connection, planted)
    with pytest.raises(MigrationFailed, match="belongs to the role stranger"):
        migrate(open_schema)
    with psycopg.connect(open_schema) as admin:
        assert not one(admin, "SELECT rolsuper FROM pg_roles WHERE rolname = 'stranger'")
        assert one(admin, "SELECT count(*) FROM pg_proc WHERE proname LIKE 'wan2gp%' AND prosecdef") == 0
        do(admin, "DROP OWNED BY stranger")
    migrate(open_schema)


def test_an_operator_or_a_table_that_somebody_left_is_refused_by_name(open_schema: str) -> None:
    for planted, told in (
        ("CREATE OPERATOR public.= (FUNCTION = int4eq, LEFTARG = int, RIGHTARG = int)", r"operator public\.=\(integer"),
        ("CREATE TABLE public.task_leases (task_id uuid, token text)", r"table public\.task_leases"),
    ):
        with as_login(open_schema, "stranger") as connection:
            do(connection, planted)
        with pytest.raises(MigrationFailed, match=told):
            migrate(open_schema)
        with psycopg.connect(open_schema) as admin:
            do(admin, "DROP OWNED BY stranger")


def test_what_an_earlier_migration_left_open_is_closed_by_the_next(hosted: str, admin: Admin) -> None:
    everybody = "anon, authenticated, service_role, wan2gp_worker, stranger"
    do(admin, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {everybody.removesuffix(', stranger')}, PUBLIC")
    do(admin, f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {everybody.removesuffix(', stranger')}")
    do(admin, f"GRANT ALL ON ALL FUNCTIONS IN SCHEMA public TO {everybody}, PUBLIC")
    do(admin, f"GRANT CREATE ON SCHEMA public TO {everybody.removesuffix(', stranger')}, PUBLIC")
    do(admin, "ALTER FUNCTION wan2gp_settle RESET search_path")
    warned: list[str] = []
    migrate(hosted, warn=warned.append)
    assert warned == []
    test_every_function_has_a_path_of_its_own_with_the_temporary_schema_last(hosted, admin)
    for role in ("anon", "authenticated", "service_role"):
        test_no_role_touches_leases_events_or_what_waits_for_what(hosted, role)
        test_a_role_may_call_all_verbs_or_nothing(hosted, admin, role)
    with as_login(hosted, "stranger") as connection, pytest.raises(DENIED):
        do(connection, "SELECT public.wan2gp_note(NULL, NULL, NULL)")


def test_what_only_its_owner_may_close_is_said(pg_server: PgServer) -> None:
    for url in pg_server.borrow(pg_server.supabase_untouched_template()):
        logins(url)
        with psycopg.connect(url, autocommit=True) as admin:
            do(admin, "GRANT CREATE ON SCHEMA public, extensions TO stranger")
        with as_login(url, "stranger") as stranger:
            do(stranger, "CREATE FUNCTION public.theirs() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
        with psycopg.connect(url, autocommit=True) as admin:
            do(admin, "CREATE TRIGGER theirs BEFORE UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION theirs()")
            warned: list[str] = []
            migrate(url, warn=warned.append)
            for words in (
                "the role stranger may create functions in the schema public",
                "the schema extensions is open",
                "row level security is off on public.tasks, which anon, authenticated may use",
                "row level security is off on public.workers",
                "the trigger theirs on public.tasks is a function of the role stranger",
            ):
                assert any(words in sentence for sentence in warned), words
            path = one(admin, "SELECT array_to_string(proconfig, '') FROM pg_proc WHERE proname = 'wan2gp_finish'")
            assert path == "search_path=pg_catalog, public, pg_temp"


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
        nobodys, anns = self.insert(admin, None), self.insert(admin, ANN)
        waiting = {self.insert(user, BOB, nobodys): False, self.insert(admin, None, nobodys): True}
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


def test_the_embedded_database_asks_for_its_password_on_every_way_in(pg_server: PgServer) -> None:
    with psycopg.connect(pg_server.admin_url) as admin:
        assert one(admin, "SELECT array_agg(DISTINCT auth_method) FROM pg_hba_file_rules") == ["scram-sha-256"]
        assert one(admin, "SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL") == 0
        assert one(admin, "SHOW listen_addresses") == "" and one(admin, "SHOW unix_socket_permissions") == "0700"
        assert (
            one(admin, "SELECT count(*) FROM pg_authid WHERE rolcanlogin AND rolsuper AND rolpassword !~ '^SCRAM'") == 0
        )
    for refused in ({"password": "guessed"}, {"user": "postgres"}, {"user": "wan2gp_worker", "password": ""}):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(make_conninfo(pg_server.admin_url, **refused))


def test_a_hosted_database_stays_as_it_was_for_its_own_roles(hosted: str) -> None:
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
