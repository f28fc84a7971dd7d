"""The predecessor's tables through PostgREST, for whom a service key opens them: what its Edge Functions cannot tell,
and the few changes that are safer with a condition. None of it needs a function of ours in the database.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from wan2gp.supervisor.queue import AccessDenied, FunctionsMissing, QueueError, QueueRefused, QueueUnavailable
from wan2gp.supervisor.rest_errors import Verdict, judge_answer, judge_transport, not_ours
from wan2gp.supervisor.rest_patience import Patience
from wan2gp.supervisor.sqlstates import NO_PERMISSION
from wan2gp.supervisor.supabase_project import SupabaseProject, retry_after_s
from wan2gp.tasks import TaskStatus

CALL_S = 15.0
"""Within which a call ends, with its repeats, seconds."""
SILENCE_S = 8.0
BEAT_S = 4.0
"""For each thing that a heartbeat does beside its looks: what waits holds up the word of cancellations, seconds."""
BEATS_AGAIN_S = 300.0
"""After finding no function to tell it by, before it is looked for again, seconds."""
DEPTH_MAX = 50
"""How far failures of dependencies are followed."""
RUNNING = TaskStatus.IN_PROGRESS.value
QUEUED = TaskStatus.QUEUED.value
HEARTBEAT = "func_worker_heartbeat_with_logs"
WORKERS_MAX = 200
_ROW = "id,status::text,worker_id,output_location"
Row = dict[str, Any]


class EdgeRows:
    """Safe to use from several threads. Raises the errors of :mod:`wan2gp.supervisor.queue`."""

    def __init__(
        self,
        project: SupabaseProject,
        *,
        call_s: float = CALL_S,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """``chance(low, high)``: the part of chance in pauses before repeats."""
        self._project = project
        self._call_s = call_s
        self._host = urlsplit(project.url).netloc
        self._clock = clock
        self._chance = chance
        self._closed = threading.Event()
        self._beats_at = float("-inf")
        self._status_said = False
        self._has_message = False

    def close(self) -> None:
        """Ends repeats."""
        self._closed.set()

    def open(self) -> bool:
        """Whether the key opens the table. Raises :class:`QueueUnavailable` when that cannot be told now."""
        if not self._can_read(_ROW):
            return False
        self._has_message = self._can_read("error_message")
        return True

    def _can_read(self, columns: str) -> bool:
        try:
            self._rows("GET", "tasks", {"select": columns, "limit": "1"})
        except QueueUnavailable:
            raise
        except QueueError:
            return False
        return True

    def states(self, ids: Sequence[str]) -> dict[str, Row]:
        """Status, worker and output of these tasks, by id; absent: no such row."""
        found = self._rows("GET", "tasks", {"select": _ROW, "id": f"in.({','.join(ids)})"}) if ids else []
        return {str(row["id"]): row for row in found}

    def running(self, worker_id: str) -> list[Row]:
        """What is In Progress under this worker's name, without params, oldest first."""
        wanted = {"status": f"eq.{RUNNING}", "worker_id": f"eq.{worker_id}"}
        return self._rows(
            "GET", "tasks", {"select": "id,task_type,project_id,user_id", "order": "created_at", **wanted}
        )

    def params(self, task_id: str) -> bytes:
        """The JSON text of a row's params: only its reader finds out whether Python can hold it."""
        query = {"select": "params", "id": f"eq.{task_id}"}
        response = self._send("GET", "tasks", query, None, {"Accept": "application/vnd.pgrst.object+json"})
        return response.content

    def put_back(self, task_id: str, worker_id: str, *, nameless: bool = False, deadline: float | None = None) -> bool:
        """Queue a task again that is In Progress under our name, or ``nameless``. False when it is not so."""
        values = {"status": QUEUED, "worker_id": None, "generation_started_at": None}
        return self.end(task_id, worker_id, (RUNNING,), values, nameless=nameless, deadline=deadline)

    def end(
        self,
        task_id: str,
        worker_id: str,
        before: Sequence[str],
        values: Mapping[str, Any],
        *,
        nameless: bool = False,
        deadline: float | None = None,
    ) -> bool:
        """Change a row that is ours: it has one of these statuses, and our name, or if ``nameless`` none.

        An ``error_message`` is left out where the table has no such column. False when it is not so.
        """
        given = {**values, "updated_at": "now"}
        where = {"id": f"eq.{task_id}", "status": _any_of(before)}
        # One condition after the other: `or` in a change fails in some versions of PostgREST.
        names = (f"eq.{worker_id}", *(("is.null",) if nameless else ()))
        return any(self._change({**where, "worker_id": name}, given, deadline) for name in names)

    def fail_dependants(self, task_id: str) -> None:
        """Fail what is queued and waits for a task that has failed, and what waits for that."""
        failed = [task_id]
        for _ in range(DEPTH_MAX):
            failed = [waiting for one in failed for waiting in self._fail_waiting(one)]

    def _fail_waiting(self, task_id: str) -> list[str]:
        why = f"task.dependency_failed: the task {task_id}, which this one waits for, failed"
        values = {
            "status": TaskStatus.FAILED.value,
            "output_location": why,
            "error_message": why,
            "updated_at": "now",
        }
        where = {"dependant_on": f"eq.{task_id}", "status": f"eq.{QUEUED}"}
        return [str(row["id"]) for row in self._change(where, values)]

    def touch(self, ids: Sequence[str], worker_id: str) -> None:
        """Say that these are worked at: the pod scaler queues again what nobody touched for half an hour."""
        where = {"id": f"in.({','.join(ids)})", "status": f"eq.{RUNNING}", "worker_id": f"eq.{worker_id}"}
        self._change(where, {"updated_at": "now"}, time.monotonic() + BEAT_S)

    def has_generation(self, storage_path: str) -> bool:
        """Whether the app knows the file as a generation of somebody's."""
        try:
            query = {"select": "id", "location": f"like.*{storage_path}", "limit": "1"}
            return bool(self._rows("GET", "generations", query))
        except FunctionsMissing:
            return False  # an app without generations makes none twice

    def row(self, task_id: str) -> Row | None:
        found = self._rows("GET", "tasks", {"select": "*", "id": f"eq.{task_id}"})
        return found[0] if found else None

    def rows(self, status: str | None, task_type: str | None, limit: int) -> list[Row]:
        """The newest, without params."""
        query = {"select": "*", "order": "created_at.desc,id", "limit": str(max(limit, 0))}
        if status is not None:
            query["status"] = f"eq.{status}"
        if task_type is not None:
            query["task_type"] = f"eq.{task_type}"
        return [
            {name: value for name, value in row.items() if name != "params"}
            for row in self._rows("GET", "tasks", query)
        ]

    def insert(self, row: Mapping[str, Any]) -> None:
        """Insert a task; one with this id is taken for the same."""
        headers = {"Prefer": "return=minimal,resolution=ignore-duplicates"}
        self._send("POST", "tasks", {}, row, headers)

    def change(self, task_id: str, before: Sequence[str], values: Mapping[str, Any]) -> bool:
        """Change a row that has one of these statuses. False when it has not."""
        return bool(self._change({"id": f"eq.{task_id}", "status": _any_of(before)}, values))

    def workers(self) -> list[Row]:
        """The workers' table, those heard last first; empty where there is none."""
        query = {"select": "*", "order": "last_heartbeat.desc.nullslast", "limit": str(WORKERS_MAX)}
        try:
            return self._rows("GET", "workers", query)
        except (FunctionsMissing, QueueRefused):
            return []

    def beat(self, worker_id: str, metadata: Mapping[str, Any]) -> None:
        """Tell the pod scaler that we live, within :data:`BEAT_S`. Does nothing for a while where it cannot be told.

        The status is said once: said always it would undo what the scaler decided of us.
        """
        if self._clock() < self._beats_at:
            return
        deadline = time.monotonic() + BEAT_S
        body: Row = {"worker_id_param": worker_id, "logs_param": []}
        body |= {f"{name}_param": metadata.get(name) or 0 for name in ("vram_total_mb", "vram_used_mb")}
        for status in ({}, {"status_param": "active"}) if self._status_said else ({"status_param": "active"}, {}):
            try:
                self._send("POST", f"rpc/{HEARTBEAT}", {}, {**body, **status}, deadline=deadline)
                self._status_said = True
                return
            except FunctionsMissing:
                continue  # deployed versions differ in whether they know, or want, the status
            except QueueRefused as refusal:
                if isinstance(refusal, AccessDenied) and refusal.code != NO_PERMISSION:
                    raise  # the key's trouble, not the function's
                break
        self._beats_at = self._clock() + BEATS_AGAIN_S

    def _change(self, where: Mapping[str, str], values: Mapping[str, Any], deadline: float | None = None) -> list[Row]:
        query = {"select": "id", **where}
        given = {name: value for name, value in values.items() if name != "error_message" or self._has_message}
        return self._read(self._send("PATCH", "tasks", query, given, {"Prefer": "return=representation"}, deadline))

    def _rows(self, method: str, path: str, query: Mapping[str, str]) -> list[Row]:
        return self._read(self._send(method, path, query))

    def _read(self, response: httpx.Response) -> list[Row]:
        found: Any = None
        try:
            found = response.json()
        except (ValueError, RecursionError) as error:
            if "json" in response.headers.get("Content-Type", "") and response.content.strip():
                raise QueueRefused(f"a row cannot be read: {error}") from None
        if isinstance(found, list) and all(isinstance(row, dict) for row in found):
            return found
        raise not_ours(self._host, response.status_code, "no list of rows").error

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        deadline: float | None = None,
    ) -> httpx.Response:
        """Repeated until ``deadline``, or within the time of a call; everything here may be done twice."""
        patience = Patience(deadline or time.monotonic() + self._call_s, self._chance)
        content = None if body is None else json.dumps(body).encode()
        while True:
            outcome, asked = self._try(method, path, query, content, headers or {}, patience.deadline)
            if isinstance(outcome, httpx.Response):
                return outcome
            pause = patience.pause(outcome.again, time.monotonic(), asked)
            if pause is None or self._closed.wait(pause):
                raise _lasting(outcome.error)

    def _try(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        content: bytes | None,
        headers: Mapping[str, str],
        deadline: float,
    ) -> tuple[httpx.Response | Verdict, float | None]:
        ours = {**self._project.headers(), "Content-Type": "application/json", **headers}
        try:
            with self._project.watch(deadline, SILENCE_S):
                response = self._project.http.request(
                    method, f"{self._project.rest_url}/{path}", params=dict(query), content=content, headers=ours
                )
        except (httpx.HTTPError, RuntimeError) as error:
            return judge_transport(self._host, error), None
        if response.is_success:
            return response, None
        code, message = _told(response)
        asked = retry_after_s(response.headers.get("Retry-After"))
        return judge_answer(self._host, code, message, response.status_code, response.headers.get("Location")), asked


def _any_of(statuses: Sequence[str]) -> str:
    quoted = ",".join(f'"{status}"' for status in statuses)
    return f"in.({quoted})"


def _lasting(error: QueueError) -> QueueError:
    """Nobody takes a task from us by the clock here: no outage endangers our work."""
    return QueueUnavailable(str(error), server_down=True) if isinstance(error, QueueUnavailable) else error


def _told(response: httpx.Response) -> tuple[str | None, str | None]:
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(body, dict):
        return None, None
    code, message = body.get("code"), body.get("message")
    return (code if isinstance(code, str) else None), (message if isinstance(message, str) else None)
