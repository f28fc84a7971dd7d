"""A real Postgres for the tests: one embedded server for the session, a fresh database for each test that asks.

``empty_db`` is a database with nothing in it, ``queue_db`` one with our contract; both are URLs and vanish after the
test. ``pg_server`` is the server itself, for tests that stop it.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from tests.supabase_roles import host_as_supabase
from wan2gp.supervisor.embedded import EmbeddedPostgres
from wan2gp.supervisor.migrate import migrate

PREDECESSOR = Path(__file__).with_name("predecessor_schema.sql").read_text(encoding="utf-8")
# Tests kill processes, not machines: what the kernel has accepted is safe, so nothing waits for the disk.
_SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "100"}


class PgServer:
    """The session's server. A test that stopped it gets it started again by the next fixture that needs it."""

    def __init__(self, data_dir: Path, run_dir: Path) -> None:
        self._server = EmbeddedPostgres(data_dir, run_dir, settings=_SETTINGS)
        self._cluster = data_dir / "pg"
        self._numbers = itertools.count(1)
        self._templates: set[str] = set()
        self._kept: dict[Path, set[str]] = {}
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

    def save(self, backup: Path) -> None:
        """Stops the server and copies the whole cluster to ``backup``; it is started again by whoever needs it."""
        self.stop_server()
        _copy(self._cluster, backup)
        self._kept[backup] = set(self._templates)

    def restore(self, backup: Path) -> None:
        """Stops the server and puts that copy in the place of all that has happened since."""
        self.stop_server()
        shutil.rmtree(self._cluster)
        _copy(backup, self._cluster)
        self._templates = set(self._kept[backup])

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
        return self._template("contract_template", migrate)

    def predecessor_template(self) -> str:
        """The same on the predecessor's tables, which have no tasks and no workers."""
        return self._template("predecessor_template", install_predecessor, migrate)

    def supabase_template(self) -> str:
        """Our contract in a database as Supabase hosts it. Its roles are the cluster's from then on."""
        return self._template("supabase_template", host_as_supabase, migrate)

    def supabase_predecessor_template(self) -> str:
        """The predecessor's tables in one, with our contract on them."""
        return self._template("supabase_predecessor_template", host_as_supabase, install_predecessor, migrate)

    def supabase_untouched_template(self) -> str:
        """The predecessor's tables in one, and nothing of ours."""
        return self._template("supabase_untouched_template", host_as_supabase, install_predecessor)

    def supabase_bare_template(self) -> str:
        """One in which nobody has created anything."""
        return self._template("supabase_bare_template", host_as_supabase)

    def borrow(self, template: str | None) -> Iterator[str]:
        """A fresh database's URL, for a fixture to yield from; afterwards the server runs and the database is gone."""
        url = self.new_database(template)
        yield url
        self.start_server()
        self.drop_database(url)

    def _template(self, template: str, *steps: Callable[[str], None]) -> str:
        if template not in self._templates:
            name = sql.Identifier(template)
            self._execute(sql.SQL("drop database if exists {} with (force)").format(name))
            self._execute(sql.SQL("create database {} template template0").format(name))
            for step in steps:
                step(self.url_for(template))
            self._templates.add(template)
        return template

    def _execute(self, statement: sql.Composable) -> None:
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute(statement)


def _copy(cluster: Path, place: Path) -> None:
    """With its owner, who need not be ours."""
    subprocess.run(["cp", "-a", "--reflink=auto", str(cluster), str(place)], check=True)


def install_predecessor(url: str) -> None:
    """The tables of the worker that this one replaces, without its tasks and workers."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(PREDECESSOR.encode())
        connection.execute("DELETE FROM tasks; DELETE FROM workers")


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
    yield from pg_server.borrow(None)


@pytest.fixture
def queue_db(pg_server: PgServer) -> Iterator[str]:
    """URL of a fresh database with our contract."""
    yield from pg_server.borrow(pg_server.contract_template())
