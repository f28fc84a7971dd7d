"""Workers, users, a scaler and death, all at once, by chance. Afterwards nothing is lost and nothing waits for ever."""

from __future__ import annotations

import json
import random
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from tests.contract_bench import Admin, claim
from wan2gp.supervisor.postgres import PostgresQueue
from wan2gp.supervisor.queue import ClaimedTask, LeaseBeat, QueueRefused, Settlement, SpawnedChild, Verb

TYPES = ("a", "b", "orchestrator")
VERBS = {
    Verb.COMPLETE: 10,
    Verb.FAIL: 1,
    Verb.RETRY: 2,
    Verb.LOSS: 1,
    Verb.RELEASE: 1,
    Verb.CANCEL: 1,
    Verb.WITHHOLD: 2,
}
BY_HAND = (
    "UPDATE tasks SET status = 'Queued' WHERE id = %(one)s",
    "UPDATE tasks SET status = 'Failed' WHERE id = %(one)s",
    "UPDATE tasks SET status = 'Complete' WHERE id = %(one)s",
    "UPDATE tasks SET status = 'cancelled' WHERE id = %(one)s",
    "UPDATE tasks SET dependant_on = %(two)s WHERE id = %(one)s",
    "DELETE FROM tasks WHERE id = %(one)s",
    "UPDATE task_leases SET expires_at = now() - interval '1 s', lease_s = 0.001 WHERE task_id = %(one)s",
)


class Actor:
    """One worker and one user in one thread; every step is drawn from its own seed."""

    def __init__(self, queue: PostgresQueue, url: str, ids: list[str], seed: int) -> None:
        self.queue = queue
        self.url = url
        self.ids = ids
        self.name = f"w{seed}"
        self.chance = random.Random(seed)
        self.completed: Counter[str] = Counter()
        self.withheld: list[Settlement] = []

    def some(self) -> str:
        return self.chance.choice(self.ids[-40:]) if self.ids else str(uuid.uuid4())

    def live(self, steps: int) -> Counter[str]:
        moves = (self.submit, self.work, self.by_hand, self.ask, self.recover, self.publish)
        with psycopg.connect(self.url, autocommit=True) as self.hand:
            for _ in range(steps):
                self.chance.choices(moves, (20, 50, 10, 15, 5, 5))[0]()
        return self.completed

    def submit(self) -> None:
        depends_on = [self.some() for _ in range(self.chance.choice((0, 0, 1, 2)))]
        self.ids.append(self.queue.enqueue(self.chance.choice(TYPES), {}, depends_on=depends_on, max_attempts=2))

    def work(self) -> None:
        tasks = claim(self.queue, *TYPES, worker=self.name, limit=self.chance.randint(1, 3))
        self.queue.heartbeat(self.name, [LeaseBeat(task.id, task.token, 0.5) for task in tasks], 90, {})
        spawning = [task for task in tasks if task.task_type == "orchestrator" and self.chance.random() < 0.8]
        for task in spawning:
            self.spawn(task)
        verbs = self.chance.choices(list(VERBS), list(VERBS.values()), k=len(tasks))
        endings = [Settlement(t.id, t.token, verb) for t, verb in zip(tasks, verbs, strict=True) if t not in spawning]
        for ending in endings:
            if self.chance.random() < 0.3:
                self.complete_elsewhere(ending)
        self.finish(endings)

    def finish(self, endings: list[Settlement]) -> None:
        for ending, reply in zip(endings, self.queue.finish_many(endings), strict=True):
            if reply.accepted and not reply.repeated and ending.verb is Verb.COMPLETE:
                self.completed[ending.token] += 1
            if reply.accepted and ending.verb is Verb.WITHHOLD:
                self.withheld.append(replace(ending, verb=Verb.COMPLETE))

    def publish(self) -> None:
        """What was withheld can be published now; perhaps."""
        if self.withheld:
            ending = self.withheld.pop(self.chance.randrange(len(self.withheld)))
            if self.chance.random() < 0.5:
                self.complete_elsewhere(ending)
            if self.chance.random() < 0.9:  # else its worker has died
                self.finish([ending])

    def complete_elsewhere(self, ending: Settlement) -> None:
        """As complete_task does, or would have done."""
        if self.queue.completing(ending.task_id, ending.token, 90).held and self.chance.random() < 0.8:
            with suppress(psycopg.errors.DeadlockDetected):
                self.hand.execute(
                    "UPDATE tasks SET status = 'Complete' WHERE id = %s AND status = 'In Progress'", (ending.task_id,)
                )

    def spawn(self, task: ClaimedTask) -> None:
        kinds = [self.chance.choice(TYPES) for _ in range(self.chance.randint(1, 3))]
        children = [SpawnedChild(kind, {}, depends_on=tuple(range(n))[-1:]) for n, kind in enumerate(kinds)]
        with suppress(QueueRefused):  # somebody else has moved it
            self.ids.extend(self.queue.spawn(task.id, task.token, children))

    def by_hand(self) -> None:
        # A user's own statement may meet another's: a circle is refused, of two that block each other one is undone.
        with suppress(psycopg.errors.CheckViolation, psycopg.errors.DeadlockDetected):
            self.hand.execute(self.chance.choice(BY_HAND).encode(), {"one": self.some(), "two": self.some()})

    def ask(self) -> None:
        self.chance.choice((self.queue.cancel, self.queue.retry))(self.some())

    def recover(self) -> None:
        self.chance.choice((self.queue.rescue, self.queue.reclaim_own))(self.name)


def drain(queue: PostgresQueue, admin: Admin) -> None:
    """What a calm night does: every worker restarts, the missing stay missing, everything claimable is completed."""
    for n in range(12):
        queue.reclaim_own(f"w{n}")
    admin.execute("UPDATE task_dependencies SET missing_since = now() - interval '1 h' WHERE missing_since IS NOT NULL")
    queue.rescue("night")
    complete_all(queue)
    withheld = """SELECT t.id::text FROM tasks t JOIN task_leases l ON l.task_id = t.id
                   WHERE t.status = 'Failed' AND l.token IS NULL AND l.last_verb = 'withhold'"""
    while waiting := admin.execute(withheld.encode()).fetchall():  # parked parents wait for such a child's owner
        for (task_id,) in waiting:
            queue.retry(task_id)
        complete_all(queue)


def complete_all(queue: PostgresQueue) -> None:
    while tasks := claim(queue, *TYPES, worker="night", limit=20):
        queue.finish_many([Settlement(task.id, task.token, Verb.COMPLETE) for task in tasks])


@contextmanager
def impatient(admin: Admin) -> Iterator[None]:
    """Deadlocks are found in 0.1 s and not in one."""
    row: Any = admin.execute("SELECT current_database()").fetchone()
    admin.execute(f"ALTER DATABASE {row[0]} SET deadlock_timeout = '100ms'".encode())
    yield


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
def test_whatever_happens_nothing_is_done_twice_and_nothing_waits_for_ever(queue_db: str, seed: int) -> None:
    ids: list[str] = []
    with (
        psycopg.connect(queue_db, autocommit=True) as admin,
        impatient(admin),
        closing(PostgresQueue(queue_db)) as queue,
    ):
        actors = [Actor(queue, queue_db, ids, seed * 4 + n) for n in range(4)]
        with ThreadPoolExecutor(4) as pool:
            completed = sum(pool.map(lambda actor: actor.live(250 if seed == 0 else 1000), actors), Counter[str]())
        assert set(completed.values()) <= {1}, "an outcome was accepted twice"
        drain(queue, admin)
        stuck = admin.execute("SELECT id FROM tasks WHERE status IN ('Queued', 'In Progress')").fetchall()
        assert not stuck, json.dumps([queue.task(str(task_id)) for (task_id,) in stuck], indent=1)
        assert admin.execute("SELECT count(*) FROM task_leases WHERE token IS NOT NULL").fetchone() == (0,)
        drift = """SELECT id FROM tasks t WHERE open_dependencies <>
                   (SELECT count(*) FROM task_dependencies d WHERE d.task_id = t.id AND d.open)"""
        assert admin.execute(drift.encode()).fetchall() == []
