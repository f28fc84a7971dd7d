"""Projects of the predecessor that nobody migrated, and what tests of the edge backend do with them."""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row

from tests.conftest_db import PgServer
from tests.edge_functions import EdgeFaults, EdgeFunctions
from tests.lasting_stacks import LastingStack
from tests.supabase_stack import Stack
from wan2gp.config_options import Secret
from wan2gp.supervisor import edge_claims
from wan2gp.supervisor.edge_calls import EdgeCalls
from wan2gp.supervisor.edge_queue import EdgeQueue
from wan2gp.supervisor.edge_rows import EdgeRows
from wan2gp.supervisor.queue import ClaimedTask
from wan2gp.supervisor.supabase_project import SupabaseProject

BUCKET = "image_uploads"
WORKER = "gpu-1"
PROJECT = "aaaaaaaa-0000-4000-8000-000000000001"
USER = "aaaaaaaa-0000-4000-8000-000000000002"
"""Whose it is; the personal access token of :class:`EdgeProject` is theirs."""
Row = dict[str, Any]


class Clock:
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Heard(list[tuple[str, dict[str, Any]]]):
    """Facts, as they were stated."""

    def __call__(self, name: str, /, **fields: Any) -> None:
        self.append((name, fields))

    def bind(self, **who: str) -> Heard:
        return self

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self]


@dataclass
class EdgeProject:
    """One project, its stand-ins, and its rows."""

    stack: Stack
    pat: str
    opened: list[SupabaseProject]

    @property
    def functions(self) -> EdgeFunctions:
        return self.stack.functions

    def project(self, key: str = "service") -> SupabaseProject:
        """A worker's view of it, closed at the test's end."""
        given = {"service": self.stack.key, "pat": self.pat}.get(key, key)
        project = SupabaseProject(self.stack.url, Secret(given))
        self.opened.append(project)
        return project

    def queue(self, key: str = "service", *, checked: bool = True, clock: Clock | None = None) -> EdgeQueue:
        """By the key of a name (``service``, ``pat``), or one that is given; with short pauses."""
        project = self.project(key)
        calls = EdgeCalls(project, pause_s=0.02)
        ticks = clock or time.monotonic
        rows = EdgeRows(project, clock=ticks, chance=lambda low, high: low / 10)
        queue = EdgeQueue(project, WORKER, calls=calls, rows=rows, looks_s=(0.01, 0.03, 0.06), clock=ticks)
        if checked:
            queue.check()
        return queue

    def sql(self, statement: str, *values: Any) -> list[Row]:
        with psycopg.connect(self.stack.database, autocommit=True, row_factory=dict_row) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def insert(self, task_type: str = "comfy", params: Any = None, **columns: Any) -> str:
        """A queued task of the user's project; returns its id."""
        given = {
            "id": str(uuid.uuid4()),
            "task_type": task_type,
            "params": json.dumps(params or {}),
            "status": "Queued",
            "project_id": PROJECT,
            "user_id": USER,
            **columns,
        }
        names, marks = ", ".join(given), ", ".join(["%s"] * len(given))
        self.sql(f"INSERT INTO tasks ({names}) VALUES ({marks})", *given.values())
        return str(given["id"])

    def row(self, task_id: str) -> Row:
        return self.sql("SELECT *, status::text FROM tasks WHERE id = %s", task_id)[0]

    def statuses(self, *ids: str) -> list[str]:
        return [self.row(task_id)["status"] for task_id in ids]

    def generations(self, task_id: str) -> list[Row]:
        return self.sql("SELECT * FROM generations WHERE to_jsonb(%s::text) = ANY (tasks)", task_id)

    def ask(self, name: str, body: Any = None, *, token: str | None = None, method: str = "POST") -> httpx.Response:
        """A bare request, as any client may make it."""
        headers = {"Authorization": f"Bearer {token or self.stack.key}"} if token != "" else {}
        url = f"{self.stack.url}/functions/v1/{name}"
        content = body if isinstance(body, (str, bytes)) else json.dumps(body)
        headers["Content-Type"] = "application/json"
        return httpx.request(method, url, headers=headers, content=content, timeout=30)


TYPES = ("comfy", "t2v")
_claims = itertools.count()


def claim(queue: EdgeQueue, types: Sequence[str] = TYPES) -> ClaimedTask | None:
    """What one claim gives."""
    reply = queue.claim(f"claim-{next(_claims)}", WORKER, types, 1, 90.0)
    return reply.tasks[0] if reply.tasks else None


def claimed(queue: EdgeQueue, types: Sequence[str] = TYPES) -> ClaimedTask:
    """One that there must be."""
    task = claim(queue, types)
    assert task is not None
    return task


@pytest.fixture(scope="session")
def _lasting_edge(_pg_session: PgServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LastingStack]:
    _pg_session.start_server()
    template = _pg_session.supabase_untouched_template()
    stack = LastingStack(_pg_session, template, tmp_path_factory.mktemp("edge"))
    yield stack
    stack.close()


@pytest.fixture
def edge(pg_server: PgServer, _lasting_edge: LastingStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[EdgeProject]:
    """The predecessor's tables, without ours, behind its functions; races are run again sooner than they are else."""
    monkeypatch.setattr(edge_claims, "RACE_PAUSE_S", 0.02)
    with _lasting_edge.lend() as stack:
        stack.functions.faults = EdgeFaults()
        stack.functions.calls.clear()
        project = EdgeProject(stack, f"pat_{uuid.uuid4().hex}", [])
        project.sql("INSERT INTO user_api_tokens VALUES (%s, %s)", project.pat, USER)
        yield project
        for one in project.opened:
            one.close()
        stack.front.faults.clear()
        project.sql("DELETE FROM generations WHERE params IS NOT NULL")
