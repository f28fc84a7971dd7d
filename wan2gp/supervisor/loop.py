"""The supervisor's loop: one thread that owns all desks and decides everything; others only post to its inbox.

It waits for the wire, the inbox, the children's descriptors and the next timer, and never for a database or a disk.
"""

from __future__ import annotations

import enum
import select
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wan2gp.config import Config
from wan2gp.logs import Facts
from wan2gp.protocol import Failed, Fetched, Outcome, ProtocolError, Source
from wan2gp.supervisor.blame import UNHEALTHY, Blame
from wan2gp.supervisor.child import Child
from wan2gp.supervisor.claimer import Claimer, Offer
from wan2gp.supervisor.courier_desk import CourierDesk
from wan2gp.supervisor.desk import Desk, Surroundings
from wan2gp.supervisor.gpu_slot import SlotLimits
from wan2gp.supervisor.gpu_turns import GpuSeen, GpuTurns
from wan2gp.supervisor.handler_desk import Freeing, HandlerDesk
from wan2gp.supervisor.health import Health
from wan2gp.supervisor.inability import Inability
from wan2gp.supervisor.inbox import Inbox
from wan2gp.supervisor.kin import FAR_EVERY_S, Kin
from wan2gp.supervisor.leases import Key, LeaseKeeper, boot_clock
from wan2gp.supervisor.lifecycle import Life, On, State, jitter
from wan2gp.supervisor.model_fetches import MODELS, ModelFetches
from wan2gp.supervisor.profiles import Profiles
from wan2gp.supervisor.protection import Protection
from wan2gp.supervisor.queue import ClaimedTask, Verb, Warm
from wan2gp.supervisor.registry import COURIER, HandlerSpec, Registry, courier_settings, wan_may_fetch
from wan2gp.supervisor.router import Router
from wan2gp.supervisor.running import Running, Why, within_wire, without_put_url
from wan2gp.supervisor.settler import Settler
from wan2gp.supervisor.signer import Signer
from wan2gp.supervisor.spool import Ending
from wan2gp.supervisor.warm_choice import Loaded, shared_rooms, warm_types
from wan2gp.supervisor.weight import Excess, Weighed

TICK_S = 1.0
"""The loop looks around at least so often while anything runs, seconds."""
IDLE_TICK_S = 5.0
KILL_AFTER_S = 0.5
"""How long an interrupted child may take at the end of the stop ladder, seconds."""
HEAR_OUT_MS = 10
"""How long the wire must be silent before a dead child has said all it had to say, milliseconds."""
HEAR_OUT_ROUNDS = 60
"""Of so many messages each as one peer is heard in one go: together more than a socket and one read of it hold."""
DANGER_MARGIN_S = 5.0
UNABLE_EVERY_S = 10.0
FIRST_LOOK_S, LATER_LOOK_S = 2.0, 0.02
"""How long a look at what handlers need may hold up the loop, where a disk does not answer, seconds."""


class Stage(enum.Enum):
    """What the worker as a whole does."""

    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"


class Loop:
    """Build it, attach the threads' parts with :meth:`attach`, then :meth:`run`."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        router: Router,
        profiles: Profiles,
        protection: Protection,
        facts: Facts,
        inbox: Inbox,
        *,
        once: bool = False,
        every_tick: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.registry = registry
        self.facts = facts
        self.inbox = inbox
        self.protection = protection
        self.stage = Stage.RUNNING
        self.started = clock()
        self._router = router
        self._once = once
        self._profiles, self._places = profiles, profiles.places
        self._every_tick = every_tick
        self._clock = clock
        self._poller = select.poll()
        self._poller.register(router.descriptor, select.POLLIN)
        self._poller.register(inbox.descriptor, select.POLLIN)
        self._watched: dict[int, Callable[[], None]] = {}
        self._got: Counter[str] = Counter()
        self._drained: frozenset[str] = frozenset()
        self._next_due: float | None = None
        self._stop_at: float | None = None
        self._kill_at: float | None = None
        self._unable_at = self._far_at = 0.0
        self._margin_s = min(DANGER_MARGIN_S, config.lease_s / 6)
        self._crash: BaseException | None = None
        self._inability = Inability(registry.specs, config)
        self.health = Health(facts)
        self._blame = Blame(self.health, facts, clock, self._all_back)
        self.weigh: Callable[[], None] = lambda: None
        """Has the memory watch look at once."""
        self._around = Surroundings(
            router,
            facts,
            config.data_dir,
            profiles,
            self._watch,
            self._unwatch,
            self._hear_out,
            self._note_strays,
            clock,
            lambda: self.weigh(),
        )
        self.look_at_gpu: Callable[[bool], None] = lambda anew: None
        """Has the GPU's memory looked at; see :class:`~wan2gp.supervisor.gpu_turns.GpuTurns`."""
        self._turns = GpuTurns(
            SlotLimits(clear_s=config.gpu_clear_s), facts, clock, lambda anew: self.look_at_gpu(anew)
        )
        self.strays_likely = False
        """A shim was killed: what was below it has fallen to us."""
        self.courier = self._courier_desk()
        self.models = ModelFetches(self.courier.fetch, wan_may_fetch(config), clock)
        self.handlers = {name: self._handler_desk(spec) for name, spec in registry.specs.items()}
        for desk in self.desks:
            desk.refused = {layer.value: reason for layer, reason in protection.missing.items()}

    def attach(self, claimer: Claimer, leases: LeaseKeeper, settler: Settler, signer: Signer) -> None:
        """The threads that the loop works with; they must not be started before this."""
        self._claimer, self._leases, self._settler = claimer, leases, settler
        self.courier.sign = signer.sign

    # -- desks -------------------------------------------------------------------------------------------------------

    def _handler_desk(self, spec: HandlerSpec) -> HandlerDesk:
        shares = self.config.gpu_slot != "off" and spec.gpu(self.config)
        desk = HandlerDesk(
            name=spec.name,
            target=spec.target,
            settings=spec.settings(self.config),
            around=self._around,
            start_s=spec.start_s,
            warm_start_s=spec.warm_start_s(self.config),
            life=Life(jitter, spec.patience),
            secrets=spec.secrets(self.config),
            silence_s=spec.silence_s,
            settle=self._settle,
            excuse=self._excuse,
            fetch=self._fetch,
            progressed=self._progressed,
            limits_s=spec.limits_s,
            cancel_grace_s=spec.cancel_grace_s,
            prefetch=self.config.prefetch if spec.prefetch else 0,
            early_inputs=spec.early_inputs,
            may_fetch=spec.may_fetch(self.config),
            turns=self._turns if shares else None,
            models=spec.models,
        )
        if shares:
            self._turns.add(desk)
        return desk

    def _courier_desk(self) -> CourierDesk:
        return CourierDesk(
            name=COURIER,
            target="wan2gp.handlers.courier:Courier",
            settings={**courier_settings(self.config), "shared_user": self._profiles.user(COURIER)[0] is None},
            around=self._around,
            start_s=30.0,
            warm_start_s=30.0,
            answered=self._answered,
            progressed=self._progressed,
        )

    @property
    def desks(self) -> list[Desk]:
        """All of them, the courier last."""
        return [*self.handlers.values(), self.courier]

    def _watch(self, child: Child, look: Callable[[], None]) -> None:
        for descriptor in child.descriptors():
            self._watched[descriptor] = look
            self._poller.register(descriptor, select.POLLIN)

    def _unwatch(self, child: Child) -> None:
        for descriptor in child.descriptors():
            if self._watched.pop(descriptor, None) is not None:
                self._poller.unregister(descriptor)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until stopped, or drained with ``once``. Raises what made a part of the worker fail."""
        self._see_who_is_unable(self._clock(), FIRST_LOOK_S)
        self._prewarm()
        while not self._finished():
            self._offer()
            self._turn(dict(self._poller.poll(self._patience_ms())))
            if self._crash is not None:
                raise self._crash

    def _turn(self, ready: Mapping[Any, int]) -> None:
        # The wire first: an outcome that arrived before its sender's death must win.
        self._hear()
        if self.inbox.descriptor in ready:
            self.inbox.drain()
        for descriptor in ready:
            look = self._watched.get(descriptor)  # a look may unwatch the next one
            if look is not None:
                look()
        self._offer()  # what has become free is claimed for before anything that may wait
        now = self._clock()
        for desk in self.desks:
            desk.tick(now)
        self._turns.tick(now)
        self._look_around(now)

    def _hear(self) -> None:
        names = {desk.child.identity: desk for desk in self.desks if desk.child is not None}
        for identity, message in self._router.receive():
            desk = names.get(identity)
            if desk is not None and desk.child is not None:
                desk.hear(message)

    def _hear_out(self, identity: bytes) -> None:
        self._router.hear_out(identity)
        for _ in range(HEAR_OUT_ROUNDS):
            self._hear()
            if not self._router.wait(HEAR_OUT_MS):
                return

    def _note_strays(self) -> None:
        self.strays_likely = True

    def _patience_ms(self) -> int:
        now = self._clock()
        busy = any(desk.has_process for desk in self.desks) or self.stage is Stage.STOPPING
        times = [when for desk in self.desks if (when := desk.next_tick()) is not None]
        others = (self._stop_at, self._kill_at, self._blame.next_tick(), self._turns.next_tick())
        times += [when for when in others if when is not None]
        times.append(now + (TICK_S if busy else IDLE_TICK_S))
        wire_s = self._router.due_s()
        if wire_s is not None:
            times.append(now + wire_s)
        danger_s = self._leases.danger_in(self._margin_s)
        if danger_s is not None:
            times.append(now + danger_s)
        return max(0, int((min(times) - now) * 1000) + 1)

    def _look_around(self, now: float) -> None:
        if now >= self._unable_at:
            self._see_who_is_unable(now, LATER_LOOK_S)
        for task_id, lease_id in self._leases.in_danger(self._margin_s):
            self._interrupt(task_id, Why.DANGER, lease_id)
        if self._blame.tick(now):
            self._drained = frozenset()
        self._climb_down(now)
        self._every_tick()

    def _see_who_is_unable(self, now: float, wait_s: float) -> None:
        self._unable_at = now + UNABLE_EVERY_S
        if self._inability.look(wait_s):
            self._drained = frozenset()  # of what can be served now nobody has asked yet

    @property
    def unable(self) -> Mapping[str, str]:
        """Handlers that this worker cannot run, with the reason."""
        return self._inability.handlers

    @property
    def unable_types(self) -> Mapping[str, str]:
        """Types of the other handlers that it cannot serve, with the reason."""
        return self._inability.types

    def crash(self, error: BaseException) -> None:
        """From any thread: a part of the worker failed; it must stop rather than limp."""

        def note() -> None:
            self._crash = error

        self.inbox.post(note)

    # -- claiming ----------------------------------------------------------------------------------------------------

    def _offer(self) -> None:
        rooms = {name: desk.room() for name, desk in self.handlers.items() if name not in self.unable}
        shared = frozenset(self._turns.sharers)
        sharing = [self.handlers[name] for name in shared]
        claimed, ahead = sum(len(desk.tasks()) for desk in sharing), max((desk.prefetch for desk in sharing), default=0)
        rooms = {name: room for name, room in shared_rooms(rooms, shared, claimed, ahead).items() if room > 0}
        broken = {name for name, desk in self.handlers.items() if desk.life.state is State.BROKEN}
        slots = self._blame.slots(rooms, self._drained | broken | self.unable.keys())
        self._claimer.offer(Offer(slots, shared, self._warm(shared), frozenset(self.unable_types)), self._got)

    def _warm(self, shared: frozenset[str]) -> tuple[Warm, ...]:
        loaded = [Loaded(name, desk.loaded()) for name, desk in self.handlers.items()]
        return warm_types(self.registry.specs, shared, self._turns.warm, loaded)

    def claimed(self, task: ClaimedTask, sent_at: float) -> None:
        """From the claimer's thread."""
        self._leases.hold(task.id, task.lease_id, task.token, sent_at)
        fit = within_wire(task)
        self.inbox.post(lambda: self._take(fit))

    def _take(self, task: ClaimedTask) -> None:
        spec = self.registry.for_type(task.task_type)
        assert spec is not None  # only registered types are asked for
        self._got[spec.name] += 1
        self._drained = frozenset()
        work_dir = self._places.run(spec.name, task.id, task.lease_id)
        running = Running(task, spec.name, work_dir, self._clock())
        desk = self.handlers[spec.name]
        failed = _unfit(running)
        if failed is not None:
            self._settle(running, running.ended(failed, self._clock()))
        elif not desk.accepting:
            self._settle(running, running.given_back("worker.stopping", "the worker stops", self._clock()))
        elif not self._blame.admits(running):
            self._settle(running, running.given_back(UNHEALTHY, "the worker takes no tasks", self._clock()))
        else:
            desk.take(running)

    def idle(self, handlers: frozenset[str], next_due_s: float | None) -> None:
        """From the claimer's thread: nothing to claim for these handlers."""

        def note() -> None:
            self._drained, self._next_due = handlers, next_due_s

        self.inbox.post(note)

    # -- what becomes of tasks ---------------------------------------------------------------------------------------

    def _settle(self, running: Running, ending: Ending | None) -> None:
        self._blame.ended(running)
        self.courier.forget(running)
        self.courier.relieve()
        for earlier in running.left:
            self._settler.discard(Path(earlier))
        if ending is None:
            self.facts.bind(task=running.task.id)("task.lost", task_id=running.task.id)
            self._leases.drop(*running.key)
            self._settler.discard(Path(running.work_dir))
        else:
            self._settler.submit(ending)

    def _excuse(self, running: Running, outcome: Outcome) -> float | None:
        return self._blame.excuse(running, outcome, self.registry.specs[running.handler].patience.half_open_s)

    def _all_back(self, reason: str) -> None:
        for desk in self.handlers.values():
            desk.give_back(UNHEALTHY, reason)

    def settled(self, ending: Ending) -> None:
        """From the settler's thread: a lease has ended. What went back to the queue may be due before the next poll."""
        self._leases.drop(ending.task_id, ending.lease_id)
        if ending.verb in (Verb.RETRY, Verb.LOSS, Verb.RELEASE) or self._once:
            self.inbox.post(self._look_again)

    def publishing(self, ending: Ending, detail: str) -> None:
        """From a publisher's thread: what is being done about a result whose lease we still hold."""
        self._leases.progress(ending.task_id, ending.lease_id, None, "publish", detail)

    def publishing_again(self, ending: Ending) -> None:
        """A result that was withheld is sent again: its lease may come back to life, and must then be kept."""
        self._leases.hold(ending.task_id, ending.lease_id, ending.token, boot_clock())

    def _look_again(self) -> None:
        self._drained = frozenset()
        self._claimer.look_again()

    def _fetch(self, running: Running, sources: Mapping[str, Source]) -> None:
        self.courier.fetch(running, sources)

    def fetch_models(self, urls: Sequence[str]) -> list[dict[str, Any]]:
        """Fetch weights that no task has asked for yet; what becomes of them."""
        self.models.want(urls)
        return self.models.describe(urls)

    def _answered(self, running: Running, answer: Fetched) -> None:
        if running.handler == MODELS:
            self.models.answered(running, answer)
            return
        self.handlers[running.handler].fetched(running, answer)

    def _progressed(self, running: Running) -> None:
        self._leases.progress(*running.key, running.fraction, running.phase, running.row_detail())

    def heard(self, cancelled: Sequence[Key], lost: Sequence[Key]) -> None:
        """From the lease keeper's thread."""

        def act() -> None:
            for task_id, lease_id in cancelled:
                self._interrupt(task_id, Why.USER, lease_id)
            for task_id, lease_id in lost:
                self._interrupt(task_id, Why.LOST, lease_id)

        self.inbox.post(act)

    def _interrupt(self, task_id: str, why: Why, lease_id: str | None = None) -> bool:
        return any(desk.cancel(task_id, why, lease_id) for desk in self.handlers.values())

    # -- orders from outside, in the loop's thread -------------------------------------------------------------------

    def cancel(self, task_id: str) -> bool:
        """The row was cancelled: tell the handler now."""
        return self._interrupt(task_id, Why.USER)

    def restart(self, name: str) -> bool:
        """Replace a handler's process. False when there is no such handler."""
        desk: Desk | None = self.courier if name == COURIER else self.handlers.get(name)
        if desk is None:
            return False
        self._blame.forgive(name)
        desk.on(On.RESTART)
        return True

    def free(self, name: str) -> Freeing | None:
        """Let a handler give the GPU back. None when there is no such handler."""
        desk = self.handlers.get(name)
        return None if desk is None else desk.free()

    def intruded(self, pid: int) -> None:
        """A process connects to the control socket without end: whoever has brought it forth ends."""
        kin = Kin(pid)
        if not self._blame_intruder(kin) and kin.deep and self._clock() >= self._far_at:
            self._far_at = self._clock() + FAR_EVERY_S
            kin.look_far()
            self._blame_intruder(kin)

    def _blame_intruder(self, kin: Kin) -> bool:
        for desk in self.desks:
            if desk.child is not None and desk.child.owns(kin):
                desk.hear(ProtocolError("it opens connection after connection to the control socket"))
                return True
        return False

    def publish_again(self, task_id: str | None) -> int:
        """Send what could not be published now; how many results that are."""
        return self._settler.retry_publishing(task_id)

    def gpu_seen(self, found: GpuSeen) -> None:
        """What a look at the GPU's memory has found."""
        self._turns.seen(found)

    def weighed(self, found: Mapping[bytes, Weighed]) -> None:
        """What the memory watch has found, by the children's identities."""
        for desk in self.desks:
            if desk.child is not None and (one := found.get(desk.child.identity)) is not None:
                desk.weighed(one)

    def exceeded(self, found: Mapping[bytes, Excess]) -> None:
        """Who is over a limit, by the children's identities."""
        for desk in self.desks:
            if desk.child is not None and (one := found.get(desk.child.identity)) is not None:
                desk.exceeded(one)

    def drain(self) -> None:
        """Claim nothing more; what runs goes on."""
        if self.stage is Stage.RUNNING:
            self.stage = Stage.DRAINING
            self._accept(False)
            self.facts("worker.draining")

    def resume(self) -> bool:
        """Claim again. False when the worker stops."""
        if self.stage is Stage.DRAINING:
            self.stage = Stage.RUNNING
            self._accept(True)
            self.facts("worker.resumed")
        return self.stage is Stage.RUNNING

    def _accept(self, yes: bool) -> None:
        for desk in self.handlers.values():
            desk.accepting = yes

    def abandon(self) -> None:
        """After a failure of the supervisor's own: what it holds goes back uncounted, since no task is to blame."""
        for desk in self.handlers.values():
            for running in desk.tasks():
                running.why = running.why or Why.STOP
                self._settler.submit(running.lost("worker.stopping", "", {}, self._clock()))

    def refuse_all(self) -> None:
        """At the end: a task that still comes goes back at once."""
        self._accept(False)

    # -- stopping ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """SIGTERM: let work end for the grace time. Called again: no more grace."""
        now = self._clock()
        if self.stage is Stage.STOPPING:
            if self._stop_at is not None and self._stop_at > now:  # said once; and nothing is ever put off again
                self.facts("worker.hurrying")
                self._stop_at = now
            return
        self.stage = Stage.STOPPING
        running = sum(len(desk.tasks()) for desk in self.handlers.values())
        self.facts("worker.stopping", running=running, grace_s=self.config.stop_grace_s)
        self._accept(False)
        self._stop_at = now + self.config.stop_grace_s
        for desk in self.handlers.values():
            desk.on(On.STOP)

    def _climb_down(self, now: float) -> None:
        if self.stage is not Stage.STOPPING:
            return
        if self._stop_at is not None and now >= self._stop_at:
            self._stop_at, self._kill_at = None, now + KILL_AFTER_S
            for desk in self.desks:
                desk.on(On.STOP)
        elif all(desk.gone for desk in self.handlers.values()) and self.courier.life.state is not State.STOPPING:
            self.courier.on(On.STOP)  # nobody needs it any more
            self.courier.on(On.STOP)  # also when it is busy with what nobody waits for
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            for desk in self.desks:
                if desk.child is not None:
                    desk.child.kill()

    def _finished(self) -> bool:
        if self.stage is Stage.STOPPING:
            return all(desk.gone for desk in self.desks)
        if self._once and self._all_done():
            self.stop()
        return False

    def _all_done(self) -> bool:
        """With ``once``: nothing claimable is left, nothing runs, nothing waits to be settled or tried again.
        A worker that is unhealthy claims nothing any more."""
        able = {name for name, desk in self.handlers.items() if name not in self.unable and desk.room() > 0}
        resting = all(desk.at_rest for desk in self.handlers.values()) and self._settler.depth == 0
        claimed = self._blame.rests or (self._next_due is None and able <= self._drained)
        return resting and claimed

    def _prewarm(self) -> None:
        for name in self.config.prewarm:
            desk = self.handlers.get(name)
            if desk is not None and name not in self.unable:
                desk.warm = True
                desk.start()

    def _gpu_turns(self) -> dict[str, Any] | None:
        if not self._turns.sharers:
            return None
        holder = self._turns.slot.holder
        model = self.handlers[holder].loaded() if holder is not None else None
        return {**self._turns.describe(), "model": model}

    # -- for people --------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What `wan2gp-ctl status` shows of this process."""
        now = self._clock()
        specs = self.registry.specs
        return {
            "worker": self.config.worker_id,
            "state": self.stage.value,
            "uptime_s": now - self.started,
            "database_ok": self._leases.contact,
            "handlers": [{**desk.describe(), "types": specs[name].task_types} for name, desk in self.handlers.items()]
            + [{**self.courier.describe(), "types": ()}],
            "running": [running.describe(now) for desk in self.handlers.values() for running in desk.tasks()],
            "spool_depth": self._settler.depth,
            "publishing": self._settler.publishing(),
            "unable": dict(self.unable),
            "unable_types": dict(self.unable_types),
            "notices": {name: spec.notice for name, spec in specs.items() if spec.notice and name not in self.unable},
            "gpu_turns": self._gpu_turns(),
            "sandbox": self.protection.mode,
            "unprotected": {layer.value: reason for layer, reason in self.protection.missing.items()},
        }


def _unfit(running: Running) -> Failed | None:
    """Why no handler can have this task, whatever its type."""
    if running.task.unreadable is not None:
        return Failed(running.task.unreadable_code, f"the task's params cannot be read: {running.task.unreadable}")
    try:
        running.task, running.put_url = without_put_url(running.task)
    except ValueError as error:
        return Failed("publish.bad_put_url", f"the result could not be sent: {error}")
    return None
