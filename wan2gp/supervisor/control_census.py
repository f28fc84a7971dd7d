"""Answers for `wan2gp-ctl status` that may take for ever: one asking at a time, and nobody waits longer than agreed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any, Generic, TypeVar

from wan2gp.control import QueueStats, TypeCount
from wan2gp.supervisor.queue import QueueError

T = TypeVar("T")


class Overdue(Exception):
    """The answer did not come within the time agreed; the asking goes on."""


class SingleFlight(Generic[T]):
    """Calls ``read`` in a thread of its own: twenty askers cause one call, and a call that hangs harms none of them."""

    def __init__(self, read: Callable[[], T], name: str) -> None:
        self._read = read
        self._name = name
        self._lock = threading.Lock()
        self._current: Future[T] | None = None

    def take(self, timeout_s: float) -> T:
        """What ``read`` returns or raises, or :class:`Overdue`."""
        future = self._joined()
        if not wait([future], timeout_s).done:
            raise Overdue(f"no answer within {timeout_s:g} s")
        return future.result()

    def begin(self) -> None:
        """Let it be read, if nobody does at this moment; waits for nothing."""
        self._joined()

    def _joined(self) -> Future[T]:
        with self._lock:
            if self._current is None or self._current.done():
                future: Future[T] = Future()
                # A daemon: a call that never returns must not hold up the supervisor's exit.
                threading.Thread(target=self._run, args=(future,), name=self._name, daemon=True).start()
                self._current = future  # only now: where no thread can be started, the next asker tries again
            return self._current

    def _run(self, future: Future[T]) -> None:
        try:
            future.set_result(self._read())
        except BaseException as error:  # whatever it is belongs to those who wait for it
            future.set_exception(error)


class Census:
    """The queue's numbers, with the database away as well as with it."""

    def __init__(self, read: Callable[[], Mapping[str, Any]]) -> None:
        self._flight = SingleFlight(read, "census")

    def take(self, timeout_s: float) -> QueueStats:
        """The statistics, or empty ones whose ``error`` says why. Raises what ``read`` raises beyond QueueError."""
        try:
            return queue_stats(self._flight.take(timeout_s))
        except Overdue as overdue:
            return QueueStats(error=f"the database gives {overdue}")
        except QueueError as error:
            return QueueStats(error=str(error))


def queue_stats(stats: Mapping[str, Any]) -> QueueStats:
    """The queue's mapping as the typed reply."""
    return QueueStats(
        counts=tuple(TypeCount(row["task_type"], row["status"], row["count"]) for row in stats.get("counts", ())),
        oldest_queued_s={key: float(value) for key, value in dict(stats.get("oldest_queued_s") or {}).items()},
        waiting=tuple(dict(row) for row in stats.get("waiting") or ()),
        workers=tuple(dict(worker) for worker in stats.get("workers") or ()),
    )
