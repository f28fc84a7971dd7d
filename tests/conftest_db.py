"""A real Postgres for the tests: one embedded server for the session, a fresh database for each test that asks.

``empty_db`` is a database with nothing in it, ``queue_db`` one with our contract; both are URLs and vanish after the
test. ``pg_server`` is the server itself, for tests that stop it.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from wan2gp.supervisor.embedded import EmbeddedPostgres

_TEMPLATE = "contract_template"
# Tests kill processes, not machines: what the kernel has accepted is safe, so nothing waits for the disk.
_SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "100"}


class PgServer:
    """The session's server. A test that stopped it gets it started again by the next fixture that needs it."""

    def __init__(self, data_dir: Path, run_dir: Path) -> None:
        self._server = EmbeddedPostgres(data_dir, run_dir, settings=_SETTINGS)
        self._numbers = itertools.count(1)
        self._templates: set[str] = set()
        self.start_server()

    @property
    def admin_url(self) -> str:
        """The superuser's URL of the database ``postgres``."""
        return self.url_for("postgres")

    @property
    def pid(self) -> int | None:
        """The postmaster's; None while it is stopped."""
        return self._server.pid

    def url_for(self, database: str) -> str:
        return self._server.url_for(database).reveal()

    def start_server(self) -> None:
        if self._server.pid is not None and self._server.poll() is not None:
            self._server.stop()  # a test killed it
        if self._server.pid is None:
            self._server.start()

    def stop_server(self) -> None:
        """Breaks all connections, as a fast shutdown does."""
        self._server.stop()

    def restart(self) -> None:
        self.stop_server()
        self.start_server()

    def new_database(self, template: str | None = None) -> str:
        """A fresh database's URL, a copy of the database ``template`` when one is given."""
        name = f"test_{next(self._numbers)}"
        self._execute(
            sql.SQL("create database {} template {}").format(
                sql.Identifier(name), sql.Identifier(template or "template0")
            )
        )
        return self.url_for(name)

    def drop_database(self, url: str) -> None:
        """Whoever is still connected is thrown out."""
        name = str(conninfo_to_dict(url)["dbname"])
        self._execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def contract_template(self) -> str:
        """The name of a database that holds our contract and nothing else; made at the first call."""
        if _TEMPLATE not in self._templates:
            from wan2gp.supervisor.migrate import migrate

            name = sql.Identifier(_TEMPLATE)
            self._execute(sql.SQL("drop database if exists {} with (force)").format(name))
            self._execute(sql.SQL("create database {} template template0").format(name))
            migrate(self.url_for(_TEMPLATE))
            self._templates.add(_TEMPLATE)
        return _TEMPLATE

    def _execute(self, statement: sql.Composable) -> None:
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute(statement)


@pytest.fixture(scope="session")
def _pg_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgServer]:
    run_dir = Path(tempfile.mkdtemp(prefix="w2g-pg-"))  # short: a socket's path has 107 bytes
    server = PgServer(tmp_path_factory.mktemp("postgres"), run_dir)
    yield server
    server.stop_server()
    shutil.rmtree(run_dir)


@pytest.fixture
def pg_server(_pg_session: PgServer) -> PgServer:
    """The running server."""
    _pg_session.start_server()
    return _pg_session


@pytest.fixture
def empty_db(pg_server: PgServer) -> Iterator[str]:
    """URL of a fresh database with nothing in it."""
    yield from _borrow(pg_server, None)


@pytest.fixture
def queue_db(pg_server: PgServer) -> Iterator[str]:
    """URL of a fresh database with our contract."""
    yield from _borrow(pg_server, pg_server.contract_template())


def _borrow(server: PgServer, template: str | None) -> Iterator[str]:
    url = server.new_database(template)
    yield url
    server.start_server()
    server.drop_database(url)
