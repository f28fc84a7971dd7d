"""The roles that a database knows, and how each comes in: a hosted project's, a worker's login, a stranger's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.conftest_db import PgServer
from tests.contract_bench import Admin
from tests.supabase_roles import authenticator_url
from wan2gp.supervisor.migrate import migrate

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
EVERYBODY = (*HOSTED, *LOGINS)


def logins(url: str) -> None:
    """Two who may log in: one that nobody has given anything, and a worker's."""
    with psycopg.connect(url, autocommit=True) as admin:
        for role in LOGINS:
            if admin.execute("SELECT FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is None:
                admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
            admin.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(PASSWORD)))


def hosted_database(server: PgServer, template: str) -> Iterator[str]:
    """A database made from ``template``, with our contract and the two logins; for a fixture to yield from."""
    for url in server.borrow(template):
        logins(url)
        migrate(url)
        yield url


def own_logins(server: PgServer) -> Iterator[str]:
    """An empty database in which everybody may create, as Postgres 13 and 14 make them; for a fixture too."""
    for url in server.borrow(None):
        logins(url)
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        yield url


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


def touches_nothing(url: str, role: str) -> None:
    """Whatever ``role`` tries on the tables that are the queue's alone is refused."""
    with enter(url, role) as connection:
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


def callable_verbs(admin: Admin, role: str) -> set[str]:
    """Names, without ``wan2gp_``, of the functions that ``role`` may call."""
    query = "SELECT proname FROM pg_proc WHERE proname LIKE 'wan2gp%%' AND has_function_privilege(%s, oid, 'EXECUTE')"
    return {name.removeprefix("wan2gp_") for (name,) in admin.execute(query, (role,))}
