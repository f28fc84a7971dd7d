"""The queue behind a Supabase project: the contract through the real PostgREST, on an empty schema and on the
predecessor's."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.conftest_db import PgServer
from tests.contract_bench import Admin
from tests.lasting_stacks import LastingStack, lasting_stacks
from tests.queue_contract import QueueContract
from tests.supabase_stack import Stack
from wan2gp.config_options import Secret
from wan2gp.supervisor.supabase_project import SupabaseProject
from wan2gp.supervisor.supabase_queue import SupabaseQueue


@pytest.fixture(scope="module")
def stacks(_pg_session: PgServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LastingStack]]:
    _pg_session.start_server()
    stacks, close = lasting_stacks(_pg_session, tmp_path_factory.mktemp("stacks"))
    yield stacks
    close()


@pytest.fixture
def stack(pg_server: PgServer, stacks: dict[str, LastingStack], request: pytest.FixtureRequest) -> Iterator[Stack]:
    with stacks[request.param].lend() as stack:
        yield stack


@pytest.fixture
def database(stack: Stack) -> str:
    return stack.database


@pytest.fixture
def admin(database: str) -> Iterator[Admin]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def task_queue(stack: Stack) -> Iterator[SupabaseQueue]:
    project = SupabaseProject(stack.url, Secret(stack.key))
    queue = SupabaseQueue(project)
    yield queue
    queue.close()
    project.close()


@pytest.mark.parametrize("stack", ["ours", "predecessor"], indirect=True)
class TestContract(QueueContract):
    """The contract, on both schemas."""
