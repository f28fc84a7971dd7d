"""What the state of a server means, as pure functions of what was observed; and how long to wait after a death."""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass

UNRESPONSIVE_S = 120.0
"""A node that holds the GIL (loading a model, say) can silence a healthy server for a minute."""
PATIENCE = 4
"""So many times the limit without progress for a prompt whose progress cannot be seen."""
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

    @property
    def unsure_stuck_s(self) -> float:
        """The same for a prompt of which nothing can be known: no websocket, and a server that is not ours."""
        return PATIENCE * self.stuck_s


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
    """The wait before the next start: none after the first death of a server that had been ready, else 0.5 s, doubling
    to 30 s. Begins anew after a stable life, and after a prompt that ended well."""

    failures: int = 0
    _free: bool = False
    _failed_at_s: float = 0.0

    def died(self, now_s: float, lived_s: float) -> None:
        """A process ended that should not have, ``lived_s`` seconds after it was ready (0: it never was)."""
        if lived_s >= STABLE_S:
            self.failures = 0
        if not self.failures:
            self._free = lived_s > 0
        self.failures += 1
        self._failed_at_s = now_s

    def proved(self) -> None:
        """It did what it is for: what it dies of next is not what its forebears died of."""
        self.failures = 0

    def remaining_s(self, now_s: float) -> float:
        """Seconds until a start is due; 0 when it is."""
        doublings = self.failures - (2 if self._free else 1)
        if doublings < 0:
            return 0.0
        delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(doublings, 16))
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
