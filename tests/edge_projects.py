"""Projects of the predecessor that nobody migrated, and what tests of the edge backend do with them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
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
from wan2gp.supervisor.edge_calls import EdgeCalls
from wan2gp.supervisor.edge_queue import EdgeQueue
from wan2gp.supervisor.supabase_project import SupabaseProject

BUCKET = "image_uploads"
WORKER = "gpu-1"
PROJECT = "aaaaaaaa-0000-4000-8000-000000000001"
USER = "aaaaaaaa-0000-4000-8000-000000000002"
"""Whose it is; the personal access token of :class:`EdgeProject` is theirs."""
Row = dict[str, Any]


@dataclass
class EdgeProject:
    """One project, its stand-ins, and its rows."""

    stack: Stack
    pat: str
    opened: list[SupabaseProject]

    @property
    def functions(self) -> EdgeFunctions:
        return self.stack.functions

    def project(self, key: str | None = None) -> SupabaseProject:
        """A worker's view of it, closed at the test's end."""
        project = SupabaseProject(self.stack.url, Secret(key or self.stack.key))
        self.opened.append(project)
        return project

    def queue(self, key: str | None = None, *, checked: bool = True) -> EdgeQueue:
        """By the service key, or another one; with short pauses."""
        project = self.project(key)
        queue = EdgeQueue(project, WORKER, calls=EdgeCalls(project, pause_s=0.02), looks_s=(0.02, 0.05, 0.1))
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


@pytest.fixture(scope="session")
def _lasting_edge(_pg_session: PgServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LastingStack]:
    _pg_session.start_server()
    template = _pg_session.supabase_untouched_template()
    stack = LastingStack(_pg_session, template, tmp_path_factory.mktemp("edge"))
    yield stack
    stack.close()


@pytest.fixture
def edge(pg_server: PgServer, _lasting_edge: LastingStack) -> Iterator[EdgeProject]:
    """The predecessor's tables, without ours, behind its functions."""
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


Keyed = Callable[[EdgeProject], str]
KEYS: dict[str, Keyed] = {"service": lambda edge: edge.stack.key, "pat": lambda edge: edge.pat}
