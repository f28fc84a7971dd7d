"""A stand-in of the predecessor's Edge Functions on a real database, with their quirks and their faults.

It does what their last visible sources do, in their order: reads and updates are separate statements, a lost race is
204, a row that does not change is a success. :class:`EdgeFaults` provokes what is rare. Base64 uploads are left out.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from aiohttp import web
from psycopg.rows import dict_row

from tests.storage_stand_in import StorageStandIn

PREFIX = "/functions/v1/"
BUCKET = "image_uploads"
SERVICE = "service"
RIVAL = "gpu-rival"
"""The worker that wins the races that a test orders to be lost."""
SIGNED_S = 7200
STATUSES = ("Queued", "In Progress", "Complete", "Failed")
"""What update-task-status takes."""
Row = dict[str, Any]
Connection = psycopg.AsyncConnection[Row]


@dataclass
class EdgeFaults:
    """Set from a test at any time. Numbers count down, one for each call that meets them."""

    lost_races: int = 0
    """Claims that choose a row, see :data:`RIVAL` take it, and answer 204."""
    before: dict[str, list[int]] = field(default_factory=dict)
    """By function: statuses that the next calls answer without doing anything."""
    after: dict[str, list[int]] = field(default_factory=dict)
    """By function: statuses that the next calls answer after all is done."""
    without_row: int = 0
    """complete_task: makes its generation, changes no row, says 200."""
    without_all: int = 0
    """complete_task: does nothing at all, says 200."""
    dies_before_row: int = 0
    """complete_task: makes its generation, then fails: 500."""
    missing: set[str] = field(default_factory=set)
    """Functions that are not deployed."""
    counts_details: bool = True
    """Whether task-counts lists tasks beside the totals."""
    counts_say_nothing: bool = False
    """task-counts says that nothing is queued, whatever is."""
    started_at: bool = False
    """Claims set generation_started_at, as the deployed version does."""


@dataclass(frozen=True)
class Call:
    """One request and its answer's status. ``status`` is that of the function, whatever was answered in its place."""

    name: str
    body: Row
    status: int


class _Says(Exception):
    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True)
class _Caller:
    user: str | None
    """None: the service."""


class EdgeFunctions:
    """``accepts(token)``: ``"service"``, a user's id, or None. ``base_url()``: the project's address."""

    def __init__(
        self,
        database_url: str,
        accepts: Callable[[str], str | None],
        storage: StorageStandIn,
        base_url: Callable[[], str],
    ) -> None:
        self.faults = EdgeFaults()
        self.calls: list[Call] = []
        self._database = database_url
        self._accepts = accepts
        self._storage = storage
        self._base_url = base_url
        self._functions: dict[str, Callable[[Connection, _Caller, Row], Awaitable[web.Response]]] = {
            "task-counts": self._task_counts,
            "claim-next-task": self._claim,
            "create-task": self._create,
            "update-task-status": self._update,
            "generate-upload-url": self._upload_url,
            "complete_task": self._complete,
            "get-predecessor-output": self._predecessor_output,
        }

    def called(self, name: str) -> list[Row]:
        """The bodies that a function got."""
        return [call.body for call in list(self.calls) if call.name == name]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        name = request.path.removeprefix(PREFIX)
        if name not in self._functions or name in self.faults.missing:
            words = {"code": "NOT_FOUND", "message": "Requested function was not found"}
            return web.json_response(words, status=404)
        if request.method == "OPTIONS":
            return web.Response(text="ok")
        if request.method != "POST":
            return web.Response(status=405, text="Method not allowed")
        before = self.faults.before.get(name)
        if before:
            return web.Response(status=before.pop(0), text="Internal Server Error")
        answer, body = await self._answer(name, request)
        self.calls.append(Call(name, body, answer.status))
        after = self.faults.after.get(name)
        return web.Response(status=after.pop(0), text="Internal Server Error") if after else answer

    async def _answer(self, name: str, request: web.Request) -> tuple[web.Response, Row]:
        body: Row = {}
        try:
            body = await _parsed(request, name)
            if name == "complete_task":
                _check_path_shape(body)  # theirs looks at the path before it looks at the caller
            caller = await self._caller(request)
            async with await self._connect() as connection:
                if name == "complete_task":
                    await self._check_path_task(connection, body)
                return await self._functions[name](connection, caller, body), body
        except _Says as said:
            return web.json_response({"error": str(said)}, status=said.status), body
        except psycopg.Error as error:
            return web.json_response({"error": f"Database error: {error}"}, status=500), body

    async def _connect(self) -> Connection:
        return await psycopg.AsyncConnection.connect(self._database, autocommit=True, row_factory=dict_row)

    async def _caller(self, request: web.Request) -> _Caller:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind != "Bearer" or not token:
            raise _Says(401, "Missing or invalid Authorization header")
        holder = self._accepts(token)
        if holder == SERVICE or _claims_to_be_service(token):
            return _Caller(None)
        if holder is None:
            async with await self._connect() as connection:
                found = await _one(connection, "SELECT user_id FROM user_api_tokens WHERE token = %s", token)
            holder = None if found is None else str(found["user_id"])
        if holder is None:
            raise _Says(403, "Invalid or expired token. Please provide a valid PAT or service role key")
        return _Caller(holder)

    # -- the functions -----------------------------------------------------------------------------------------------

    async def _task_counts(self, connection: Connection, caller: _Caller, body: Row) -> web.Response:
        rows = await _own(connection, caller, "t.status IN ('Queued', 'In Progress')")
        queued = [row for row in rows if row["status"] == "Queued"]
        if self.faults.counts_say_nothing:
            queued = []
        active = [row for row in rows if row["status"] == "In Progress"]
        ready = [row for row in queued if row["dependency"] in (None, "Complete")]
        answer: Row = {
            "totals": {
                "queued_only": len(queued),
                "active_only": len(active),
                "queued_plus_active": len(queued) + len(active),
                "eligible_queued": len(ready),
            },
            "global_task_breakdown": {
                "in_progress_total": len(active),
                "in_progress_cloud": sum(row["worker_id"] is not None for row in active),
                "in_progress_local": sum(row["worker_id"] is None for row in active),
                "orchestrator_tasks": sum("orchestrator" in row["task_type"] for row in active),
            },
            "users": _users(queued, active),
        }
        if self.faults.counts_details:
            answer["queued_tasks"] = [_listed(row) for row in queued]
            if body.get("include_active"):
                answer["active_tasks"] = [
                    {**_listed(row), "worker_id": row["worker_id"], "started_at": _time(row["generation_started_at"])}
                    for row in active
                ]
        return web.json_response(answer)

    async def _claim(self, connection: Connection, caller: _Caller, body: Row) -> web.Response:
        try:
            return await self._claim_first(connection, caller, body)
        except psycopg.Error:
            if caller.user is None:
                raise
            return web.Response(status=204)  # theirs swallows it, for users

    async def _claim_first(self, connection: Connection, caller: _Caller, body: Row) -> web.Response:
        rows = await _own(connection, caller, "t.status = 'Queued'")
        row = next((row for row in rows if row["dependency"] in (None, "Complete")), None)
        if row is None:
            return web.Response(status=204)
        if self.faults.lost_races:
            self.faults.lost_races -= 1
            await _take(connection, row["id"], RIVAL, started=True)
        worker = body.get("worker_id") if caller.user is None else None
        taken = await _take(connection, row["id"], worker, started=self.faults.started_at)
        if not taken:
            return web.Response(status=204)
        given = ("params", "task_type")
        project = row["project_id"] and str(row["project_id"])
        return web.json_response({"task_id": str(row["id"]), **{key: row[key] for key in given}, "project_id": project})

    async def _create(self, connection: Connection, caller: _Caller, body: Row) -> web.Response:
        for name in ("task_id", "params", "task_type", "project_id"):
            if not body.get(name):
                raise _Says(400, "task_id, params, task_type, project_id required")
        project = await _one(connection, "SELECT user_id FROM projects WHERE id = %s", body["project_id"])
        if project is None:
            raise _Says(404, "Project not found")
        if caller.user is not None and str(project["user_id"]) != caller.user:
            raise _Says(403, "Forbidden: You don't own this project")
        await connection.execute(
            "INSERT INTO tasks (id, params, task_type, project_id, user_id, dependant_on, status)"
            " VALUES (%s, %s, %s, %s, %s, %s, 'Queued')",
            (
                body["task_id"],
                json.dumps(body["params"]),
                body["task_type"],
                body["project_id"],
                project["user_id"],
                body.get("dependant_on"),
            ),
        )
        return web.Response(text="Task queued")

    async def _update(self, connection: Connection, caller: _Caller, body: Row) -> web.Response:
        status = body.get("status")
        if not body.get("task_id") or not status:
            raise _Says(400, "task_id and status required")
        if status not in STATUSES:
            raise _Says(400, f"Invalid status. Must be one of: {', '.join(STATUSES)}")
        if status == "In Progress" and not (body.get("worker_id") and body.get("claimed_at")):
            raise _Says(400, "In Progress requires worker_id and claimed_at")
        await _owned(connection, caller, body["task_id"])
        changes: Row = {"status": status}
        changes |= {
            name: body[name] for name in ("output_location", "worker_id", "claimed_at") if body.get(name) is not None
        }
        names = ", ".join(f"{name} = %s" for name in changes)
        started = ", generation_started_at = now()" if status == "In Progress" else ""
        await connection.execute(
            f"UPDATE tasks SET {names}, updated_at = now(){started} WHERE id = %s".encode(),
            (*changes.values(), body["task_id"]),
        )
        said = f"Task status updated to '{status}'"
        return web.json_response({"success": True, "task_id": body["task_id"], "status": status, "message": said})

    async def _upload_url(self, connection: Connection, caller: _Caller, body: Row) -> web.Response:
        for name in ("task_id", "filename", "content_type"):
            if not body.get(name):
                raise _Says(400, "task_id, filename, and content_type required")
        task = await _owned(connection, caller, body["task_id"])
        if task["user_id"] is None:
            raise _Says(400, "Task has no associated user")
        path = f"{task['user_id']}/tasks/{body['task_id']}/{body['filename']}"
        answer = self._signed(path, "")
        if body.get("generate_thumbnail_url"):
            answer |= self._signed(
                f"{task['user_id']}/tasks/{body['task_id']}/thumbnails/{uuid.uuid4()}.jpg", "thumbnail_"
            )
        return web.json_response(answer)

    def _signed(self, path: str, prefix: str) -> Row:
        if path in self._storage.paths(BUCKET):
            raise _Says(500, "Failed to create signed upload URL: The resource already exists")
        token = self._storage.tokens.sign(f"{BUCKET}/{path}", SIGNED_S, upsert=False)
        url = f"{self._base_url()}/storage/v1/object/upload/sign/{BUCKET}/{path}?token={token}"
        return {f"{prefix}upload_url": url, f"{prefix}storage_path": path, f"{prefix}token": token, "expires_at": ""}

    async def _complete(self, connection: Connection, caller: _Caller, body: Row) -> web.Response:
        task = await _owned(connection, caller, body["task_id"])
        if task["user_id"] is None:
            raise _Says(400, "Task has no associated user")
        url, thumbnail = self._public(body["storage_path"]), None
        answer = {"success": True, "public_url": url, "thumbnail_url": None, "message": "Task completed"}
        if self._meets("without_all"):
            return web.json_response(answer)
        if body.get("thumbnail_storage_path"):
            answer["thumbnail_url"] = thumbnail = self._public(body["thumbnail_storage_path"])
            await connection.execute(
                "UPDATE tasks SET params = params || jsonb_build_object('thumbnail_url', %s::text) WHERE id = %s",
                (thumbnail, body["task_id"]),
            )
        if task["project_id"] is not None:
            await connection.execute(
                "INSERT INTO generations (tasks, params, location, type, project_id, thumbnail_url)"
                " VALUES (ARRAY[to_jsonb(%s::text)], %s, %s, %s, %s, %s)",
                (body["task_id"], json.dumps(task["params"]), url, _kind(url), task["project_id"], thumbnail),
            )
        if self._meets("dies_before_row"):
            raise _Says(500, "Failed to update the task")
        if not self._meets("without_row"):
            # No row is no error to it.
            await connection.execute(
                "UPDATE tasks SET status = 'Complete', output_location = %s, generation_processed_at = now()"
                " WHERE id = %s AND status = 'In Progress'",
                (url, body["task_id"]),
            )
        return web.json_response(answer)

    async def _predecessor_output(self, connection: Connection, caller: _Caller, body: Row) -> web.Response:
        task = await _owned(connection, caller, body.get("task_id"))
        if task["dependant_on"] is None:
            return web.json_response(None)
        found = await _one(connection, "SELECT output_location FROM tasks WHERE id = %s", task["dependant_on"])
        output = None if found is None else found["output_location"]
        return web.json_response({"predecessor_id": str(task["dependant_on"]), "output_location": output})

    def _public(self, path: str) -> str:
        return f"{self._base_url()}/storage/v1/object/public/{BUCKET}/{path}"

    def _meets(self, fault: str) -> bool:
        left = getattr(self.faults, fault)
        if left:
            setattr(self.faults, fault, left - 1)
        return bool(left)

    async def _check_path_task(self, connection: Connection, body: Row) -> None:
        parts = body["storage_path"].split("/")
        if parts[1] != "tasks" or parts[2] == body["task_id"]:
            return
        task = await _one(connection, "SELECT task_type FROM tasks WHERE id = %s", body["task_id"])
        if task is None or "orchestrator" not in task["task_type"]:
            raise _Says(403, "storage_path does not match task_id. Files must be uploaded for the correct task.")


async def _parsed(request: web.Request, name: str) -> Row:
    if name == "complete_task" and request.content_type != "application/json":
        raise _Says(400, "Multipart upload is not supported. Use JSON")
    try:
        body = json.loads(await request.text() or "null")
    except ValueError:
        raise _Says(400, "Invalid JSON body") from None
    return body if isinstance(body, dict) else {}


def _check_path_shape(body: Row) -> None:
    if not body.get("task_id") or not body.get("storage_path"):
        raise _Says(400, "task_id and (file_data and filename) or storage_path required")
    if len(body["storage_path"].split("/")) < 2:
        raise _Says(400, "Invalid storage_path format")


def _claims_to_be_service(token: str) -> bool:
    """Theirs reads the role in a JWT and never checks who signed it."""
    try:
        middle = token.split(".")[1] if token.count(".") == 2 else ""
        payload = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
    except ValueError:
        return False
    role = payload.get("role") or (payload.get("app_metadata") or {}).get("role")
    return role in ("service_role", "supabase_admin")


async def _one(connection: Connection, query: str, *values: Any) -> Row | None:
    cursor = await connection.execute(query.encode(), values)
    return await cursor.fetchone()


async def _own(connection: Connection, caller: _Caller, condition: str) -> list[Row]:
    """All rows with all their params, as theirs reads them."""
    cursor = await connection.execute(
        f"SELECT t.*, t.status::text AS status, d.status::text AS dependency, t.dependant_on IS NOT NULL AS waits"
        f" FROM tasks t LEFT JOIN tasks d ON d.id = t.dependant_on WHERE {condition}"
        " AND (%(user)s::uuid IS NULL OR t.project_id IN (SELECT id FROM projects WHERE user_id = %(user)s::uuid))"
        " ORDER BY t.created_at, t.id".encode(),
        {"user": caller.user},
    )
    rows = await cursor.fetchall()
    return [
        {**row, "dependency": "missing" if row["waits"] and not row["dependency"] else row["dependency"]}
        for row in rows
    ]


async def _owned(connection: Connection, caller: _Caller, task_id: Any) -> Row:
    task = await _one(connection, "SELECT * FROM tasks WHERE id = %s", task_id)
    if task is not None and caller.user is not None:
        project = await _one(connection, "SELECT user_id FROM projects WHERE id = %s", task["project_id"])
        if project is None or str(project["user_id"]) != caller.user:
            task = None
    if task is None:
        raise _Says(404, "Task not found")
    return task


async def _take(connection: Connection, task_id: Any, worker: str | None, *, started: bool) -> bool:
    cursor = await connection.execute(
        "UPDATE tasks SET status = 'In Progress', worker_id = %s, updated_at = now(),"
        " generation_started_at = CASE WHEN %s THEN now() ELSE generation_started_at END"
        " WHERE id = %s AND status = 'Queued'",
        (worker, started, task_id),
    )
    return cursor.rowcount == 1


def _users(queued: list[Row], active: list[Row]) -> list[Row]:
    waiting, running = Counter(row["user_id"] for row in queued), Counter(row["user_id"] for row in active)
    return [
        {
            "user_id": user and str(user),
            "queued_tasks": waiting[user],
            "in_progress_tasks": running[user],
            "at_limit": False,
        }
        for user in {**waiting, **running}
    ]


def _listed(row: Row) -> Row:
    user = row["user_id"] and str(row["user_id"])
    created = _time(row["created_at"])
    return {"task_id": str(row["id"]), "task_type": row["task_type"], "user_id": user, "created_at": created}


def _time(value: Any) -> str | None:
    return None if value is None else str(value.isoformat())


def _kind(url: str) -> str:
    return "video" if url.rpartition(".")[2] in ("mp4", "webm", "mov", "mkv") else "image"
