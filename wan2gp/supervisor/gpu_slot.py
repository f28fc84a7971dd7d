"""Whose turn it is on a GPU that several engines share: a table without I/O; times are monotonic seconds, given to it.

One engine at a time has its model there. The one before is asked to unload, must say that it did, and the driver must
confirm it; whoever does neither in time loses its process. So no engine meets the weights of another.

    FREE ── wants(a) ──▶ HELD by a
    HELD, no turn ── wants(a) ──▶ go(a);  wants(b) ──▶ CLEARING, unload(a);  b is next as well when a never began
    HELD, a's turn ── wants(b) ──▶ b waits;  done(a) ──▶ no turn: who has waited longest is next
    CLEARING ── freed(a), then little memory seen ──▶ HELD by the next;  nobody waits any more ──▶ HELD by a, no turn
    CLEARING ── time, or a cannot unload ──▶ FORCED, restart(a)
    any ── gone(a) ──▶ FADING: the process has ended, the driver may count its memory for a while yet
    FADING ── little memory seen, or time ──▶ HELD by the next, or FREE

"Little memory" is what a bare CUDA context costs. Where the driver tells nothing, the engine's word is all there is.
A turn is one run, or one start that brings the engine up. A turn is given, and begins when the run does: one that was
given and never began has put nothing on the card.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Union

MIB = 1024 * 1024
RESIDUE_BYTES = 700 * MIB
"""What an engine may keep when it has unloaded: its CUDA context, and what its libraries keep there."""
CLEAR_S = 30.0
FADE_S = 10.0
"""After so long the memory of a process that has ended is no longer waited for, seconds."""


class Phase(enum.Enum):
    """What the slot is at."""

    FREE = "free"
    HELD = "held"
    CLEARING = "clearing"
    """The holder was asked to unload, for somebody who waits."""
    FORCED = "forced"
    """The holder's process is being ended, since it did not."""
    FADING = "fading"
    """The holder's process has ended; the driver must forget its memory."""


class Turn(enum.Enum):
    """What the holder may do."""

    NONE = "none"
    GIVEN = "given"
    BEGUN = "begun"


@dataclass(frozen=True)
class Go:
    """It is this handler's turn."""

    handler: str


@dataclass(frozen=True)
class Unload:
    """Ask this handler to unload; :meth:`Slot.freed` must follow."""

    handler: str


@dataclass(frozen=True)
class Restart:
    """End this handler's process; :meth:`Slot.gone` must follow."""

    handler: str
    reason: str


@dataclass(frozen=True)
class Told:
    """A fact to log; the names are in :mod:`wan2gp.logs`."""

    fact: str
    fields: Mapping[str, Any]


Effect = Union[Go, Unload, Restart, Told]


@dataclass(frozen=True)
class SlotLimits:
    """Seconds and bytes."""

    clear_s: float = CLEAR_S
    fade_s: float = FADE_S
    residue_bytes: int = RESIDUE_BYTES


@dataclass
class Slot:
    """The slot of one GPU, or of all that the engines see. Every method returns what is to be done, in order."""

    limits: SlotLimits = field(default_factory=SlotLimits)
    phase: Phase = Phase.FREE
    holder: str | None = None
    turn: Turn = Turn.NONE
    queue: tuple[str, ...] = ()
    """Who waits, the longest first; the holder too, when it wants another turn."""
    used: bool = False
    """The holder has had a turn that began: something of it may be on the card."""
    since: float = 0.0
    """When the phase began."""
    _freed_at: float | None = None
    _bytes: int | None = None
    """What the holder was last seen to hold."""

    # -- what handlers do --------------------------------------------------------------------------------------------

    def wants(self, handler: str, now: float) -> list[Effect]:
        """It has something to run. Saying so again changes nothing."""
        has_it_coming = self.holder == handler and self.turn is Turn.GIVEN
        if handler in self.queue or has_it_coming:
            return []
        self.queue = (*self.queue, handler)
        return self._settle(now)

    def withdrawn(self, handler: str, now: float) -> list[Effect]:
        """It has nothing to run any more that has not begun."""
        self.queue = tuple(name for name in self.queue if name != handler)
        if self.holder == handler and self.turn is Turn.GIVEN:
            self.turn = Turn.NONE
        return self._settle(now)

    def began(self, handler: str) -> None:
        """It uses the turn that it was given."""
        if self.may_run(handler):
            self.turn, self.used = Turn.BEGUN, True

    def done(self, handler: str, now: float) -> list[Effect]:
        """Its turn is over."""
        if self.holder != handler or self.turn is not Turn.BEGUN:
            return []
        self.turn = Turn.NONE
        return self._settle(now)

    def freed(self, handler: str, now: float, failure: str | None = None) -> list[Effect]:
        """It says that it has unloaded, or why it could not."""
        if self.holder != handler or self.phase is not Phase.CLEARING:
            return []
        if failure is not None:
            return self._force(now, f"it could not unload: {failure}")
        self._freed_at = now if self._freed_at is None else self._freed_at
        return []

    def gone(self, handler: str, now: float) -> list[Effect]:
        """Its process has ended."""
        if self.holder != handler or self.phase is Phase.FADING:
            return []
        self.turn = Turn.NONE
        if not self.used:
            return self._settle(now)
        self._enter(Phase.FADING, now)
        return []

    # -- what is seen ------------------------------------------------------------------------------------------------

    def holds(self, by_handler: Mapping[str, int] | None, looked_at: float, now: float) -> list[Effect]:
        """Bytes that each handler's processes, also those that ended, had on the GPU at ``looked_at``; None: nothing
        tells. Whoever is not named had none."""
        if self.holder is None or not self.looks or looked_at < self._look_from():
            return []
        self._bytes = None if by_handler is None else by_handler.get(self.holder, 0)
        if self._bytes is not None and self._bytes > self.limits.residue_bytes:
            return []
        return self._pass_on(now)

    def tick(self, now: float) -> list[Effect]:
        """Look at the time."""
        due = self.next_tick()
        if due is None or now < due:
            return []
        if self.phase is Phase.CLEARING:
            return self._force(now, self._why_forced())
        late = Told("gpu.lingering", {"handler": self.holder, "seconds": self.limits.fade_s, "mib": self._mib()})
        return [*([late] if self._bytes else []), *self._pass_on(now)]

    def next_tick(self) -> float | None:
        """When :meth:`tick` is due; None: never."""
        if self.phase is Phase.CLEARING:
            return self.since + self.limits.clear_s
        return self.since + self.limits.fade_s if self.phase is Phase.FADING else None

    # -- questions ---------------------------------------------------------------------------------------------------

    def may_run(self, handler: str) -> bool:
        """Whether a run of this handler may begin now."""
        return self.holder == handler and self.turn is Turn.GIVEN

    @property
    def looks(self) -> bool:
        """Whether :meth:`holds` is waited for."""
        return self.phase is Phase.FADING or (self.phase is Phase.CLEARING and self._freed_at is not None)

    def describe(self, now: float) -> dict[str, Any]:
        """For `status`."""
        waiting = [name for name in self.queue if name != self.holder]
        return {"phase": self.phase.value, "holder": self.holder, "waiting": waiting, "since_s": now - self.since}

    # -- transitions -------------------------------------------------------------------------------------------------

    def _settle(self, now: float) -> list[Effect]:
        """Give the turn to whom it belongs, if that needs nobody else's doing."""
        if self.turn is not Turn.NONE or self.phase in (Phase.FORCED, Phase.FADING):
            return []
        if not self.used:
            return self._pass_on(now) if self.queue or self.holder is not None else []
        if self.queue and self.queue[0] != self.holder:
            return [] if self.phase is Phase.CLEARING else self._clear(now)
        if self.phase is Phase.CLEARING:
            self._enter(Phase.HELD, now)
        return self._give() if self.queue else []

    def _clear(self, now: float) -> list[Effect]:
        assert self.holder is not None
        self._enter(Phase.CLEARING, now)
        named = {"handler": self.holder, "next": self.queue[0]}
        return [Told("gpu.clearing", named), Unload(self.holder)]

    def _force(self, now: float, reason: str) -> list[Effect]:
        assert self.holder is not None
        self._enter(Phase.FORCED, now)
        named = {"handler": self.holder, "next": self.queue[0], "reason": reason}
        return [Told("gpu.forced", named), Restart(self.holder, reason)]

    def _why_forced(self) -> str:
        if self._freed_at is None:
            return f"it did not unload within {self.limits.clear_s:g} s"
        seen = f"{self._mib()} MiB of GPU memory" if self._bytes else "GPU memory"
        return f"it says that it has unloaded and holds {seen} after {self.limits.clear_s:g} s"

    def _pass_on(self, now: float) -> list[Effect]:
        """The card is empty: the next one has it."""
        before, seconds = self.holder, now - self.since
        said: list[Effect] = []
        if self.phase is Phase.CLEARING:
            said.append(Told("gpu.cleared", {"handler": before, "next": self.queue[0], "seconds": seconds}))
        self.used = False
        self.holder = self.queue[0] if self.queue else None
        self._enter(Phase.HELD if self.queue else Phase.FREE, now)
        return [*said, *(self._give() if self.queue else [])]

    def _give(self) -> list[Effect]:
        assert self.holder is not None and self.queue[0] == self.holder
        self.queue, self.turn = self.queue[1:], Turn.GIVEN
        return [Go(self.holder)]

    def _enter(self, phase: Phase, now: float) -> None:
        self.phase, self.since = phase, now
        self._freed_at = self._bytes = None

    def _look_from(self) -> float:
        return self.since if self._freed_at is None else self._freed_at

    def _mib(self) -> int:
        return (self._bytes or 0) // MIB
