"""Who is to blame when CUDA breaks, the task or the machine, and when a machine takes no more tasks. Pure; no I/O.

A task can break the GPU's context (an illegal access in a custom kernel), and so can a dying GPU, a driver that was
replaced, or a neighbour's fault. One run does not tell them apart; the next one does, since it has a fresh process.

    FIT ── three broken runs in a row, of two tasks or more ──▶ BLOCKED ── half_open_s ──▶ HALF_OPEN
    HALF_OPEN ── a task is taken ──▶ TRYING ── it breaks CUDA ──▶ BLOCKED; it ends otherwise ──▶ HALF_OPEN
    any ── a task of a handler in the row succeeds, or that handler is restarted by hand ──▶ FIT

In a row: without a success of the same handler between. Another handler's success says nothing, for it may never touch
the GPU, or by another library; another handler's broken run does: they share the machine. One task alone never blocks
the machine, however often it breaks: it fails by its own count, and the queue moves on.

Several tasks that break CUDA by their own fault excuse each other. So each is left alone for twice as long as before
every time, until it is the turn of one that shows the machine to be well; and none is excused for ever.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from wan2gp.supervisor.lifecycle import HALF_OPEN_S

BROKEN_RUNS_MAX = 3
"""So many broken runs in a row block the machine."""
LEAVE_TO_OTHERS_S = 5.0
"""How long a task that the machine broke is left to other workers, seconds."""
EXCUSES_MAX = 7
"""A task that has broken so many runs here counts the next ones itself: with the pauses that takes half a day."""
REMEMBERED = 1000
"""So many tasks that broke CUDA are remembered."""


class Standing(enum.Enum):
    """What is thought of the GPU."""

    FIT = "fit"
    BLOCKED = "blocked"
    """Nothing is claimed."""
    HALF_OPEN = "half open"
    """One task may be claimed, to see whether it works again."""
    TRYING = "trying"
    """That task is here."""


@dataclass(frozen=True)
class _Broken:
    handler: str
    task_id: str


@dataclass
class GpuHealth:
    """Times are monotonic seconds, given by the caller."""

    standing: Standing = Standing.FIT
    half_open_at: float | None = None
    """When a block half-opens."""
    _row: deque[_Broken] = field(default_factory=lambda: deque(maxlen=BROKEN_RUNS_MAX))
    _breaks: dict[str, int] = field(default_factory=dict)
    """How many runs each task has broken here, the latest task last."""
    _trial: str | None = None
    """The lease id of the task that is tried."""

    def broke(self, handler: str, task_id: str, now: float, half_open_s: float = HALF_OPEN_S) -> float | None:
        """A run ended with a broken context, and its process or engine with it. None: that counts against its task.
        Else the machine is to blame, and the task is to go back uncounted, left to others for so many seconds.
        ``half_open_s``: how long a block that this begins lasts."""
        own_fault = all(one.task_id == task_id for one in self._row)
        breaks = self._count(task_id)
        self._row.append(_Broken(handler, task_id))
        if self.standing is not Standing.FIT or self._is_full():
            self.standing, self._trial = Standing.BLOCKED, None
            self.half_open_at = now + half_open_s
        if own_fault or breaks > EXCUSES_MAX:
            return None
        return min(LEAVE_TO_OTHERS_S, half_open_s) if breaks == 1 else float(half_open_s * 2 ** (breaks - 1))

    def _count(self, task_id: str) -> int:
        breaks = self._breaks.pop(task_id, 0) + 1
        self._breaks[task_id] = breaks
        if len(self._breaks) > REMEMBERED:
            del self._breaks[next(iter(self._breaks))]
        return breaks

    def _is_full(self) -> bool:
        return len(self._row) >= BROKEN_RUNS_MAX and len({one.task_id for one in self._row}) > 1

    def proved(self, handler: str) -> bool:
        """A task of this handler succeeded, or an operator has started it anew. True when that ends a block."""
        if not any(one.handler == handler for one in self._row):
            return False
        kept = [one for one in self._row if one.handler != handler]
        self._row.clear()
        self._row.extend(kept)
        ends = self.standing is not Standing.FIT
        self.standing, self.half_open_at, self._trial = Standing.FIT, None, None
        return ends

    def tick(self, now: float) -> bool:
        """Look at the time. True when a block half-opens now."""
        if self.half_open_at is None or now < self.half_open_at:
            return False
        self.standing, self.half_open_at = Standing.HALF_OPEN, None
        return True

    def slots(self, rooms: Mapping[str, int], idle: Collection[str]) -> dict[str, int]:
        """What may be claimed for, of the ``rooms`` (above zero, by handler) that there are. ``idle``: handlers for
        which the queue has just had nothing, or that cannot run."""
        if self.standing is Standing.FIT:
            return dict(rooms)
        if self.standing is not Standing.HALF_OPEN:
            return {}
        suspect = self._row[-1].handler
        one = {suspect: 1} if suspect in rooms else {}
        if suspect not in idle:
            return one  # or nothing, until its fresh process has started
        # Nothing to try with. Who never broke goes on: a worker whose suspects have no work would rest for ever.
        suspects = {broken.handler for broken in self._row}
        return {**{name: room for name, room in rooms.items() if name not in suspects}, **one}

    def admits(self, handler: str, lease_id: str) -> bool:
        """A task has come for this handler: whether it may stay. False: it goes back uncounted."""
        if self.standing is Standing.FIT:
            return True
        if self.standing is Standing.BLOCKED:
            return False
        if all(one.handler != handler for one in self._row):
            return True
        if self.standing is Standing.TRYING:
            return False
        self.standing, self._trial = Standing.TRYING, lease_id
        return True

    def ended(self, lease_id: str) -> None:
        """A run is over. One that was tried and has shown nothing (cancelled, bad input) lets another be tried."""
        if self.standing is Standing.TRYING and self._trial == lease_id:
            self.standing, self._trial = Standing.HALF_OPEN, None
