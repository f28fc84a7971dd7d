"""What the state of a server means, as pure functions of what was observed; and how long to wait after a death."""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass

UNRESPONSIVE_S = 120.0
"""A node that holds the GIL (loading a model, say) can silence a healthy server for a minute."""
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
STABLE_S = 60.0
"""A server that lived so long was a good one: its death starts the back-off from the beginning."""


class Verdict(enum.Enum):
    """In the order in which they are looked for."""

    EXITED = "exited"
    """The process is gone."""
    UNRESPONSIVE = "unresponsive"
    """The process lives and HTTP is silent."""
    STUCK = "stuck"
    """HTTP answers and the prompt does not move: also what a dead worker thread inside ComfyUI looks like."""
    BLOATED = "bloated"
    """It holds more memory than the machine can spare."""
    OK = "ok"


@dataclass(frozen=True)
class Observation:
    """``now_s`` and the ``last_…_s`` are of one monotonic clock. ``last_progress_s`` is None when nothing runs."""

    now_s: float
    exit_code: int | None
    last_answer_s: float
    last_progress_s: float | None
    rss_bytes: int = 0


@dataclass(frozen=True)
class Limits:
    """Seconds and bytes; 0 means no limit."""

    unresponsive_s: float = UNRESPONSIVE_S
    stuck_s: float = 1800.0
    memory_bytes: int = 0


def judge(seen: Observation, limits: Limits) -> Verdict:
    """The first that holds. Silence is judged before progress: progress cannot be seen through it."""
    if seen.exit_code is not None:
        return Verdict.EXITED
    if limits.unresponsive_s and seen.now_s - seen.last_answer_s > limits.unresponsive_s:
        return Verdict.UNRESPONSIVE
    if limits.stuck_s and seen.last_progress_s is not None and seen.now_s - seen.last_progress_s > limits.stuck_s:
        return Verdict.STUCK
    if limits.memory_bytes and seen.rss_bytes > limits.memory_bytes:
        return Verdict.BLOATED
    return Verdict.OK


@dataclass
class Backoff:
    """The wait before the next start: 0.5 s, doubling to 30 s, and none after a stable life."""

    failures: int = 0
    _failed_at_s: float = 0.0

    def died(self, now_s: float, lived_s: float) -> None:
        """A process ended that should not have, ``lived_s`` seconds after it was ready (0: it never was)."""
        self.failures = 1 if lived_s >= STABLE_S else self.failures + 1
        self._failed_at_s = now_s

    def remaining_s(self, now_s: float) -> float:
        """Seconds until a start is due; 0 when it is."""
        if not self.failures:
            return 0.0
        delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self.failures - 1, 16))
        return max(0.0, self._failed_at_s + delay - now_s)


def describe_exit(code: int) -> str:
    """Words for an exit code, with a guess where one helps."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    guess = " - killed from outside, perhaps by the kernel for lack of memory" if -code == signal.SIGKILL else ""
    return f"signal {-code} ({name}){guess}"
