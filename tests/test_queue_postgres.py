"""The queue on a direct Postgres: the contract on an empty database and on the predecessor's, then outages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.conftest_db import PgServer
from tests.queue_contract import Admin, QueueContract
from wan2gp.supervisor.migrate import migrate
from wan2gp.supervisor.postgres import PostgresQueue

PREDECESSOR = Path(__file__).with_name("predecessor_schema.sql").read_text(encoding="utf-8")
_TEMPLATES: dict[str, str] = {}


def predecessor_template(server: PgServer) -> str:
    """The name of a database with the predecessor's tables and our contract on them."""
    if server.admin_url not in _TEMPLATES:
        url = server.new_database()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(PREDECESSOR.encode())
            connection.execute("DELETE FROM tasks; DELETE FROM workers")
        migrate(url)
        _TEMPLATES[server.admin_url] = psycopg.conninfo.conninfo_to_dict(url)["dbname"]  # type: ignore[assignment]
    return _TEMPLATES[server.admin_url]


@pytest.fixture
def database(pg_server: PgServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh database: ours, unless the test asks for the predecessor's."""
    ours = getattr(request, "param", "ours") == "ours"
    url = pg_server.new_database(pg_server.contract_template() if ours else predecessor_template(pg_server))
    yield url
    pg_server.drop_database(url)


@pytest.fixture
def admin(database: str) -> Iterator[Admin]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def task_queue(database: str) -> Iterator[PostgresQueue]:
    queue = PostgresQueue(database)
    yield queue
    queue.close()


@pytest.mark.parametrize("database", ["ours", "predecessor"], indirect=True)
class TestContract(QueueContract):
    """The contract, on both schemas."""
