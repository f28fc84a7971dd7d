"""Code that somebody leaves where the queue's functions or its migration would meet it, with its owner's rights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.conftest_db import PgServer
from tests.contract_bench import Admin
from tests.database_roles import (
    DENIED,
    EVERYBODY,
    LOGINS,
    PASSWORD,
    VERBS,
    as_login,
    callable_verbs,
    do,
    hosted_database,
    logins,
    one,
    own_logins,
    touches_nothing,
)
from tests.test_ctl import ctl
from wan2gp.supervisor.migrate import MigrationFailed, migrate, sql_text


@pytest.fixture
def hosted(pg_server: PgServer) -> Iterator[str]:
    """A database as Supabase hosts it."""
    yield from hosted_database(pg_server, pg_server.supabase_bare_template())


@pytest.fixture
def admin(hosted: str) -> Iterator[Admin]:
    with psycopg.connect(hosted, autocommit=True) as connection:
        yield connection


@pytest.fixture
def open_schema(pg_server: PgServer) -> Iterator[str]:
    """An empty database in which everybody may create."""
    yield from own_logins(pg_server)


def test_every_function_has_a_path_of_its_own_with_the_temporary_schema_last(hosted: str, admin: Admin) -> None:
    found = admin.execute(
        "SELECT proname, prosecdef, prorettype = 'trigger'::regtype, coalesce(array_to_string(proconfig, ';'), '')"
        "  FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'wan2gp%'"
    ).fetchall()
    assert len(found) > 40
    for name, definer, fires, settings in found:
        assert settings.split(";")[0] == "search_path=pg_catalog, public, extensions, pg_temp", name
        assert definer == (fires or name.removeprefix("wan2gp_") in VERBS), name


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
        touches_nothing(hosted, role)
        assert callable_verbs(admin, role) == (VERBS if role == "service_role" else set())
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


@pytest.mark.parametrize("of_another", [False, True], ids=["own schema", "another's schema"])
def test_an_owner_who_is_no_superuser_closes_what_is_his_and_is_told_of_the_rest(
    pg_server: PgServer, of_another: bool
) -> None:
    """As on a hosted database: the role that migrates owns the database, and perhaps not the schema."""
    for url in pg_server.borrow(pg_server.supabase_bare_template()):
        logins(url)
        with psycopg.connect(url, autocommit=True) as admin, owned_by(admin, "app_owner"):
            do(admin, "GRANT CREATE ON SCHEMA public TO PUBLIC, app_owner")
            if of_another:
                do(admin, "ALTER SCHEMA public OWNER TO CURRENT_USER")
            warned: list[str] = []
            migrate(make_conninfo(url, user="app_owner", password=PASSWORD), warn=warned.append)
            may = "SELECT has_schema_privilege('stranger', 'public', 'CREATE')"
            assert one(admin, may) == of_another
            assert any("REVOKE CREATE ON SCHEMA public FROM PUBLIC" in text for text in warned) == of_another
            for role in EVERYBODY:
                touches_nothing(url, role)
            migrate(url)
            assert not one(admin, may)


@contextmanager
def owned_by(admin: Admin, role: str) -> Iterator[None]:
    """A role without rights owns the database for a while."""
    do(admin, f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    do(admin, f"ALTER DATABASE {admin.info.dbname} OWNER TO {role}")
    try:
        yield
    finally:
        do(admin, f"ALTER DATABASE {admin.info.dbname} OWNER TO CURRENT_USER")
        do(admin, f"DROP OWNED BY {role}")
        do(admin, f"DROP ROLE {role}")


def test_the_pasted_script_leaves_its_reader_the_path_that_he_had(open_schema: str) -> None:
    with psycopg.connect(open_schema, autocommit=True) as admin:
        before = one(admin, "SHOW search_path")
        do(admin, sql_text())
        assert one(admin, "SHOW search_path") == before
    with as_login(open_schema, "wan2gp_worker") as worker, pytest.raises(DENIED):
        do(worker, BETTER_NOTE)


def test_db_migrate_prints_what_is_left_open(pg_server: PgServer, tmp_path: Path) -> None:
    for url in pg_server.borrow(pg_server.supabase_untouched_template()):
        done = ctl(tmp_path, "db", "migrate", DATABASE_URL=url)
        assert done.returncode == 0 and done.stdout == "the database is up to date\n"
        assert "wan2gp-ctl: warning: row level security is off on public.tasks, which anon" in done.stderr
