"""The desk of a handler: which tasks it has, which it runs, and what becomes of them when it dies or must stop."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wan2gp.errors import error_message
from wan2gp.protocol import (
    Cancel,
    Failed,
    Fetched,
    Finished,
    Inputs,
    Outcome,
    Progress,
    ProtocolError,
    Run,
    Source,
    Succeeded,
    Unload,
    Unloaded,
    Up,
    Want,
)
from wan2gp.supervisor.bounds import model
from wan2gp.supervisor.child import Child, Death
from wan2gp.supervisor.desk import Desk
from wan2gp.supervisor.gpu_turns import GpuTurns
from wan2gp.supervisor.lifecycle import On, State
from wan2gp.supervisor.registry import CANCEL_GRACE_S, PHASE_LIMITS_S
from wan2gp.supervisor.router import Unreachable
from wan2gp.supervisor.running import Running, Why, unplaced
from wan2gp.supervisor.spool import Ending
from wan2gp.supervisor.wanted import MayFetch, refusal
from wan2gp.supervisor.weight import Weighed

DANGER_GRACE_S = 2.0
"""How long a run may take to end when its lease is about to, which cannot be put off, seconds."""
WEIGH_S = 3.0
"""How long the next task waits for a look at the memory that the one before has left behind, seconds."""


class Freeing(enum.Enum):
    """When a handler that was asked to give the GPU back does so."""

    NOW = "now"
    LATER = "later"
    """After the task that it runs: an engine at work cannot be unloaded under it."""
    NOTHING = "nothing"
    """There is no process, or one that ends or starts anyway."""


@dataclass
class HandlerDesk(Desk):
    """One handler's desk. ``settle`` gets every end; ``fetch`` asks the courier; ``progressed`` tells the table.

    ``excuse`` hears every outcome, and tells for how many seconds a task is to be left to others that is not to blame.
    """

    settle: Callable[[Running, Ending | None], None] = lambda running, ending: None
    excuse: Callable[[Running, Outcome], float | None] = lambda running, outcome: None
    fetch: Callable[[Running, Mapping[str, Source]], None] = lambda running, sources: None
    progressed: Callable[[Running], None] = lambda running: None
    limits_s: Mapping[str, float] = field(default_factory=dict)
    cancel_grace_s: float = CANCEL_GRACE_S
    prefetch: int = 0
    early_inputs: Callable[[Any], Mapping[str, Source]] = lambda params: {}
    may_fetch: MayFetch = MayFetch()
    turns: GpuTurns | None = None
    """Where it shares the GPU with other handlers: nothing runs, and no engine is brought up, out of turn."""
    models: Mapping[str, str] = field(default_factory=dict)
    """The model that each type stands for, when a task names none."""
    accepting: bool = True
    """False while the worker drains or stops."""
    current: Running | None = None
    waiting: deque[Running] = field(default_factory=deque)
    _awaits_turn: bool = False
    """Its engine is to be brought up when its turn comes."""
    _free_next: bool = False
    """Give the GPU back before the next task."""
    _weigh_by: float | None = None
    """It held too much during its last task: it gets no other until it has been looked at again, or until then."""

    # -- tasks come --------------------------------------------------------------------------------------------------

    def room(self) -> int:
        """How many more tasks may be claimed for it now."""
        if not self.accepting or self._hung is not None or self._weigh_by is not None:
            return 0
        if self.life.state is State.STOPPED:
            return 1 - len(self.waiting)
        # One that has died in a row may do so again: it gets one task, to show that it works.
        ahead = self.prefetch if self.life.proven(self.around.clock()) else 0
        if self.life.state is State.IDLE:
            return 1 + ahead - len(self.waiting)
        if self.life.state is State.BUSY:
            return ahead - len(self.waiting)
        return 0  # a start that has not succeeded yet consumes no task

    def take(self, running: Running) -> None:
        """A task was claimed for this handler."""
        self.waiting.append(running)
        if self.life.state is State.BROKEN:  # it broke while the claim was on its way
            self._all_back(self.last_cause or "the handler is broken")
            return
        if self.current is not None or len(self.waiting) > 1:
            early = self.early_inputs(running.task.params)
            if early:
                self.fetch(running, early)
        self.start()
        self.ready()

    def start(self) -> None:
        """Have a process, if there is none and none is due."""
        if self.life.state is State.STOPPED and self.may_start():
            self.on(On.WANTED)

    def ready(self) -> None:
        """Send the next task when there is one, the child is free, and it is its turn."""
        self._note_turns()
        if self.life.state is not State.IDLE or not self.waiting or self.child is None or self._hung is not None:
            return
        if self._weigh_by is not None or not (self.turns is None or self.turns.may_run(self.name)):
            return
        running = self.waiting[0]
        task = running.task
        try:
            self.around.profiles.make_run(self.name, running.work_dir)
        except OSError as error:
            self._end_waiting(running, unplaced("the task", error))
            return
        message = Run(task.id, task.task_type, task.attempt, task.lease_id, task.params, running.work_dir)
        try:
            self.around.router.send(self.child.identity, message)
        except Unreachable as error:
            self.hang(str(error))
            return
        except ProtocolError as error:
            self._refuse(running, str(error))
            return
        self.waiting.popleft()
        self.current = running
        running.started_at = running.progressed_at = self.around.clock()
        self.facts.bind(task=task.id)("task.processing", task_type=task.task_type, task_id=task.id)
        self.on(On.DISPATCHED)
        self._note_turns()

    def _refuse(self, running: Running, reason: str) -> None:
        """Its row is too large for the wire. It ends here, or it would end every worker that takes it."""
        sentence = f"the task's params are too large: give files by URL, not in the row ({reason})"
        self._end_waiting(running, Failed("input.too_large", sentence))

    def _end_waiting(self, running: Running, failure: Failed) -> None:
        self.waiting.remove(running)
        self.settle(running, running.ended(failure, self.around.clock()))
        self.ready()

    # -- the child speaks --------------------------------------------------------------------------------------------

    def work(self, message: Up) -> None:
        """Of the task that it runs, and of no other."""
        if isinstance(message, Unloaded):
            self._unloaded(message.failure)
        running = self.current
        if not isinstance(message, (Progress, Want, Finished)) or running is None:
            return
        if (message.task_id, message.lease_id) != running.key:
            self._unheard += 1  # a late word of the run before, or a lie
            return
        running.progressed_at = self.around.clock()
        if isinstance(message, Progress):
            self._progress(running, message)
        elif isinstance(message, Want):
            self._want(running, message.sources)
        else:
            self._finished(running, message)

    def _progress(self, running: Running, message: Progress) -> None:
        running.heard(message)
        self.progressed(running)

    def _finished(self, running: Running, message: Finished) -> None:
        now = self.around.clock()
        failed = message.outcome if isinstance(message.outcome, Failed) else None
        self.current = None
        if isinstance(message.outcome, Succeeded):
            self.life.worked()
        if failed is not None and failed.engine_down:
            # The engine could not start. The next process brings it up before anything is claimed for it again.
            self.life.blamed = self.warm = True
            self.last_cause = f"{failed.code}: {failed.message}"
        again = failed is not None and self.life.state is State.BUSY and running.may_run_again(failed)
        if not again:
            self.settle(running, self._end_of(running, message.outcome, now))
        worn = failed is not None and failed.needs_fresh_process
        if worn:
            self._all_back("the handler starts anew")
        if again and failed is not None:
            self._again(running, failed)
        self.on(On.WORN if worn else On.FINISHED)
        if self._free_next and self.life.state is State.IDLE:
            self._unload()
        if self._heavy is not None and self.life.state is State.IDLE:
            self._weigh_by = now + WEIGH_S
            self.around.weigh()
        self.ready()

    def _end_of(self, running: Running, outcome: Outcome, now: float) -> Ending | None:
        delay_s = self.excuse(running, outcome)
        if running.why is Why.LOST:
            return None
        if delay_s is not None and isinstance(outcome, Failed):
            return running.excused(outcome, now, delay_s)
        return running.ended(outcome, now)

    def _again(self, running: Running, failed: Failed) -> None:
        """Within the same attempt: the fresh process gets it before any other."""
        self.facts.bind(task=running.task.id)("task.again", task_id=running.task.id, error=failed.message)
        running.begin_again(failed)
        self.waiting.appendleft(running)
        self.progressed(running)

    # -- the GPU -----------------------------------------------------------------------------------------------------

    def free(self) -> Freeing:
        """Let the engine give the GPU back, at once or after the task that it runs; the process stays."""
        if self.life.state is State.IDLE:
            self._unload()
            return Freeing.NOW
        if self.life.state is State.BUSY:
            self._free_next = True
            return Freeing.LATER
        return Freeing.NOTHING

    def _unload(self) -> None:
        self._free_next = False
        assert self.child is not None
        try:
            self.around.router.send(self.child.identity, Unload())
        except Unreachable as error:
            self.hang(str(error))

    def _unloaded(self, failure: str | None) -> None:
        self.engine.pop("model", None)
        if self.turns is not None:
            self.turns.freed(self.name, failure)
        if failure is not None and self.life.state is State.IDLE:
            self.facts("gpu.not_freed", handler=self.name, reason=failure)
            self.replace()

    def loaded(self) -> str | None:
        """The model that its engine has, or is about to have; None: it names none."""
        params = self.current.task.params if self.current is not None else None
        asked = model(params.get("model")) if isinstance(params, dict) else None
        if self.current is not None and (self.models or "model" in self.engine):
            return asked or self.models.get(self.current.task.task_type) or model(self.engine.get("model"))
        return model(self.engine.get("model"))

    @property
    def wants_gpu(self) -> bool:
        """See :class:`~wan2gp.supervisor.gpu_turns.Sharer`."""
        return bool(self.waiting) or (self._awaits_turn and self.accepting)

    @property
    def uses_gpu(self) -> bool:
        """See :class:`~wan2gp.supervisor.gpu_turns.Sharer`."""
        return self.current is not None or (self.child is not None and self._warming)

    def go(self) -> None:
        """Its turn has come."""
        if self._awaits_turn:
            self.start()
            if self._timers.time_up is not None:
                self._timers.time_up = self.around.clock()
        self.ready()

    def ask_unload(self) -> None:
        """For another engine's turn. What is not idle ends anyway: then its death is the answer."""
        if self.life.state is State.IDLE:
            self._unload()

    def replace(self) -> None:
        """Its process has not given the GPU back."""
        if self.life.state is State.IDLE:
            self.on(On.WORN)

    def may_start(self) -> bool:
        """See :meth:`Desk.may_start`. To bring an engine up takes the GPU."""
        if self.turns is None or not self.warm:
            return True
        self._awaits_turn = True
        self.turns.note(self)
        return self.turns.may_run(self.name)

    def _spawn(self) -> None:
        super()._spawn()
        self._awaits_turn = False
        self._note_turns()

    def _died(self, child: Child, death: Death) -> None:
        super()._died(child, death)
        self._note_turns()

    def _note_turns(self) -> None:
        if self.turns is not None:
            self.turns.note(self)

    def weighed(self, found: Weighed) -> None:
        """See :meth:`Desk.weighed`."""
        awaited = self._weigh_by is not None and found.looked_at > self._since  # heavy ones change that
        super().weighed(found)
        if awaited:
            self._weigh_by = None
            self.ready()

    # -- inputs ------------------------------------------------------------------------------------------------------

    def _want(self, running: Running, sources: Mapping[str, Source]) -> None:
        running.phase = "download"
        running.wanted = True
        if running.sources != dict(sources):
            running.inputs = None
            running.wishes += 1
            refused = refusal(running.names(), sources, running.wishes, self.may_fetch)
            if refused is not None:
                running.inputs = Inputs(*running.key, failure=refused)
            else:
                self.fetch(running, sources)
        self._deliver(running)

    def fetched(self, running: Running, answer: Fetched) -> None:
        """The courier has answered for one of our tasks."""
        running.inputs = Inputs(answer.task_id, answer.lease_id, answer.files, answer.failure)
        self._deliver(running)

    def _deliver(self, running: Running) -> None:
        if not running.wanted or running.inputs is None or self.child is None or running is not self.current:
            return
        running.wanted = False
        running.progressed_at = self.around.clock()
        try:
            self.around.router.send(self.child.identity, running.inputs)
        except (Unreachable, ProtocolError) as error:  # the second: more inputs than one message can name
            self.hang(str(error))

    # -- interruptions -----------------------------------------------------------------------------------------------

    def cancel(self, task_id: str, why: Why, lease_id: str | None = None) -> bool:
        """End our work on a task. True when it is, or was about to be, ours."""
        for running in list(self.waiting):
            if running.task.id == task_id and lease_id in (None, running.task.lease_id):
                self.waiting.remove(running)
                running.why = why
                self._drop(running)
                return True
        running_now = self.current
        if running_now is None or running_now.task.id != task_id or lease_id not in (None, running_now.task.lease_id):
            return False
        self._interrupt(running_now, why)
        return True

    def _drop(self, running: Running) -> None:
        """A task that has not begun ends for the reason in ``why``."""
        now = self.around.clock()
        if running.why is Why.LOST:
            self.settle(running, None)
        else:
            self.settle(running, running.lost("worker.stopping", "", {}, now))

    def _interrupt(self, running: Running, why: Why) -> None:
        if running.why in (None, Why.STOP, Why.RESTART, Why.DANGER) and running.why is not why:
            running.why = why
        if running.interrupted_at is not None or self.child is None:
            return
        running.interrupted_at = self.around.clock()
        try:
            self.around.router.send(self.child.identity, Cancel(*running.key))
        except Unreachable as error:
            self.hang(str(error))

    def interrupt(self) -> None:
        """See :meth:`Desk.interrupt`."""
        if self.current is not None:
            self._interrupt(self.current, Why.RESTART if self.life.state is State.RECYCLING else Why.STOP)

    def hand_back(self) -> None:
        """Nothing that waits has cost anything: it goes back uncounted."""
        self._all_back(self.last_cause or "its process has ended")

    def _all_back(self, reason: str) -> None:
        if self.life.state in (State.BACKOFF, State.BROKEN) and not self.life.was_up:
            error = f"the {self.name} handler cannot start: {reason}"
            self.give_back("handler.start_failed", reason, error_message("handler.start_failed", error))
        elif self.life.state in (State.STOPPED, State.STOPPING, State.DRAINING):
            self.give_back("worker.stopping", "the worker stops")
        else:
            self.give_back("handler.restarted", reason)

    def give_back(self, code: str, reason: str, error: str | None = None) -> None:
        """All that has not begun goes back uncounted; ``error`` stays on the rows."""
        while self.waiting:
            running = self.waiting.popleft()
            self.settle(running, running.given_back(code, reason, self.around.clock(), error))

    def lose_work(self, code: str, cause: str, death: Death) -> None:
        """See :meth:`Desk.lose_work`."""
        running, self.current = self.current, None
        self._free_next = False  # it has been given back with the process
        if running is None:
            return
        ending = running.lost(code, cause, death.as_dict(), self.around.clock())
        self.settle(running, None if running.why is Why.LOST else ending)

    # -- time --------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Besides the timers of every desk: no progress within the phase's limit, no end after a cancellation."""
        super().tick(now)
        if self._weigh_by is not None and now >= self._weigh_by:
            self._weigh_by = None
            self.ready()
        if self.current is not None and self._hung is None:
            due, reason = self._deadline(self.current)
            if now >= due:
                self.hang(reason)

    def next_tick(self) -> float | None:
        """See :meth:`Desk.next_tick`. A hang is found when its limit is over, not at the next look around."""
        times = [super().next_tick(), self._weigh_by]
        if self.current is not None and self._hung is None:
            times.append(self._deadline(self.current)[0])
        return min((when for when in times if when is not None), default=None)

    def _deadline(self, running: Running) -> tuple[float, str]:
        """When a run counts as hung if it stays as it is, and why it does then."""
        limit = self.limits_s.get(running.phase, PHASE_LIMITS_S.get(running.phase, PHASE_LIMITS_S["step"]))
        due, reason = running.progressed_at + limit, f"no progress within {limit:.0f}s in phase {running.phase}"
        if running.interrupted_at is not None:
            grace = min(DANGER_GRACE_S, self.cancel_grace_s) if running.why is Why.DANGER else self.cancel_grace_s
            if running.interrupted_at + grace < due:
                due = running.interrupted_at + grace
                reason = f"did not end its task within {grace:.0f}s of the cancellation"
        return due, reason

    @property
    def at_rest(self) -> bool:
        """See :attr:`Desk.at_rest`."""
        return super().at_rest and self._weigh_by is None

    def task_ids(self) -> set[str | None]:
        """See :meth:`Desk.task_ids`."""
        return {running.task.id for running in self.tasks()}

    def tasks(self) -> list[Running]:
        """All tasks at this desk."""
        return [*([self.current] if self.current else []), *self.waiting]

    def describe(self) -> dict[str, Any]:
        """See :meth:`Desk.describe`."""
        return {**super().describe(), "task": self.current.task.id if self.current else None}
