"""The predecessor's `complete_task` on a real database, with everything that goes wrong with it: it says yes without a
deed, fails after the deed, breaks the connection in the middle, and makes a second generation when called again."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import psycopg

Deed = Callable[["CompletingFunction", dict[str, Any]], "tuple[int, dict[str, Any]] | None"]
"""What one call does; returns status and body, or None to break the connection."""


class CompletingFunction:
    """Serves ``url``; ``deeds`` are what the next calls do, after them each call works as it should."""

    def __init__(self, database: str, key: str) -> None:
        self.database = database
        self.key = key
        self.deeds: list[Deed] = []
        self.missing = False
        self.calls: list[dict[str, Any]] = []
        self.behind: list[dict[str, Any]] = []
        """Calls that go on although their connection is broken; :meth:`go_on` ends them."""
        function = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status = 404 if function.missing else 405 if self.authorised() else 401
                self.answer(status, {"message": "Function not found"} if function.missing else {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                function.calls.append(body)
                assert self.path == "/functions/v1/complete_task"
                if not self.authorised():
                    return self.answer(401, {"error": f"no such token: {self.headers['Authorization']}"})
                deed = function.deeds.pop(0) if function.deeds else works
                said = deed(function, body)
                if said is not None:
                    return self.answer(*said)
                self.close_connection = True
                return None

            def authorised(self) -> bool:
                return bool(self.headers["Authorization"] == f"Bearer {function.key}")

            def answer(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                if "retry_after" in body:
                    self.send_header("Retry-After", str(body["retry_after"]))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def serving(self) -> Iterator[CompletingFunction]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def go_on(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                works(self, self.behind.pop())

    def make_generation(self, body: dict[str, Any]) -> None:
        self._execute(
            "INSERT INTO generations (tasks, project_id, location)"
            " SELECT ARRAY[to_jsonb(id)], project_id, %s FROM tasks WHERE id = %s",
            body,
        )

    def complete_row(self, body: dict[str, Any]) -> None:
        self._execute(
            "UPDATE tasks SET status = 'Complete', output_location = %s, generation_processed_at = now()"
            " WHERE id = %s AND status = 'In Progress'",
            body,
        )

    def generations(self, task_id: str) -> int:
        with psycopg.connect(self.database) as connection:
            query = "SELECT count(*) FROM generations WHERE to_jsonb(%s::text) = ANY (tasks)"
            return int((connection.execute(query, (task_id,)).fetchone() or [0])[0])

    def _execute(self, statement: str, body: dict[str, Any]) -> None:
        with psycopg.connect(self.database) as connection:
            connection.execute(statement.encode(), (public_url(body["storage_path"]), body["task_id"]))


def public_url(storage_path: str) -> str:
    return f"https://x/storage/v1/object/public/image_uploads/{quote(storage_path)}"


YES = (200, {"success": True})


def works(function: CompletingFunction, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    function.make_generation(body)
    function.complete_row(body)
    return YES


def fails_after_all(function: CompletingFunction, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    works(function, body)
    return 500, {"error": "billing failed"}


def breaks_after_all(function: CompletingFunction, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    works(function, body)
    return None


def dies_before_the_row(function: CompletingFunction, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    function.make_generation(body)
    return 500, {"error": "update failed"}


def says_yes_before_the_row(function: CompletingFunction, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    function.make_generation(body)
    return YES


def only_says_yes(function: CompletingFunction, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    return YES


def goes_on_behind_a_broken_connection(
    function: CompletingFunction, body: dict[str, Any]
) -> tuple[int, dict[str, Any]] | None:
    function.behind.append(body)
    return None


def breaks_without_a_deed(function: CompletingFunction, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    return None


def answers(status: int, **body: Any) -> Deed:
    return lambda function, request: (status, body)
