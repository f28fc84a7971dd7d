"""A desk looks after one child: it carries out what the life-cycle table says, and feeds the table with what happens.

Only the loop's thread comes here. :class:`Desk` knows processes and timers; what the child works on is the business of
:class:`~wan2gp.supervisor.handler_desk.HandlerDesk` and :class:`~wan2gp.supervisor.courier_desk.CourierDesk`.
"""

from __future__ import annotations

import abc
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wan2gp.logs import Facts
from wan2gp.processes import is_below
from wan2gp.protocol import Beat, EngineState, Event, Hello, ProtocolError, Shutdown, Up
from wan2gp.supervisor.allowance import Allowance, Rate
from wan2gp.supervisor.bounds import Dropped, fact_name
from wan2gp.supervisor.child import UNCONFINED, Child, Death
from wan2gp.supervisor.emptying import free_shared_memory, set_aside, set_tmp_aside
from wan2gp.supervisor.granted import Unprepared
from wan2gp.supervisor.lifecycle import WITHOUT_PROCESS, Do, Life, On, State, jitter
from wan2gp.supervisor.profiles import Profiles, Sandbox
from wan2gp.supervisor.registry import SILENCE_S
from wan2gp.supervisor.router import Router, Unreachable
from wan2gp.supervisor.size_watch import CODE as DISK_LIMIT
from wan2gp.supervisor.weight import Excess, Verdict, Weighed

HUNG = "handler.hung"
"""The code of a loss, and the name of its fact, unless it is another that is given."""
EVENTS = Rate(per_s=20, burst=500, flood=math.inf)
"""How many facts of a child go into the log: it turns over, and is the operator's."""
ASK_AGAIN_S = 0.5
"""How soon a start that had to wait is tried again, seconds."""
LEAVE_S = 2.0
"""How long a child may take to leave when asked, before SIGTERM; as long again before SIGKILL, seconds."""


@dataclass(frozen=True)
class Surroundings:
    """What every desk works with."""

    router: Router
    facts: Facts
    data_dir: Path
    profiles: Profiles
    watch: Callable[[Child, Callable[[], None]], None]
    """Call back in the loop's thread whenever the child's descriptors have news."""
    unwatch: Callable[[Child], None]
    hear_out: Callable[[bytes], None]
    """Take what is still on the wire, before the sender of this identity is declared dead."""
    strays: Callable[[], None]
    """Processes may have fallen to the supervisor: look soon."""
    clock: Callable[[], float] = time.monotonic
    weigh: Callable[[], None] = lambda: None
    """Have the memory watch look at once; its answer comes by :meth:`Desk.weighed`."""


NO_SANDBOX = Sandbox(UNCONFINED)


@dataclass
class _Timers:
    overdue: float | None = None
    """When a start or a leave has taken too long."""
    time_up: float | None = None
    terminated: bool = False


@dataclass
class Desk(abc.ABC):
    """One child's desk."""

    name: str
    target: str
    settings: Mapping[str, Any]
    around: Surroundings
    start_s: float
    warm_start_s: float
    life: Life = field(default_factory=lambda: Life(jitter))
    child: Child | None = None
    sandbox: Sandbox = NO_SANDBOX
    """Of the process that is, or was last, started."""
    refused: dict[str, str] = field(default_factory=dict)
    """Layers of it that a start lacked, with the reason; those that the worker lacks as a whole from the beginning."""
    engine: dict[str, Any] = field(default_factory=dict)
    """What the child last said of its engine; for `status`."""
    last_cause: str | None = None
    last_death: Death | None = None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The tokens that it gets, by name."""
    silence_s: float = SILENCE_S
    """So long without any message from it, and the child is killed, seconds."""
    warm: bool = False
    """The next start must bring the engine up before hello: `prewarm`, or after a start of it that failed."""
    _timers: _Timers = field(default_factory=_Timers)
    _last_beat: float = 0.0
    _hung: str | None = None
    _hung_code: str = HUNG
    _heavy: str | None = None
    """Why the process must be replaced once it is free: it held too much memory when it was last looked at."""
    _worked: bool = False
    """The process has had work: what holds too much without any would do so again after a fresh start."""
    _since: float = 0.0
    _warming: bool = False
    """The process was started to bring the engine up before hello."""
    _unheard: int = 0
    """Messages of this process that were dropped."""
    _told: bool = False
    _greeted: bool = False
    _events: Allowance = field(init=False)

    def __post_init__(self) -> None:
        self._events = Allowance(EVENTS, self.around.clock())
        self.facts = self.around.facts.bind(handler=self.name)
        self._since = self.around.clock()

    # -- what happens ----------------------------------------------------------------------------------------------

    def on(self, event: On) -> None:
        """Feed the table and carry out its effects."""
        before = self.life.state
        self._worked = self._worked or event is On.DISPATCHED
        effects = self.life.on(event, self.around.clock())
        if self.life.state is not before:
            self._since = self.around.clock()
        for effect in effects:
            self._carry_out(effect)

    def hear(self, message: Up | ProtocolError) -> None:
        """A message from this desk's child. Whatever is wrong with it costs that child, and nothing else."""
        self._last_beat = self.around.clock()
        try:
            self._hear(message)
        except Exception as error:
            # The third catch-all: a message of a hostile child must not end the supervisor and everybody's tasks.
            self.facts("worker.warning", text="".join(traceback.format_exception(error)))
            self.hang(f"broke the protocol: {type(error).__name__}", "handler.protocol", "handler.protocol")

    def _hear(self, message: Up | ProtocolError) -> None:
        if isinstance(message, Beat):
            return
        if isinstance(message, Dropped):
            self.unheard(str(message))
        elif isinstance(message, Hello):
            self._hello(message)
        elif isinstance(message, Event):
            self._note_fact(message)
        elif isinstance(message, EngineState):
            self._note_engine(message)
        elif isinstance(message, ProtocolError):
            self.hang(f"broke the protocol: {message}", "handler.protocol", "handler.protocol")
        else:
            self.work(message)

    def unheard(self, what: str) -> None:
        """Count what is not listened to, and say it once in a process's life."""
        self._unheard += 1
        if not self._told:
            self._told = True
            self.facts("handler.unheard", handler=self.name, what=what)

    def _note_fact(self, message: Event) -> None:
        now = self.around.clock()
        if self._events.pause_s(now) > 0:
            self.unheard("too many facts")
            return
        self._events.spend(1, now)
        ours = message.task_id is not None and message.task_id in self.task_ids()
        facts = self.facts.bind(task=str(message.task_id)) if ours else self.facts
        facts(fact_name(message.name), **message.fields)

    def _note_engine(self, message: EngineState) -> None:
        now = self.around.clock()
        if self._events.pause_s(now) > 0:  # whose its process is costs a look at several
            self.unheard("too many states of its engine")
            return
        self._events.spend(1, now)
        self.engine = {"state": message.state, **message.detail}
        pid = self.engine.get("pid")
        if self.child is None or not isinstance(pid, int) or not is_below(pid, self.child.shim_pid):
            # What a later life is to kill must be ours, whatever the child says.
            self.engine.pop("pid", None)

    def tick(self, now: float) -> None:
        """Look at the timers."""
        if self._timers.time_up is not None and now >= self._timers.time_up:
            self._time_up(now)
        if self._timers.overdue is not None and now >= self._timers.overdue:
            self._overdue(now)
        if self.child is not None and now - self._last_beat >= self.silence_s and self._hung is None:
            self.hang(f"no sign of life for {self.silence_s:.0f}s")
        if self.child is not None:
            self.child.insist()

    def _time_up(self, now: float) -> None:
        self._timers.time_up = now + ASK_AGAIN_S
        if self.may_start():
            self._timers.time_up = None
            self.on(On.TIME_UP)

    def may_start(self) -> bool:
        """Whether a process may be started now as it is meant to be."""
        return True

    def next_tick(self) -> float | None:
        """When :meth:`tick` is due next, if known."""
        times = [when for when in (self._timers.overdue, self._timers.time_up) if when is not None]
        if self.child is not None and self._hung is None:
            times.append(self._last_beat + self.silence_s)
        return min(times, default=None)

    def hang(self, reason: str, code: str = HUNG, fact: str = HUNG) -> None:
        """The child is of no use any more: kill it; its death will follow. Its work is lost with ``code``."""
        if self._hung is not None or self.child is None:
            return
        self._hung, self._hung_code = reason, code
        self.facts(fact, handler=self.name, reason=reason)
        self.on(On.OVERDUE)

    def weighed(self, found: Weighed) -> None:
        """The memory watch has looked at the child that is here now."""
        self._heavy = None if found.verdict is Verdict.FINE else found.reason
        if found.verdict is Verdict.TOO_HEAVY:
            self.exceeded(Excess("engine.memory_limit", found.reason))
        elif self.life.state is State.IDLE and found.looked_at > self._since:  # else it still saw the task's memory
            if self._heavy is not None and self._worked:
                self.facts("handler.heavy", handler=self.name, reason=self._heavy)
                self.on(On.WORN)

    def exceeded(self, excess: Excess) -> None:
        """The child that is here now is over a limit; one that leaves anyway is ended soon enough."""
        if self.life.state not in (State.STOPPING, State.RECYCLING):
            self.hang(excess.reason, excess.code, "handler.bloated")

    @property
    def has_process(self) -> bool:
        """True while there is one, in whatever state."""
        return self.child is not None

    # -- what the kinds of desk do ---------------------------------------------------------------------------------

    @abc.abstractmethod
    def work(self, message: Up) -> None:
        """A message that concerns the work."""

    def task_ids(self) -> set[str | None]:
        """The tasks for which this child may speak."""
        return set()

    @abc.abstractmethod
    def ready(self) -> None:
        """The child has said hello."""

    @abc.abstractmethod
    def lose_work(self, code: str, cause: str, death: Death) -> None:
        """The child died under its work. ``cause`` is a sentence, ``code`` one of :mod:`wan2gp.errors`."""

    @abc.abstractmethod
    def hand_back(self) -> None:
        """Work that has not begun must go back."""

    @abc.abstractmethod
    def interrupt(self) -> None:
        """Work that has begun must end soon and go back."""

    # -- effects ---------------------------------------------------------------------------------------------------

    def _carry_out(self, effect: Do) -> None:
        if effect is Do.SPAWN:
            self._spawn()
        elif effect is Do.ASK_LEAVE:
            self._ask_leave()
        elif effect is Do.KILL and self.child is not None:
            self.child.kill()
        elif effect is Do.WAIT:
            self._wait()
        elif effect is Do.LOSE_TASK:
            assert self.last_death is not None
            self.lose_work(self._code(), self.last_cause or "", self.last_death)
        elif effect is Do.HAND_BACK:
            self.hand_back()
        elif effect is Do.FORSAKE:
            if self.life.state is State.BROKEN:
                self.hand_back()
        elif effect is Do.INTERRUPT:
            self.interrupt()

    def _spawn(self) -> None:
        child = Child(self.name, self.life.incarnation)
        self.facts("handler.starting", handler=self.name)
        self.engine, self._hung = {}, None
        self._unheard, self._told, self._greeted, self._events = 0, False, False, Allowance(EVENTS, self.around.clock())
        self._heavy, self._worked = None, False
        self._warming = self.warm and self.may_start()  # else it comes up at its first task
        self.around.router.admit(child.identity, child.owns, self.secrets.values())
        try:
            self.sandbox = self.around.profiles.of(self.name)
            self.around.profiles.prepare(self.name)
            child.spawn(
                target=self.target,
                endpoint=self.around.router.endpoint,
                home=self.around.profiles.places.home(self.name),
                log=self.around.data_dir / "logs" / "handlers" / f"{self.name}.log",
                settings={**self.settings, **self.sandbox.settings},
                warm=self._warming,
                profile=self.sandbox.profile,
                secrets=dict(self.secrets),
            )
        except OSError as error:  # no process, no descriptor or no space to be had: a death like any other
            self.around.router.expel(child.identity)
            what = "" if isinstance(error, Unprepared) else "the system gives no process: "
            self.last_cause, self.last_death = f"{what}{error}", Death(None)
            self.facts("handler.died", handler=self.name, cause=self.last_cause)
            self.on(On.DIED)
            return
        self.child = child
        self._last_beat = now = self.around.clock()
        self._timers = _Timers(overdue=now + (self.warm_start_s if self._warming else self.start_s))
        self.around.watch(child, self._look)

    def _ask_leave(self) -> None:
        assert self.child is not None
        self._timers = _Timers(overdue=self.around.clock() + LEAVE_S)
        try:
            self.around.router.send(self.child.identity, Shutdown(LEAVE_S))
        except Unreachable:  # not yet connected: the next rung
            self.child.terminate()

    def _wait(self) -> None:
        self._timers = _Timers(time_up=self.around.clock() + self.life.delay_s)
        if self.life.state is State.BROKEN:
            self.facts(
                "handler.broken",
                handler=self.name,
                deaths=self.life.deaths,
                delay_s=self.life.delay_s,
                cause=self.last_cause,
            )
        elif self.life.delay_s:
            self.facts("handler.waiting", handler=self.name, delay_s=self.life.delay_s)

    def _overdue(self, now: float) -> None:
        """A start: kill. A leave: SIGTERM first, then kill."""
        self._timers.overdue = None
        leaving = self.life.state in (State.STOPPING, State.RECYCLING)
        if leaving and not self._timers.terminated and self.child is not None:
            self._timers = _Timers(overdue=now + LEAVE_S, terminated=True)
            self.child.terminate()
        elif leaving:
            self.on(On.OVERDUE)
        else:
            self.hang("did not start in time")

    def _hello(self, message: Hello) -> None:
        if self.child is None or self._greeted:
            self.unheard("a second hello")
            return
        self._greeted = True
        self._timers = _Timers() if self.life.state is State.STARTING else self._timers
        seconds = self.around.clock() - self.child.started
        self.facts("handler.ready", handler=self.name, pid=message.pid, seconds=seconds)
        self.warm = self._warming = False
        self.on(On.HELLO)
        self.ready()

    # -- death -----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """The child's descriptors have news."""
        if self.child is None:
            return
        death = self.child.news()
        self._tell_of_refusals(self.child)
        if death is not None:
            self.around.hear_out(self.child.identity)  # its last message may be on the way yet
            self._died(self.child, death)

    def _tell_of_refusals(self, child: Child) -> None:
        """Each once in a life of the worker: the next process will lack the same."""
        for layer, reason in child.refused.items():
            if layer not in self.refused:
                self.facts("sandbox.refused", handler=self.name, layer=layer, reason=reason)
        self.refused = self.refused | child.refused

    def _died(self, child: Child, death: Death) -> None:
        self.around.unwatch(child)
        self.around.router.expel(child.identity)
        child.release()
        self.child, self._timers, self.engine = None, _Timers(), {}
        self.last_death = death
        asked = self.life.state in (State.STOPPING, State.RECYCLING)
        last = f" (last words: {death.tail[-1]})" if death.tail and death.code != 0 else ""
        if death.survivors:
            self.facts("handler.survivors", handler=self.name, pids=", ".join(map(str, death.survivors)))
        self._clear_up()
        if death.status is None:  # its shim was killed: what was below has fallen to us
            self.around.strays()
        if not (asked and self.life.blamed):  # else the engine's own words, heard before, say more
            self.last_cause = self._hung or death.cause() + last
        if not asked or self._hung:
            self.facts("handler.died", handler=self.name, cause=self.last_cause)
        self.on(On.DIED)

    def _clear_up(self) -> None:
        """Before the next process starts: what a dead one leaves would be the next one's, or nobody's."""
        profile = self.sandbox.profile
        if profile.mode == "off":
            return
        home = self.around.profiles.places.home(self.name)
        if self._hung is not None and self._hung_code == DISK_LIMIT:
            self._empty(home)
        else:
            set_tmp_aside(home)
        if profile.uid is not None:
            free_shared_memory(profile.uid)

    def _empty(self, place: Path) -> None:
        """Or the next process would be over the limit at once."""
        try:
            set_aside(place, place.parent)
        except OSError as error:
            self.facts("handler.not_emptied", handler=self.name, path=str(place), error=error)
        else:
            self.facts("handler.emptied", handler=self.name, path=str(place))

    def _code(self) -> str:
        if self._hung:
            return self._hung_code
        short = self.last_death is not None and self.last_death.out_of_memory
        return "engine.memory_limit" if short else "handler.died"

    # -- for people ------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """The row of this desk in `status`."""
        return {
            "name": self.name,
            "state": self.life.state.value,
            "incarnation": self.life.incarnation,
            "pid": self.child.pid if self.child else None,
            "restarts": self.life.restarts,
            "deaths": self.life.deaths,
            "last_cause": self.last_cause,
            "engine": dict(self.engine),
            "user_id": self.sandbox.profile.uid,
            "unprotected": self._unprotected(),
            "since_s": self.around.clock() - self._since,
            "unheard": self._unheard,
        }

    def _unprotected(self) -> dict[str, str]:
        """Layers that its process lacks, with the reason."""
        if self.child is None:
            return {}
        decided = {layer.value: reason for layer, reason in self.sandbox.missing.items()}
        return {**decided, **self.child.refused}

    @property
    def at_rest(self) -> bool:
        """True when nothing will change here by itself."""
        return self.life.state in (State.STOPPED, State.IDLE, State.BROKEN)

    @property
    def gone(self) -> bool:
        """True when there is no process."""
        return self.life.state in WITHOUT_PROCESS
