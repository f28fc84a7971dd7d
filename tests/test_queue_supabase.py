"""The queue behind a Supabase project: the contract through the real PostgREST, on an empty schema and on the
predecessor's."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.contract_bench import Admin
from tests.queue_contract import QueueContract
from tests.supabase_stack import Stack
from wan2gp.config_options import Secret
from wan2gp.supervisor.supabase_project import SupabaseProject
from wan2gp.supervisor.supabase_queue import SupabaseQueue


@pytest.fixture
def database(lasting_stack: Stack) -> str:
    return lasting_stack.database


@pytest.fixture
def admin(database: str) -> Iterator[Admin]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def task_queue(lasting_stack: Stack) -> Iterator[SupabaseQueue]:
    project = SupabaseProject(lasting_stack.url, Secret(lasting_stack.key))
    queue = SupabaseQueue(project)
    yield queue
    queue.close()
    project.close()


@pytest.mark.parametrize("lasting_stack", ["ours", pytest.param("predecessor", marks=pytest.mark.long)], indirect=True)
class TestContract(QueueContract):
    """The contract, on both schemas."""
