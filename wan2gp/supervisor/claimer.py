"""The thread that claims: one task at a time, only while some handler has room, woken by the database or by the loop.

The loop offers slots by handler. A claim that is on its way when the loop offers again must not be counted twice, so
the claimer counts what it handed over and the loop says how much of that it has seen. Handlers that share a GPU take
turns, so a claim on its way for one of them is one for all.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from wan2gp.logs import Facts
from wan2gp.supervisor.fairness import Fairness
from wan2gp.supervisor.leases import boot_clock
from wan2gp.supervisor.pace import Pace
from wan2gp.supervisor.queue import ClaimedTask, ClaimReply, QueueError, TaskQueue, Warm, fact_of
from wan2gp.supervisor.registry import Registry

RETRY_FIRST_S = 0.25
RETRY_MAX_S = 10.0
JOIN_S = 1.5
"""How long a stop waits for a call that hangs; repeating it later is safe, seconds."""


@dataclass(frozen=True)
class Offer:
    """What the loop wants claimed."""

    slots: Mapping[str, int] = field(default_factory=dict)
    """How many tasks, by handler."""
    shared: frozenset[str] = frozenset()
    """Handlers that share a GPU: one task at a time for all of them."""
    warm: tuple[Warm, ...] = ()
    """What is loaded."""
    without: frozenset[str] = frozenset()
    """Types that are not claimed, whoever takes them."""


class Claimer:
    """``claimed(task, sent_at)`` and ``idle(next_due_s)`` are called from its thread; ``woken()`` too, when the
    database hinted at something while there was nothing to claim for."""

    def __init__(
        self,
        queue: TaskQueue,
        registry: Registry,
        worker_id: str,
        lease_s: float,
        poll_s: float,
        fairness: Fairness,
        facts: Facts,
        claimed: Callable[[ClaimedTask, float], None],
        idle: Callable[[frozenset[str], float | None], None],
        woken: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._queue = queue
        self._registry = registry
        self._worker_id = worker_id
        self._lease_s = lease_s
        # A claim that was made and not answered must be asked for again while its lease, which nobody renews, lasts.
        self._retry_max_s = min(RETRY_MAX_S, lease_s / 8)
        self._poll_s = poll_s
        self._pace = Pace(poll_s)
        self._fairness = fairness
        self._facts = facts
        self._claimed = claimed
        self._idle = idle
        self._woken = woken
        self._failed = failed
        self._lock = threading.Lock()
        self._offered = Offer()
        self._handed: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()
        self._begun = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="claimer", daemon=True)

    def start(self) -> None:
        """Begin; nothing is claimed before the first offer."""
        self._thread.start()

    def offer(self, offered: Offer, seen: Mapping[str, int]) -> None:
        """What there is room for now, and how many tasks the loop has ever got for each handler."""
        with self._lock:
            if offered == self._offered and seen == self._seen:
                return
            freed = any(count > self._offered.slots.get(name, 0) for name, count in offered.slots.items())
            more = freed or seen != self._seen
            self._offered, self._seen = offered, Counter(seen)
            if freed and self._begun:  # at the start there is room, but nothing has ended
                self._pace.worked()
            self._begun = True
        if more:
            self._queue.interrupt()

    def look_again(self) -> None:
        """Claim soon, not only at the next poll."""
        self._queue.interrupt()

    def stop(self, timeout_s: float = JOIN_S) -> None:
        """End the thread; a claim on its way is still handed over."""
        self._stopping.set()
        self._queue.interrupt()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _open(self) -> tuple[frozenset[str], Offer]:
        """Handlers with a slot that no claim on its way will take, and the offer."""
        with self._lock:
            on_way = Counter({name: self._handed[name] - self._seen[name] for name in self._offered.slots})
            taken = {name for name in self._offered.shared if self._handed[name] > self._seen[name]}
            closed = self._offered.shared if taken else frozenset()
            found = {name for name, count in self._offered.slots.items() if count > on_way[name]}
            return frozenset(found - closed), self._offered

    def _serve(self) -> None:
        try:
            while not self._stopping.is_set():
                self._once()
        except BaseException as error:  # a worker that does not claim must not look alive
            self._failed(error)

    def _once(self) -> None:
        handlers, offered = self._open()
        if not handlers:
            if self._queue.wait(self._poll_s):
                self._woken()
            return
        taken = (kind for name in sorted(handlers) for kind in self._registry.specs[name].task_types)
        types, warm = [kind for kind in taken if kind not in offered.without], offered.warm
        prefer = warm if self._fairness.may_pass(time.monotonic()) else ()
        reply = self._claim(types, prefer)
        if reply is None:
            return
        self._count(reply, warm, prefer)
        if reply.tasks:
            with self._lock:
                self._pace.worked()
            return
        self._idle(handlers, reply.next_due_s)
        with self._lock:
            pause = self._pace.pause(listening=self._queue.listening, due_s=reply.next_due_s)
        if self._queue.wait(pause):
            self._woken()

    def _count(self, reply: ClaimReply, warm: tuple[Warm, ...], prefer: tuple[Warm, ...]) -> None:
        """Who needs nothing loaded passes nobody, and nobody passes it: it does not count."""
        concerned = {kind for one in warm for kind in (*one.types, *one.others)}
        for task in reply.tasks:
            if task.task_type in concerned:
                self._fairness.claimed(bool(prefer) and reply.passed != 0, time.monotonic())
                if prefer and reply.passed:
                    self._facts.bind(task=task.id)("claim.passed", task_id=task.id, task_type=task.task_type)

    def _claim(self, types: list[str], prefer: tuple[Warm, ...]) -> ClaimReply | None:
        """Claim one task, repeating with the same id until there is an answer. None when the worker stops first."""
        claim_id, pause, since = str(uuid.uuid4()), RETRY_FIRST_S, 0.0
        sent = boot_clock()  # of the first try: the lease may have begun with it, whichever try is answered
        while True:
            try:
                reply = self._queue.claim(claim_id, self._worker_id, types, 1, self._lease_s, prefer)
            except QueueError as error:
                if not since:
                    since = sent
                    self._facts(fact_of(error), error=error)
            else:
                if since:
                    self._facts("queue.back", seconds=boot_clock() - since)
                self._hand_over(reply, sent)
                return reply
            if self._stopping.wait(pause * random.uniform(0.8, 1.2)):  # many workers come back from one outage
                return None
            pause = min(self._retry_max_s, pause * 2)

    def _hand_over(self, reply: ClaimReply, sent: float) -> None:
        for task in reply.tasks:
            spec = self._registry.for_type(task.task_type)
            if spec is not None:
                with self._lock:
                    self._handed[spec.name] += 1
            self._claimed(task, sent)
