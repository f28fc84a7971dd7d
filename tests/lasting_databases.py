"""Databases that serve many tests, one after the other: to empty one takes a tenth of the time of making one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.conftest_db import PgServer

# All that a test may have changed besides rows.
_SHAPE = """
SELECT (SELECT md5(string_agg(p.oid::regprocedure::text || p.prosrc, ',' ORDER BY p.oid)) FROM pg_proc p
         WHERE p.pronamespace = 'public'::regnamespace),
       (SELECT md5(string_agg(c.relname || a.attname || a.atttypid, ',' ORDER BY c.oid, a.attnum))
          FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid WHERE c.relnamespace = 'public'::regnamespace),
       (SELECT md5(string_agg(t.tgname || t.tgrelid, ',' ORDER BY t.oid)) FROM pg_trigger t),
       (SELECT md5(string_agg(n.conname || n.conrelid, ',' ORDER BY n.oid)) FROM pg_constraint n),
       (SELECT md5(string_agg(e.enumlabel || e.enumtypid, ',' ORDER BY e.oid)) FROM pg_enum e)"""
_TABLES = (
    "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' ORDER BY 1"
)


class LastingDatabase:
    """One database, as new whenever it is lent."""

    def __init__(self, server: PgServer, template: str) -> None:
        self._server = server
        self._template = template
        self._url: str | None = None
        self._server_pid: int | None = None
        self._shape: Any = None
        self._kept: dict[str, list[Any]] = {}

    def lend(self) -> tuple[str, bool]:
        """Its URL, and whether it is another one than last time: it is when a test changed more than rows, and when
        the server was started again, since whoever is connected to it comes back at its own pace."""
        if self._url is not None and self._server.pid == self._server_pid and self._as_new(self._url):
            return self._url, False
        return self._renew(), True

    def close(self) -> None:
        url, self._url = self._url, None
        if url is not None:
            self._server.start_server()
            self._server.drop_database(url)

    def _renew(self) -> str:
        self.close()
        self._url = url = self._server.new_database(self._template)
        self._server_pid = self._server.pid
        with psycopg.connect(url, autocommit=True) as connection:
            self._shape = connection.execute(_SHAPE).fetchone()
            tables = [str(name) for (name,) in connection.execute(_TABLES)]
            self._kept = {name: _rows(connection, name) for name in tables}
        return url

    def _as_new(self, url: str) -> bool:
        """Whether all rows could be put back; False when something else has changed."""
        with psycopg.connect(url, autocommit=True) as connection:
            if connection.execute(_SHAPE).fetchone() != self._shape:
                return False
            empty = [sql.Identifier(name) for name, rows in self._kept.items() if not rows]
            if empty:
                connection.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(empty)))
            return all(_rows(connection, name) == rows for name, rows in self._kept.items())


def _rows(connection: psycopg.Connection[Any], table: str) -> list[Any]:
    return connection.execute(sql.SQL("SELECT * FROM {} LIMIT 1000").format(sql.Identifier(table))).fetchall()


@pytest.fixture(scope="session")
def _lasting_databases(_pg_session: PgServer) -> Iterator[dict[str, LastingDatabase]]:
    _pg_session.start_server()
    templates = {"ours": _pg_session.contract_template(), "predecessor": _pg_session.predecessor_template()}
    databases = {name: LastingDatabase(_pg_session, template) for name, template in templates.items()}
    yield databases
    for database in databases.values():
        database.close()


@pytest.fixture
def lasting_database(
    pg_server: PgServer, _lasting_databases: dict[str, LastingDatabase], request: pytest.FixtureRequest
) -> str:
    """URL of a database with our contract and no rows, on the ``predecessor``'s tables where the test asks for that."""
    return _lasting_databases[getattr(request, "param", "ours")].lend()[0]
