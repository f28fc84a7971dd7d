"""What the tests of the queue contract have at hand: short names for the verbs, and a clock that they turn."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import Future
from typing import Any

import psycopg

from wan2gp.supervisor.queue import (
    ClaimedTask,
    FinishReply,
    LeaseBeat,
    Settlement,
    TaskQueue,
    Verb,
)

Admin = psycopg.Connection[tuple[Any, ...]]

SPEC_INSERT = """INSERT INTO tasks (task_type, params, status) VALUES ('comfy', '{"workflow": {}}', 'queued')"""


def claim(queue: TaskQueue, *types: str, worker: str = "w", limit: int = 1, lease_s: float = 90) -> list[ClaimedTask]:
    return list(queue.claim(uuid.uuid4().hex, worker, types or ("comfy",), limit, lease_s).tasks)


def take(queue: TaskQueue, *types: str, worker: str = "w", lease_s: float = 90) -> ClaimedTask:
    tasks = claim(queue, *types, worker=worker, lease_s=lease_s)
    assert len(tasks) == 1
    return tasks[0]


def end(queue: TaskQueue, task: ClaimedTask, verb: Verb = Verb.COMPLETE, **fields: Any) -> FinishReply:
    return queue.finish(Settlement(task.id, task.token, verb, **fields))


def row(queue: TaskQueue, task_id: str) -> dict[str, Any]:
    found = queue.task(task_id)
    assert found is not None
    return dict(found)


def status(queue: TaskQueue, task_id: str) -> str:
    return str(row(queue, task_id)["status"])


def event_names(queue: TaskQueue, task_id: str) -> list[str]:
    return [event["name"] for event in row(queue, task_id)["events"]]


def beat(queue: TaskQueue, *tasks: ClaimedTask, worker: str = "w", **fields: Any) -> tuple[list[str], list[str]]:
    reply = queue.heartbeat(worker, [LeaseBeat(task.id, task.token, **fields) for task in tasks], 90, {})
    return list(reply.cancelled), list(reply.lost)


def until_blocked(admin: Admin, call: Future[Any]) -> None:
    """Returns when ``call`` waits for a lock in the database, or has ended although it should have waited."""
    for _ in range(3000):
        if call.done() or admin.execute("SELECT FROM pg_locks WHERE NOT granted").fetchone() is not None:
            return
        time.sleep(0.01)
    raise AssertionError("it neither waits nor ends")


def let_expire(admin: Admin, task: ClaimedTask) -> None:
    admin.execute(
        "UPDATE task_leases SET expires_at = now() - interval '1 s', lease_s = 0.001 WHERE task_id = %s", (task.id,)
    )


def in_contact(queue: TaskQueue, admin: Admin, worker: str) -> None:
    """Makes ``worker`` one that has been in contact for a day."""
    queue.rescue(worker)
    admin.execute(
        "UPDATE worker_contacts SET since = now() - interval '1 day', last_seen = now() WHERE worker_id = %s", (worker,)
    )
