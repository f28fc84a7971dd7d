"""The queue's statistics for `wan2gp-ctl status`: one reader at a time, and nobody waits for it longer than agreed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from wan2gp.control import QueueStats, TypeCount
from wan2gp.supervisor.queue import QueueError

Stats = Mapping[str, Any]


class Census:
    """Reads ``TaskQueue.stats()`` in a thread of its own: with the database away a status still comes at once, and
    twenty askers cause one query."""

    def __init__(self, read: Callable[[], Stats]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._current: Future[Stats] | None = None

    def take(self, timeout_s: float) -> QueueStats:
        """The statistics, or empty ones whose ``error`` says why. Raises what ``read`` raises beyond QueueError."""
        try:
            stats = self._joined().result(timeout_s)
        except FutureTimeout:
            return QueueStats(error=f"the database did not answer within {timeout_s:g} s")
        except QueueError as error:
            return QueueStats(error=str(error))
        return queue_stats(stats)

    def _joined(self) -> Future[Stats]:
        with self._lock:
            if self._current is None or self._current.done():
                self._current = Future()
                # A daemon: a query that never returns must not hold up the supervisor's exit.
                threading.Thread(target=self._run, args=(self._current,), name="census", daemon=True).start()
            return self._current

    def _run(self, future: Future[Stats]) -> None:
        try:
            future.set_result(self._read())
        except BaseException as error:  # whatever it is belongs to those who wait for it
            future.set_exception(error)


def queue_stats(stats: Stats) -> QueueStats:
    """The queue's mapping as the typed reply."""
    return QueueStats(
        counts=tuple(TypeCount(row["task_type"], row["status"], row["count"]) for row in stats.get("counts", ())),
        oldest_queued_s={key: float(value) for key, value in dict(stats.get("oldest_queued_s") or {}).items()},
        workers=tuple(dict(worker) for worker in stats.get("workers") or ()),
    )
