"""Signs of life that a server shows without being asked: what it prints, the CPU time and the memory of its processes.

They say that something goes on, not what: they count where its websocket cannot be trusted to tell of progress.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import psutil

from wan2gp.engine_process.process import DrainedProcess, monotonic

LOOK_S = 0.5
"""Between two looks: each reads the whole of ``/proc``."""
BUSY_SHARE = 0.1
"""Of one core. A server that does nothing but answer our polls uses a fraction of it."""
STEP_S = 0.1
WINDOW_S = 10.0
"""Longest time over which CPU use is averaged: a busy server on a crowded machine gets its share only now and then."""


class Vitals:
    """Of one server, from now on. For one thread. ``weigh`` says how many bytes the processes of these pids hold."""

    def __init__(self, process: DrainedProcess, weigh: Callable[[Sequence[int]], int]) -> None:
        self._process = process
        self._weigh = weigh
        self._printed = process.printed
        self.moved_s = self._marked_s = monotonic()
        """``moved_s``: when it last showed a sign of life, or when the watch began."""
        self._marked_cpu_s: float | None = None
        # A prompt that is quick pays for no look at all.
        self._next_cpu_s = self._next_rss_s = self.moved_s + LOOK_S
        self._rss_bytes = 0
        self.rss_bytes = 0
        """What its processes held at both of the last two looks: a fork counts all its pages twice for a moment."""

    def look_for_life(self, now_s: float) -> None:
        """Lines are noticed at every call, CPU time every :data:`LOOK_S`."""
        if self._process.printed != self._printed:
            self._printed, self.moved_s = self._process.printed, now_s
        if now_s >= self._next_cpu_s:
            self._next_cpu_s = now_s + LOOK_S
            self._look_at_cpu(now_s)

    def _look_at_cpu(self, now_s: float) -> None:
        cpu_s, before_s, elapsed_s = cpu_seconds(self._process), self._marked_cpu_s, now_s - self._marked_s
        busy = before_s is not None and cpu_s - before_s >= BUSY_SHARE * elapsed_s
        if busy:
            self.moved_s = now_s
        # Less than before: a child that used much has ended and was not waited for.
        if busy or before_s is None or elapsed_s > WINDOW_S or cpu_s < before_s:
            self._marked_s, self._marked_cpu_s = now_s, cpu_s

    def look_at_memory(self, now_s: float) -> None:
        """Every :data:`LOOK_S`."""
        if now_s >= self._next_rss_s:
            self._next_rss_s = now_s + LOOK_S
            before, self._rss_bytes = self._rss_bytes, self._weigh(self._process.pids())
            self.rss_bytes = min(before, self._rss_bytes)


def settle(process: DrainedProcess, most_s: float) -> None:
    """Wait until it computes no more, for at most so many seconds, or until its end."""
    end_s, before_s = monotonic() + most_s, cpu_seconds(process)
    while monotonic() < end_s and process.wait(STEP_S) is None:
        used_s = cpu_seconds(process)
        if used_s - before_s < STEP_S / 2:
            return
        before_s = used_s


def cpu_seconds(server: DrainedProcess) -> float:
    """What its processes have used, and those below them that ended and were waited for."""
    total_s = 0.0
    for process in server.processes():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            total_s += sum(process.cpu_times()[:4])
    return total_s
