"""Projects that serve many tests, one after the other: a PostgREST is bound to its database, and takes longer to start
than a test of the contract takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.conftest_db import PgServer
from tests.supabase_stack import Stack

# All that a test may have changed besides rows.
_SHAPE = """
SELECT (SELECT md5(string_agg(p.oid::regprocedure::text || p.prosrc, ',' ORDER BY p.oid)) FROM pg_proc p
         WHERE p.pronamespace = 'public'::regnamespace),
       (SELECT md5(string_agg(c.relname || a.attname || a.atttypid, ',' ORDER BY c.oid, a.attnum))
          FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid WHERE c.relnamespace = 'public'::regnamespace),
       (SELECT md5(string_agg(t.tgname || t.tgrelid, ',' ORDER BY t.oid)) FROM pg_trigger t),
       (SELECT md5(string_agg(n.conname || n.conrelid, ',' ORDER BY n.oid)) FROM pg_constraint n)"""
_TABLES = (
    "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' ORDER BY 1"
)


class LastingStack:
    """One project, as new whenever it is lent."""

    def __init__(self, server: PgServer, template: str, folder: Path) -> None:
        self._server = server
        self._template = template
        self._folder = folder
        self._numbers = itertools.count(1)
        self._stack: Stack | None = None
        self._server_pid: int | None = None
        self._shape: Any = None
        self._kept: dict[str, Any] = {}

    @contextmanager
    def lend(self) -> Iterator[Stack]:
        """In the main thread. A test that changes more than rows costs a new project."""
        # After a restart of the server PostgREST comes back at its own pace.
        if self._stack is None or self._server.pid != self._server_pid or not self._as_new():
            self._renew()
        assert self._stack is not None
        self._stack.front.faults.clear()
        self._stack.front.requests.clear()
        yield self._stack

    def close(self) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()
            self._server.start_server()
            self._server.drop_database(stack.database)

    def _renew(self) -> None:
        self.close()
        self._server_pid = self._server.pid
        url = self._server.new_database(self._template)
        stack = Stack(url, self._folder / f"stack_{next(self._numbers)}")
        stack.__enter__()
        self._stack = stack
        with psycopg.connect(url, autocommit=True) as connection:
            self._shape = connection.execute(_SHAPE).fetchone()
            self._kept = {name: _rows(connection, name) for name in _tables(connection)}

    def _as_new(self) -> bool:
        """Whether all rows could be put back; False when something else has changed."""
        assert self._stack is not None
        with psycopg.connect(self._stack.database, autocommit=True) as connection:
            if connection.execute(_SHAPE).fetchone() != self._shape:
                return False
            empty = [sql.Identifier(name) for name, rows in self._kept.items() if not rows]
            if empty:
                connection.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(empty)))
            return all(_rows(connection, name) == rows for name, rows in self._kept.items())


def _tables(connection: psycopg.Connection[Any]) -> list[str]:
    return [str(name) for (name,) in connection.execute(_TABLES)]


def _rows(connection: psycopg.Connection[Any], table: str) -> list[Any]:
    return connection.execute(sql.SQL("SELECT * FROM {} LIMIT 1000").format(sql.Identifier(table))).fetchall()


@pytest.fixture(scope="session")
def _lasting_stacks(
    _pg_session: PgServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, LastingStack]]:
    _pg_session.start_server()
    folder = tmp_path_factory.mktemp("stacks")
    templates = {
        "ours": _pg_session.supabase_template(),
        "predecessor": _pg_session.supabase_predecessor_template(),
        "bare": _pg_session.supabase_bare_template(),
    }
    stacks = {name: LastingStack(_pg_session, template, folder / name) for name, template in templates.items()}
    yield stacks
    for stack in stacks.values():
        stack.close()


@pytest.fixture
def lasting_stack(
    pg_server: PgServer, _lasting_stacks: dict[str, LastingStack], request: pytest.FixtureRequest
) -> Iterator[Stack]:
    """A project with our contract, or, where the test asks for that, ``predecessor`` or ``bare`` (nothing in it)."""
    with _lasting_stacks[getattr(request, "param", "ours")].lend() as stack:
        yield stack
