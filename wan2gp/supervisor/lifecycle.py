"""The life of a handler's process: a table from (state, event) to (next state, effects). No I/O, time as a parameter.

Why a table: every pair is decided here, in one place, and a test walks all of them; the loop only carries effects out.
Killing for good (STOPPING) and in order to start again (RECYCLING) are two states. "Alive" is not "started": the count
of deaths, which lengthens the back-off and ends in BROKEN, is forgotten after a task that succeeded or a stable period.

    STOPPED → STARTING → IDLE ⇄ BUSY; BUSY → DRAINING → STOPPING → STOPPED;
    any → RECYCLING → BACKOFF → STARTING; too many deaths in a row → BROKEN, which half-opens by itself.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from dataclasses import dataclass, field


class State(enum.Enum):
    """Where a handler is in its life."""

    STOPPED = "stopped"
    """No process; the next task starts one."""
    STARTING = "starting"
    """A process that has not said hello."""
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    """Busy with its last task: the worker stops."""
    STOPPING = "stopping"
    """Asked to leave for good."""
    RECYCLING = "recycling"
    """Asked to leave in order to start again."""
    BACKOFF = "backoff"
    """Waiting before the next start."""
    BROKEN = "broken"
    """Too many deaths in a row: nothing is claimed for it until it half-opens or is restarted."""


class On(enum.Enum):
    """What can happen to it."""

    WANTED = "wanted"
    """A task or `prewarm` needs it."""
    HELLO = "hello"
    DISPATCHED = "dispatched"
    FINISHED = "finished"
    WORN = "worn"
    """Finished, maybe some time ago, and the process must not be used again."""
    DIED = "died"
    OVERDUE = "overdue"
    """It hangs, did not start or did not leave in time, or broke the protocol."""
    TIME_UP = "time_up"
    """The back-off is over, or a broken handler may be tried again."""
    STOP = "stop"
    """The worker stops, or the handler is not needed."""
    RESTART = "restart"
    """The operator wants a fresh one."""


class Do(enum.Enum):
    """What the loop must do, in the order given."""

    SPAWN = "spawn"
    ASK_LEAVE = "ask_leave"
    KILL = "kill"
    WAIT = "wait"
    """Arm the timer that brings TIME_UP, after :attr:`Life.delay_s`."""
    LOSE_TASK = "lose_task"
    """The task it ran was lost with it."""
    HAND_BACK = "hand_back"
    """Tasks that have not begun go back uncounted."""
    FORSAKE = "forsake"
    """Tasks that have not begun go back uncounted if the handler broke; a fresh start runs them otherwise."""
    INTERRUPT = "interrupt"
    """Cancel the task it runs, to be handed back uncounted."""


BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
STABLE_S = 30.0
"""A process that lived so long since its hello has started for good, seconds."""
DEATHS_MAX = 5
"""This many deaths in a row break the handler."""
HALF_OPEN_S = 300.0
"""A broken handler is tried again after so long, seconds."""


@dataclass(frozen=True)
class Patience:
    """How much a handler's life puts up with, and how long it pauses. Seconds, and numbers of deaths."""

    backoff_first_s: float = BACKOFF_FIRST_S
    backoff_max_s: float = BACKOFF_MAX_S
    stable_s: float = STABLE_S
    deaths_max: int = DEATHS_MAX
    half_open_s: float = HALF_OPEN_S


_FALL = State.BACKOFF
"""Marks the rows whose next state depends on the count of deaths: BACKOFF, or BROKEN."""

_TABLE: dict[tuple[State, On], tuple[State, tuple[Do, ...]]] = {
    (State.STOPPED, On.WANTED): (State.STARTING, (Do.SPAWN,)),
    (State.STARTING, On.HELLO): (State.IDLE, ()),
    (State.STARTING, On.DIED): (_FALL, (Do.HAND_BACK, Do.WAIT)),
    (State.STARTING, On.OVERDUE): (State.STARTING, (Do.KILL,)),
    (State.STARTING, On.STOP): (State.STOPPING, (Do.HAND_BACK, Do.ASK_LEAVE)),
    (State.STARTING, On.RESTART): (State.RECYCLING, (Do.ASK_LEAVE,)),
    (State.IDLE, On.DISPATCHED): (State.BUSY, ()),
    (State.IDLE, On.DIED): (_FALL, (Do.HAND_BACK, Do.WAIT)),
    (State.IDLE, On.WORN): (State.RECYCLING, (Do.ASK_LEAVE,)),
    (State.IDLE, On.OVERDUE): (State.IDLE, (Do.KILL,)),
    (State.IDLE, On.STOP): (State.STOPPING, (Do.HAND_BACK, Do.ASK_LEAVE)),
    (State.IDLE, On.RESTART): (State.RECYCLING, (Do.ASK_LEAVE,)),
    (State.BUSY, On.FINISHED): (State.IDLE, ()),
    (State.BUSY, On.WORN): (State.RECYCLING, (Do.ASK_LEAVE,)),
    (State.BUSY, On.DIED): (_FALL, (Do.LOSE_TASK, Do.HAND_BACK, Do.WAIT)),
    (State.BUSY, On.OVERDUE): (State.BUSY, (Do.KILL,)),
    (State.BUSY, On.STOP): (State.DRAINING, (Do.HAND_BACK,)),
    (State.BUSY, On.RESTART): (State.RECYCLING, (Do.INTERRUPT, Do.ASK_LEAVE)),
    (State.DRAINING, On.FINISHED): (State.STOPPING, (Do.ASK_LEAVE,)),
    (State.DRAINING, On.WORN): (State.STOPPING, (Do.ASK_LEAVE,)),
    (State.DRAINING, On.DIED): (State.STOPPED, (Do.LOSE_TASK,)),
    (State.DRAINING, On.OVERDUE): (State.DRAINING, (Do.KILL,)),
    (State.DRAINING, On.STOP): (State.STOPPING, (Do.INTERRUPT, Do.ASK_LEAVE)),
    (State.STOPPING, On.FINISHED): (State.STOPPING, ()),
    (State.STOPPING, On.WORN): (State.STOPPING, ()),
    (State.STOPPING, On.DIED): (State.STOPPED, (Do.LOSE_TASK,)),
    (State.STOPPING, On.OVERDUE): (State.STOPPING, (Do.KILL,)),
    (State.RECYCLING, On.FINISHED): (State.RECYCLING, ()),
    (State.RECYCLING, On.WORN): (State.RECYCLING, ()),
    (State.RECYCLING, On.DIED): (_FALL, (Do.LOSE_TASK, Do.FORSAKE, Do.WAIT)),
    (State.RECYCLING, On.OVERDUE): (State.RECYCLING, (Do.KILL,)),
    (State.RECYCLING, On.STOP): (State.STOPPING, (Do.HAND_BACK,)),
    (State.BACKOFF, On.TIME_UP): (State.STARTING, (Do.SPAWN,)),
    (State.BACKOFF, On.STOP): (State.STOPPED, (Do.HAND_BACK,)),
    (State.BACKOFF, On.RESTART): (State.STARTING, (Do.SPAWN,)),
    (State.BROKEN, On.TIME_UP): (State.STARTING, (Do.SPAWN,)),
    (State.BROKEN, On.STOP): (State.STOPPED, (Do.HAND_BACK,)),
    (State.BROKEN, On.RESTART): (State.STARTING, (Do.SPAWN,)),
}
"""Every pair that means something. Any other leaves the state and does nothing: a late word of what is past."""

WITHOUT_PROCESS = frozenset({State.STOPPED, State.BACKOFF, State.BROKEN})
"""States in which there is no process."""


def decided(state: State, event: On) -> bool:
    """True when the table has a row for the pair."""
    return (state, event) in _TABLE


def jitter() -> float:
    """A factor for a pause, so that what fell together does not rise together."""
    return random.uniform(0.8, 1.2)


@dataclass
class Life:
    """One handler's state. :meth:`on` is the only place where it changes."""

    jitter: Callable[[], float]
    """Gives a factor from 0.8 to 1.2 for the back-off."""
    patience: Patience = field(default_factory=Patience)
    state: State = State.STOPPED
    incarnation: int = 0
    """How many processes there have been."""
    deaths: int = 0
    """Deaths in a row without a task that succeeded and without a stable period between."""
    restarts: int = 0
    """Starts after the first, over the whole life."""
    delay_s: float = 0.0
    """What :attr:`Do.WAIT` waits for, seconds."""
    blamed: bool = False
    """The end that is coming counts as a death although we asked for it: the engine could not start."""
    _hello_at: float | None = None

    @property
    def was_up(self) -> bool:
        """True when the newest process has said hello."""
        return self._hello_at is not None

    def proven(self, now: float) -> bool:
        """True unless its last deaths may go on: the newest process has not been up for a stable period yet."""
        return self.deaths == 0 or (self._hello_at is not None and now - self._hello_at >= self.patience.stable_s)

    def worked(self) -> None:
        """A task has succeeded: whatever ended the processes before, the engine is none that cannot work."""
        self.deaths = 0

    def on(self, event: On, now: float) -> tuple[Do, ...]:
        """Take the event at monotonic time ``now`` (seconds); returns the effects to carry out."""
        row = _TABLE.get((self.state, event))
        if row is None:
            return ()
        before, (state, effects) = self.state, row
        self.state = self._fall(before, now) if event is On.DIED and state is _FALL else state
        if event is On.HELLO:
            self._hello_at = now
        if event is On.RESTART:
            self.deaths = 0
        if Do.SPAWN in effects:
            self.incarnation += 1
            self.restarts += self.incarnation > 1
            self._hello_at = None
        return effects

    def _fall(self, before: State, now: float) -> State:
        """After a death: how long to wait, and whether that was one too many."""
        patience = self.patience
        if self._hello_at is not None and now - self._hello_at >= patience.stable_s:
            self.deaths = 0
        if before is State.RECYCLING and not self.blamed:
            self.delay_s = 0.0
            return State.BACKOFF
        self.blamed = False
        self.deaths += 1
        if self.deaths >= patience.deaths_max:
            self.delay_s = patience.half_open_s
            return State.BROKEN
        pause_s = patience.backoff_first_s * 2 ** (self.deaths - 1)
        self.delay_s = min(patience.backoff_max_s, pause_s) * self.jitter()
        return State.BACKOFF
