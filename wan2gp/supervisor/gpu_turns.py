"""Lets the handlers that share a GPU take turns: feeds :mod:`wan2gp.supervisor.gpu_slot` with what their desks do and
the driver tells, and carries out what it decides. Only the loop's thread comes here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from wan2gp.logs import Facts
from wan2gp.supervisor.gpu_slot import RESIDUE_BYTES, Effect, Go, Phase, Slot, SlotLimits, Told, Unload

LOOK_S = 0.25
"""Time between two looks at the GPU's memory while somebody waits for it, seconds."""
NEVER = float("-inf")
SELDOM_S = 5.0
"""The same while an engine works, to learn whether the driver names our processes, seconds."""


@dataclass(frozen=True)
class GpuSeen:
    """One look at the GPU's memory, in bytes."""

    at: float
    """When it began, monotonic seconds."""
    by_handler: Mapping[str, int] | None = None
    """What processes of each handler hold; None: the driver does not tell."""
    of_the_dead: int = 0
    """What it counts for processes that have ended."""
    beyond: int | None = None
    """For a driver that names no process of ours, as in most containers: what the GPU holds beyond its emptiest."""


class Sharer(Protocol):
    """A desk, as the turns see it."""

    name: str

    @property
    def wants_gpu(self) -> bool:
        """It has something to run that has not begun."""

    @property
    def uses_gpu(self) -> bool:
        """It runs something, or brings its engine up."""

    @property
    def has_process(self) -> bool:
        """There is a process, in whatever state."""

    def go(self) -> None:
        """Its turn has come."""

    def ask_unload(self) -> None:
        """It is idle, and its engine is to unload."""

    def replace(self) -> None:
        """Its process is of no use any more."""


class GpuTurns:
    """``look(anew)`` begins a look at the GPU's memory, whose answer comes by :meth:`seen`; ``anew``: what it holds now
    is nobody's here."""

    def __init__(
        self, limits: SlotLimits, facts: Facts, clock: Callable[[], float], look: Callable[[bool], None]
    ) -> None:
        self.slot = Slot(limits)
        self.sharers: dict[str, Sharer] = {}
        self._facts = facts
        self._clock = clock
        self._look = look
        self._alive: set[str] = set()
        self._todo: deque[Effect] = deque()
        self._busy = False
        self._looked_at = NEVER

    def add(self, desk: Sharer) -> None:
        """To be called before anything happens at the desk."""
        self.sharers[desk.name] = desk

    def may_run(self, name: str) -> bool:
        """Whether a run of this handler may begin now."""
        return self.slot.may_run(name)

    def note(self, desk: Sharer) -> None:
        """Something may have changed at this desk."""
        name, now = desk.name, self._clock()
        if desk.has_process:
            self._alive.add(name)
        elif name in self._alive:
            self._alive.discard(name)
            self._looked_at = NEVER  # what was seen before tells nothing of it
            self._do(self.slot.gone(name, now))
        if desk.uses_gpu:
            self.slot.began(name)
        else:
            self._do(self.slot.done(name, now))
        self._do(self.slot.wants(name, now) if desk.wants_gpu else self.slot.withdrawn(name, now))

    def freed(self, name: str, failure: str | None) -> None:
        """Its engine has unloaded, or could not."""
        self._do(self.slot.freed(name, self._clock(), failure))
        self._looked_at = NEVER

    def seen(self, found: GpuSeen) -> None:
        """What a look has found."""
        held = found.by_handler
        holder = self.slot.holder
        if held is not None and self.slot.phase is Phase.FADING:
            held = {**held, str(holder): found.of_the_dead}  # of living processes it has only such as came after
        if holder is not None and found.beyond is not None:
            others = len(self._alive - {holder})  # who was asked to unload before has kept its context
            held = {holder: max(0, found.beyond - others * RESIDUE_BYTES)}
        self._do(self.slot.holds(held, found.at, self._clock()))

    def tick(self, now: float) -> None:
        """Look at the time, and at every desk."""
        for desk in self.sharers.values():
            self.note(desk)
        self._do(self.slot.tick(now))
        due = self._next_look()
        if due is not None and now >= due:
            self._looked_at = now
            self._look(False)

    def next_tick(self) -> float | None:
        """When :meth:`tick` is due next; None: never."""
        times = [max(0.0, when) for when in (self.slot.next_tick(), self._next_look()) if when is not None]
        return min(times, default=None)

    def _next_look(self) -> float | None:
        if self.slot.looks:
            return self._looked_at + LOOK_S
        shared = len(self.sharers) > 1  # the first look is to see the GPU as it is before any engine has it
        return self._looked_at + SELDOM_S if shared and (self.slot.used or self._looked_at == NEVER) else None

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        return self.slot.describe(self._clock())

    @property
    def warm(self) -> str | None:
        """Whose models are on the GPU, and may stay there."""
        return self.slot.holder if self.slot.phase is Phase.HELD and self.slot.used else None

    def _do(self, effects: list[Effect]) -> None:
        """One after the other, also when one of them leads to more."""
        self._todo.extend(effects)
        if self._busy:
            return
        self._busy = True
        try:
            while self._todo:
                self._carry_out(self._todo.popleft())
        finally:
            self._busy = False

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Told):
            self._facts(effect.fact, **effect.fields)
            if effect.fact == "gpu.lingering":  # of a process that has ended: it must be somebody else's
                self._look(True)
        elif isinstance(effect, Go):
            self.sharers[effect.handler].go()
        elif isinstance(effect, Unload):
            self.sharers[effect.handler].ask_unload()
        else:
            self.sharers[effect.handler].replace()
