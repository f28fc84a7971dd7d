"""The thread that keeps our claims: it renews leases whatever the engines and the loop do.

Its answers name tasks that were cancelled and tasks that are ours no longer. Its clock is CLOCK_BOOTTIME, which also
counts the time a suspended machine sleeps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wan2gp.logs import Facts
from wan2gp.supervisor.queue import LeaseBeat, QueueError, QueueUnavailable, TaskQueue, fact_of

Key = tuple[str, str]
"""A lease: (task id, lease id)."""

PROGRESS_EVERY_S = 2.0
"""How often progress reaches the table at most, seconds."""
JOIN_S = 1.5
"""How long a stop waits for a call that hangs, seconds."""
SILENT_S = 3.0
"""A heartbeat that is not answered for so long means an outage, though its call still tries, seconds."""
POKE_EVERY_S = 0.5
"""How often a hint (a notification, say) may cause a heartbeat at most, seconds."""


def boot_clock() -> float:
    """Seconds since boot, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass
class _Lease:
    token: str = field(repr=False)
    safe_until: float
    """Until when nobody else can have it, by :func:`boot_clock`."""
    progress: float | None = None
    phase: str | None = None
    detail: str | None = None


class LeaseKeeper:
    """Thread-safe. ``heard(cancelled, lost)`` is called from its thread with the (task id, lease id) of runs of ours
    that a heartbeat said so of; ``superseded()`` once, when another instance has the worker's id: then it has ended."""

    def __init__(
        self,
        queue: TaskQueue,
        worker_id: str,
        lease_s: float,
        renew_s: float,
        facts: Facts,
        metadata: Callable[[], Mapping[str, Any]],
        heard: Callable[[Sequence[Key], Sequence[Key]], None],
        superseded: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._queue = queue
        self._worker_id = worker_id
        self._lease_s = lease_s
        self._renew_s = renew_s
        self._facts = facts
        self._metadata = metadata
        self._heard = heard
        self._superseded = superseded
        self._failed = failed
        self._leases: dict[tuple[str, str], _Lease] = {}
        self._lock = threading.Lock()
        self._change = threading.Condition(self._lock)
        self._next = 0.0
        self._last = 0.0
        self._down_since: float | None = None
        self._server_down = False
        self._asking = False
        """A heartbeat is on its way."""
        self._stopped = False
        self._thread = threading.Thread(target=self._serve, name="leases", daemon=True)

    def start(self) -> None:
        """Send the first heartbeat and go on."""
        self._thread.start()

    def hold(self, task_id: str, lease_id: str, token: str, claimed_at: float) -> None:
        """Renew this lease from now on. ``claimed_at`` is when its claim was first *sent*, by :func:`boot_clock`.

        When that is long ago, the claim had to be asked for again and the database has just said that the lease is ours
        still: the next beat, which is due at once, tells whether it stays so, and gets a third of a lease for that.
        """
        with self._change:
            now = boot_clock()
            self._leases[task_id, lease_id] = _Lease(token, max(claimed_at + self._lease_s, now + self._lease_s / 3))
            if now - claimed_at > self._renew_s:
                self._sooner(self._last + POKE_EVERY_S)

    def drop(self, task_id: str, lease_id: str) -> None:
        """The lease has ended."""
        with self._lock:
            self._leases.pop((task_id, lease_id), None)

    def progress(
        self, task_id: str, lease_id: str, fraction: float | None, phase: str | None, detail: str | None
    ) -> None:
        """Note what the task does; it reaches the table within seconds."""
        with self._change:
            lease = self._leases.get((task_id, lease_id))
            if lease is None:
                return
            lease.progress, lease.phase, lease.detail = fraction, phase, detail
            self._sooner(self._last + PROGRESS_EVERY_S)

    def poke(self) -> None:
        """Something may have happened to our tasks: look soon."""
        with self._change:
            if self._leases:
                self._sooner(self._last + POKE_EVERY_S)

    def in_danger(self, margin_s: float) -> list[tuple[str, str]]:
        """Leases that somebody else may take within ``margin_s`` seconds, since we cannot renew them.

        While the database itself is down nobody can take anything, so nothing is in danger then. Nor because we
        overslept: the heartbeat that is due now will tell whether somebody has.
        """
        with self._lock:
            now = boot_clock()
            unanswered = self._asking and now - self._last > self._renew_s / 4
            if self._server_down or not (unanswered or self._down_since is not None):
                return []
            return [key for key, lease in self._leases.items() if lease.safe_until - margin_s <= now]

    def danger_in(self, margin_s: float) -> float | None:
        """Seconds until :meth:`in_danger` may first have something to say; None when that is not to be foreseen."""
        with self._lock:
            now = boot_clock()
            left = [lease.safe_until - margin_s - now for lease in self._leases.values()]
        return min((one for one in left if one > 0), default=None)

    @property
    def contact(self) -> bool:
        """True while heartbeats are answered."""
        silent = self._asking and boot_clock() - self._last > SILENT_S
        return self._down_since is None and not silent

    def stop(self, timeout_s: float = JOIN_S) -> None:
        """End the thread. Leases that are still held are left to the queue."""
        with self._change:
            self._stopped = True
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _sooner(self, when: float) -> None:
        if when < self._next:
            self._next = when
            self._change.notify()

    def _serve(self) -> None:
        try:
            while self._wait():
                if not self._beat():
                    self._superseded()
                    return
            if self.contact:
                self._beat()  # the last one says that the worker has stopped
        except BaseException as error:  # without renewals the worker must stop
            self._failed(error)

    def _wait(self) -> bool:
        with self._change:
            while not self._stopped and (left := self._next - boot_clock()) > 0:
                self._change.wait(left)
            return not self._stopped

    def _beat(self) -> bool:
        """False when the worker's id is ours no more."""
        started = boot_clock()
        with self._lock:
            self._last, self._next, self._asking = started, started + self._renew_s, True
            keys = list(self._leases)
            beats = [
                LeaseBeat(task_id, lease.token, lease.progress, lease.phase, lease.detail)
                for (task_id, _), lease in self._leases.items()
            ]
        try:
            reply = self._queue.heartbeat(self._worker_id, beats, self._lease_s, self._metadata())
        except QueueError as error:
            self._missed(error)
            return True
        if reply.superseded:
            return False
        self._renewed(keys, started)
        # By lease, not by task: one that has ended meanwhile may be ours anew, under another lease, by the time this is
        # acted upon.
        cancelled = [key for key in keys if key[0] in reply.cancelled]
        lost = [key for key in keys if key[0] in reply.lost]
        if cancelled or lost:
            self._heard(cancelled, lost)
        return True

    def _renewed(self, keys: list[tuple[str, str]], started: float) -> None:
        with self._lock:
            since, self._down_since, self._server_down, self._asking = self._down_since, None, False, False
            for key in keys:
                if key in self._leases:
                    self._leases[key].safe_until = started + self._lease_s
        if since is not None:
            self._facts("queue.back", seconds=boot_clock() - since)

    def _missed(self, error: QueueError) -> None:
        with self._lock:
            first = self._down_since is None
            self._asking = False
            self._down_since = self._last if first else self._down_since
            self._server_down = isinstance(error, QueueUnavailable) and error.server_down
            self._next = boot_clock() + min(2.0, self._renew_s / 4)
        if first:
            self._facts(fact_of(error), error=error)
