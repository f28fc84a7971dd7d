"""Every status a row can have, met by everything that can happen to it: one table says what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from tests.contract_bench import Admin, claim, in_contact, let_expire, take
from wan2gp.supervisor.postgres import PostgresQueue
from wan2gp.supervisor.queue import ClaimedTask, QueueRefused, Settlement, SpawnedChild, Verb

TYPE = "walk"
STATUSES = ("Queued", "In Progress", "Complete", "Failed", "Cancelled")


class Walk:
    """One row in a given state, the lease that was held on it (or a made-up one), and the two hands that move it."""

    def __init__(self, queue: PostgresQueue, admin: Admin) -> None:
        self.queue = queue
        self.admin = admin
        self.task = ClaimedTask("", TYPE, {}, 1, 3, "no token", "0")

    def queued(self) -> None:
        self.task = ClaimedTask(self.queue.enqueue(TYPE, {}), TYPE, {}, 1, 3, "no token", "0")

    def delayed(self) -> None:
        self.queued()
        self.admin.execute("UPDATE tasks SET run_after = now() + interval '1 hour' WHERE id = %s", (self.task.id,))

    def blocked(self) -> None:
        first = self.queue.enqueue("other", {})
        self.task = ClaimedTask(self.queue.enqueue(TYPE, {}, depends_on=[first]), TYPE, {}, 1, 3, "no token", "0")

    def leased(self) -> None:
        self.queued()
        self.task = take(self.queue, TYPE)

    def expired(self) -> None:
        self.leased()
        let_expire(self.admin, self.task)

    def parked(self) -> None:
        self.leased()
        self.queue.spawn(self.task.id, self.task.token, [SpawnedChild("child", {})])

    def foreign(self) -> None:
        self.queued()
        self.set_status("In Progress")

    def complete(self) -> None:
        self.leased()
        self.finish(Verb.COMPLETE)

    def failed(self) -> None:
        self.leased()
        self.finish(Verb.FAIL)

    def cancelled(self) -> None:
        self.leased()
        self.queue.cancel(self.task.id)

    def withheld(self) -> None:
        self.leased()
        self.finish(Verb.WITHHOLD)

    def marked(self) -> None:
        self.leased()
        self.mark()

    def theirs(self) -> None:
        """Complete by the predecessor's function, under our lease; its worker has not said the rest yet."""
        self.marked()
        self.set_status("Complete")

    def mark(self) -> None:
        self.queue.completing(self.task.id, self.task.token, 90)

    def finish(self, verb: Verb) -> None:
        self.queue.finish(Settlement(self.task.id, self.task.token, verb, error_message="a.b: c"))

    def claim(self) -> None:
        claim(self.queue, TYPE)

    def spawn(self) -> None:
        try:
            self.queue.spawn(self.task.id, self.task.token, [SpawnedChild("child", {})])
        except QueueRefused:
            """Its lease is not held."""

    def cancel(self) -> None:
        self.queue.cancel(self.task.id)

    def retry(self) -> None:
        self.queue.retry(self.task.id)

    def rescue(self) -> None:
        in_contact(self.queue, self.admin, "rescuer")
        self.queue.rescue("rescuer")

    def reclaim(self) -> None:
        self.queue.reclaim_own("w")

    def set_status(self, status: str) -> None:
        self.admin.execute("UPDATE tasks SET status = %s WHERE id = %s", (status, self.task.id))

    def marked_lease(self) -> bool:
        query = "SELECT completing FROM task_leases WHERE task_id = %s"
        return self.admin.execute(query, (self.task.id,)).fetchone() == (True,)

    def found(self) -> tuple[Any, ...]:
        query = """SELECT t.status::text, l.token IS NOT NULL, l.parked_lease IS NOT NULL
                     FROM tasks t LEFT JOIN task_leases l ON l.task_id = t.id WHERE t.id = %s"""
        found = self.admin.execute(query, (self.task.id,)).fetchone()
        assert found is not None
        return found


Q, P, C, F, X = STATUSES
ACTIONS: dict[str, Callable[[Walk], None]] = {
    "claim": Walk.claim,
    "complete": lambda walk: walk.finish(Verb.COMPLETE),
    "fail": lambda walk: walk.finish(Verb.FAIL),
    "retry": lambda walk: walk.finish(Verb.RETRY),
    "loss": lambda walk: walk.finish(Verb.LOSS),
    "release": lambda walk: walk.finish(Verb.RELEASE),
    "stop": lambda walk: walk.finish(Verb.CANCEL),
    "spawn": Walk.spawn,
    "cancel": Walk.cancel,
    "again": Walk.retry,
    "rescue": Walk.rescue,
    "reclaim": Walk.reclaim,
    "withhold": lambda walk: walk.finish(Verb.WITHHOLD),
    "completing": Walk.mark,
}
# One column for each action, in their order.
TABLE: dict[str, tuple[str, ...]] = {
    #          claim comp fail retry loss rel stop spawn cancel again rescue reclaim withhold completing
    "queued": (P, Q, Q, Q, Q, Q, Q, Q, X, Q, Q, Q, Q, Q),
    "delayed": (Q, Q, Q, Q, Q, Q, Q, Q, X, Q, Q, Q, Q, Q),
    "blocked": (Q, Q, Q, Q, Q, Q, Q, Q, X, Q, Q, Q, Q, Q),
    "leased": (P, C, F, Q, Q, Q, X, P, X, P, P, Q, F, P),
    "expired": (P, C, F, Q, Q, Q, X, P, X, P, Q, Q, F, P),
    "parked": (P, P, P, P, P, P, P, P, X, P, P, P, P, P),
    "foreign": (P, P, P, P, P, P, P, P, X, P, P, P, P, P),
    "complete": (C, C, C, C, C, C, C, C, C, Q, C, C, C, C),
    "failed": (F, F, F, F, F, F, F, F, F, Q, F, F, F, F),
    "cancelled": (X, X, X, X, X, X, X, X, X, Q, X, X, X, X),
    "withheld": (F, C, F, F, F, F, F, F, F, Q, F, F, F, P),
    "marked": (P, C, F, Q, Q, Q, X, P, X, P, P, Q, F, P),
    "theirs": (C, C, C, C, C, C, C, C, C, Q, C, C, C, C),
}


@pytest.fixture
def walk(queue_db: str) -> Iterator[Walk]:
    with psycopg.connect(queue_db, autocommit=True) as admin, closing(PostgresQueue(queue_db)) as queue:
        yield Walk(queue, admin)


def sound(walk: Walk, came_from: str) -> None:
    """What holds of a row whatever happened."""
    status, live, parked = walk.found()
    marked = status == C and walk.marked_lease()
    assert not live or status in (P, X) or marked or came_from == "sql", "a live lease on a row that nobody works on"
    assert not parked or status == P
    assert walk.queue.task(walk.task.id) is not None


@pytest.mark.parametrize("state", TABLE)
def test_everything_that_can_happen_to_a_row(walk: Walk, state: str) -> None:
    for (name, action), expected in zip(ACTIONS.items(), TABLE[state], strict=True):
        getattr(walk, state)()
        action(walk)
        assert walk.found()[0] == expected, f"{state}, then {name}"
        sound(walk, name)
        walk.admin.execute("TRUNCATE tasks")


@pytest.mark.parametrize("state", TABLE)
def test_plain_sql_may_set_any_status_and_the_worker_hears_of_it(walk: Walk, state: str) -> None:
    for written in (*STATUSES, "queued", "in progress", "CANCELED"):
        expected = {"queued": Q, "in progress": P, "CANCELED": X}.get(written, written)
        getattr(walk, state)()
        before = walk.found()
        walk.set_status(written)
        status, live, _parked = walk.found()
        assert status == expected
        sound(walk, "sql")
        if before[1] and not (state in ("leased", "expired", "marked") and expected == P or expected == X):
            walk.finish(Verb.COMPLETE)
            assert walk.found() == (expected, False, False), "a late result changes nothing"
        if expected == Q and state != "blocked":
            walk.admin.execute("UPDATE tasks SET run_after = NULL")
            assert [task.id for task in claim(walk.queue, TYPE, limit=9)] == [walk.task.id]
        assert live <= before[1]
        walk.admin.execute("TRUNCATE tasks")
