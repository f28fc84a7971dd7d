"""The composition root: builds every part in order, runs the loop, and takes everything down in reverse."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from wan2gp import __version__, cgroups
from wan2gp.config import Config
from wan2gp.logs import Facts, Log
from wan2gp.processes import adopt_orphans, start_time
from wan2gp.rundir import DataDirLock, RunDir, RunInfo, create_token, remove_run, write_run
from wan2gp.supervisor.backends import chosen_kind, open_backend
from wan2gp.supervisor.claimer import Claimer
from wan2gp.supervisor.control_server import ControlServer, below_us
from wan2gp.supervisor.fairness import Fairness
from wan2gp.supervisor.gpus import GpuReader
from wan2gp.supervisor.inbox import Inbox
from wan2gp.supervisor.leases import LeaseKeeper, boot_clock
from wan2gp.supervisor.ledger import Ledger, already_here, came_before, end_strays
from wan2gp.supervisor.log_shipper import STOP_S, LogShipper
from wan2gp.supervisor.loop import Loop
from wan2gp.supervisor.nvml import Nvml
from wan2gp.supervisor.operations import LoopOperations
from wan2gp.supervisor.places import HANDLERS, WORK, clear_but
from wan2gp.supervisor.profiles import Profiles
from wan2gp.supervisor.protection import OFF, Protection, protection
from wan2gp.supervisor.queue import QueueUnavailable
from wan2gp.supervisor.readiness import obstacles
from wan2gp.supervisor.registry import Registry, load_registry
from wan2gp.supervisor.router import Router
from wan2gp.supervisor.settler import Settler
from wan2gp.supervisor.spool import Spool
from wan2gp.supervisor.stores import bucket_warning, completed_by, signer_for, store_for
from wan2gp.supervisor.watches import Watches

NOTE_EVERY_S = 0.1
"""Time between two notes of our processes for the next life, seconds."""
LOOK_EVERY_S = 2.0
"""Time between two looks for strays and at the embedded database, seconds."""
STARTING = "starting"
"""What our row in `workers` says before the loop runs."""
STOPPED = "stopped"
"""What our row in `workers` says after an orderly end: the worker id is free."""
TAKE_AGAIN_S = (0.05, 0.2, 0.8, 0.0)
"""Pauses after the tries to get the worker id, whose row somebody else may be writing at that moment, seconds."""
SPOOL_AT_START_S = 30.0
LOOK_AT_SPOOL_S = 0.25
END_S, LEAST_S = 2.5, 0.1
"""How long the threads may take to end when nothing answers them, together and each at least, seconds."""
FLUSH_S = 2.0
"""How long the last outcomes may take to reach the database at the end; what does not stays in the spool, seconds."""


class WorkerIdBusy(Exception):
    """Another live worker, with another data directory, has this worker's id."""


class Superseded(WorkerIdBusy):
    """It got it while we ran."""


@dataclass(frozen=True)
class Order:
    """What the command line asks for beyond the configuration."""

    once: bool = False
    takeover: bool = False


class App:
    """One worker, from its lock to its last word. :meth:`run` must be called from the main thread."""

    def __init__(self, config: Config, order: Order) -> None:
        self._config = config
        self._order = order
        self._log = Log(_secrets(config))
        self._facts: Facts = self._log.facts()
        self._look_at = self._note_at = 0.0
        self._stopped = False
        self._said_of_database: str | None = None
        self._said_deaf = False
        self._nvml = Nvml()
        self._gpus = GpuReader(nvml=self._nvml)
        self._end_by: float | None = None
        self._superseded = threading.Event()

    def run(self) -> None:
        """Until stopped. Raises the errors that ``__main__`` turns into exit codes."""
        config = self._config
        _on_signals(_leave)
        with contextlib.ExitStack() as opened:
            # Nothing is bound, and nothing of an earlier life touched, before the data directory is ours.
            kind, registry = chosen_kind(config), load_registry(config)
            lock = DataDirLock.take(config.data_dir)
            opened.callback(lock.release)
            self._log.open(config.data_dir / "logs")
            opened.callback(self._log.close)
            opened.callback(self._facts, "worker.stopped", worker=config.worker_id)
            for warning in config.warnings:
                self._facts("worker.warning", text=warning)
            self._ledger = Ledger(config.data_dir / "children.json")
            self._sweep()
            profiles, found = self._confine(registry, opened)
            with _undisturbed():  # a signal in between would leave it behind
                run_dir = RunDir.prepare(config, profiles.socket_group)
                opened.callback(run_dir.remove)
            self._backend = open_backend(config, kind, run_dir.path, self._facts)
            opened.callback(self._backend.close)
            for note in self._backend.notes:
                self._facts("worker.warning", text=note)
            self._instance = instance_of(config.data_dir)
            self._take_worker_id()
            try:
                self._serve(registry, profiles, found, run_dir, opened)
            except Superseded:
                self._facts("worker.superseded", worker=config.worker_id)
                raise

    def _sweep(self) -> None:
        """What a life left that was killed, also when this one ends before it has as much to leave."""
        remove_run(self._config.data_dir)
        self._foreign = already_here()
        adopt_orphans()
        count = self._ledger.sweep()
        if count:
            self._facts("worker.swept", count=count)

    def _confine(self, registry: Registry, opened: contextlib.ExitStack) -> tuple[Profiles, Protection]:
        """What handlers may do. Before there is a second thread, since the kernel is asked by a fork."""
        limits: Mapping[str, str] = {}
        if self._config.sandbox != OFF:
            limits = cgroups.prepare()
            opened.callback(cgroups.release)
        profiles = Profiles(self._config, registry, make=True)
        for note in profiles.notes:
            self._facts("worker.warning", text=note)
        found = protection(self._config, profiles, limits)
        found.require()
        found.tell(self._facts)
        return profiles, found

    def _serve(
        self,
        registry: Registry,
        profiles: Profiles,
        found: Protection,
        run_dir: RunDir,
        opened: contextlib.ExitStack,
    ) -> None:
        config, facts, queue = self._config, self._facts, self._backend.queue
        router = Router(run_dir.router)
        if run_dir.group is not None:
            router.open_to(run_dir.group)
        opened.callback(router.close)
        inbox = Inbox()
        opened.callback(inbox.close)
        once = self._order.once
        loop = Loop(config, registry, router, profiles, found, facts, inbox, once=once, every_tick=self._tick)
        self._loop = loop
        opened.callback(self._end_children)
        self._ship_logs(loop, opened)
        spool = Spool(config.data_dir / "spool", config.data_dir / HANDLERS)
        opened.callback(spool.close)
        self._clear_work(spool)
        (config.data_dir / "logs" / "handlers").mkdir(parents=True, exist_ok=True)
        settler = Settler(
            completed_by(config, self._backend, facts),
            spool,
            store_for(config, self._backend),
            facts,
            loop.settled,
            loop.crash,
            uploads=config.uploads,
            progressed=loop.publishing,
            retried=loop.publishing_again,
            aside=config.data_dir / HANDLERS,
        )
        leases = LeaseKeeper(
            queue,
            config.worker_id,
            config.lease_s,
            config.renew_s,
            facts,
            self._metadata,
            loop.heard,
            superseded=lambda: self._give_way(loop),
            failed=loop.crash,
        )
        claimer = Claimer(
            queue,
            registry,
            config.worker_id,
            config.lease_s,
            config.poll_interval_s,
            Fairness(config.claim_fairness_claims, config.claim_fairness_s),
            facts,
            claimed=loop.claimed,
            idle=loop.idle,
            woken=leases.poke,
            failed=loop.crash,
        )
        signer = signer_for(config, self._backend, inbox.post)
        opened.callback(signer.stop)
        loop.attach(claimer, leases, settler, signer)
        opened.callback(lambda: settler.stop(self._time_left()))
        opened.callback(lambda: leases.stop(self._time_left()))
        self._recover(settler, leases, spool)
        watches = Watches(config, loop, inbox, facts, self._nvml)
        opened.callback(watches.stop)
        watches.start()
        self._announce(run_dir, LoopOperations(loop, inbox, self._backend, watches), inbox, opened)
        self._stop_if_superseded()
        claimer.start()
        opened.callback(self._last_claims, claimer, inbox, settler)
        _on_signals(lambda: inbox.post(loop.stop))
        opened.callback(_off_signals)  # the first to go: what a signal posts to is closed soon
        facts("worker.started", worker=config.worker_id, poll_s=config.poll_interval_s)
        threading.Thread(target=self._look_at_the_bucket, name="bucket", daemon=True).start()
        try:
            loop.run()
        except Superseded:
            # As if all leases were lost: no child works on for a task that may be another's already.
            for desk in loop.desks:
                if desk.child is not None:
                    desk.child.kill()
            loop.abandon()
            raise
        except BaseException as error:
            facts("worker.crashed", error=repr(error))
            loop.abandon()
            raise

    def _give_way(self, loop: Loop) -> None:
        """Another has our id; from the lease keeper's thread, perhaps before the loop runs."""
        self._superseded.set()
        loop.crash(self._left())

    def _left(self) -> Superseded:
        return Superseded(f"another worker has taken the id {self._config.worker_id} over")

    def _stop_if_superseded(self) -> None:
        """Before anything is done in the name of our id that its new owner would suffer from."""
        if self._superseded.is_set():
            raise self._left()

    def _look_at_the_bucket(self) -> None:
        """Beside the start, which no Storage that hangs may hold up."""
        with contextlib.suppress(RuntimeError):  # the worker stops already, and its connections are closed
            warning = bucket_warning(self._config, self._backend)
            if warning is not None:
                self._facts("worker.warning", text=warning)

    def _ship_logs(self, loop: Loop, opened: contextlib.ExitStack) -> None:
        """Where the database keeps its workers' logs: a pod scaler takes the first line for a sign of life."""
        if not self._config.ship_logs:
            return
        shipper = LogShipper(self._backend.queue, self._config.worker_id, self._facts, loop.crash)
        shipper.start()
        opened.callback(lambda: shipper.stop(min(STOP_S, self._time_left())))
        self._log.listen(shipper.offer)
        opened.callback(self._log.listen, None)

    def _recover(self, settler: Settler, leases: LeaseKeeper, spool: Spool) -> None:
        """First what the last life finished, which its leases still cover; then what it left running goes back.

        Results with files are published meanwhile: only what the database does not take stops a start.
        """
        for ending in spool.leftovers():
            if ending.artifacts and not ending.refused:
                leases.hold(ending.task_id, ending.lease_id, ending.token, boot_clock())
        settler.start()
        leases.start()
        deadline, before = time.monotonic() + SPOOL_AT_START_S, settler.depth
        while settler.depth > len(settler.unpublished()) and settler.error is None and time.monotonic() < deadline:
            self._stop_if_superseded()
            settler.flush(LOOK_AT_SPOOL_S)
            if settler.depth < before:  # only standing still is a failure
                deadline, before = time.monotonic() + SPOOL_AT_START_S, settler.depth
        if settler.error is not None:
            raise settler.error
        waiting = settler.unpublished()
        if settler.depth > len(waiting):
            raise QueueUnavailable("the outcomes of the last run cannot be delivered")
        self._hold_worker_id()
        taken = self._backend.queue.reclaim_own(self._config.worker_id, [ending.token for ending in waiting])
        if taken:
            self._facts("worker.took_back", count=len(taken))

    def _hold_worker_id(self) -> None:
        """A start may take longer than a lease, after which another may have the id: then what stands under it is
        the other's work. Raises :class:`Superseded`."""
        if self._backend.kind != "edge":  # which has nowhere to write whose the id is
            reply = self._backend.queue.heartbeat(self._config.worker_id, (), self._config.lease_s, self._metadata())
            if reply.superseded:
                self._superseded.set()
        self._stop_if_superseded()

    def _announce(
        self, run_dir: RunDir, operations: LoopOperations, inbox: Inbox, opened: contextlib.ExitStack
    ) -> None:
        config = self._config
        token = create_token(config.data_dir)
        control = ControlServer(
            run_dir.control,
            token,
            self._backend.queue,
            operations,
            data_dir=config.data_dir,
            fault=lambda error: self._facts("worker.warning", text=f"A control request failed: {error!r}"),
            gpus=self._gpus.read,
            turned_away=lambda counts: self._facts("control.turned_away", counts=_counted(counts)),
            ours=lambda pid: below_us(pid) and not came_before(pid, self._foreign),
            intruded=lambda pid: inbox.post(lambda: self._loop.intruded(pid)),
        )
        control.start()
        opened.callback(control.stop)
        opened.callback(remove_run, config.data_dir)
        info = RunInfo(
            pid=os.getpid(),
            start_ticks=start_time(os.getpid()) or 0,
            run_dir=str(run_dir.path),
            worker=config.worker_id,
            started_at=datetime.datetime.now(datetime.timezone.utc).isoformat(),
            version=__version__,
            database=self._backend.kind,
        )
        write_run(config.data_dir, info)

    # -- while it runs -----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Called by the loop at every turn: cheap unless something is due."""
        loop, now = self._loop, time.monotonic()
        if loop.strays_likely:  # at once: what is left of a dead handler may hold a GPU
            loop.strays_likely = False
            self._end_strays()
        if now < self._note_at:
            return
        self._note_at = now + NOTE_EVERY_S
        children = [desk.child for desk in loop.desks if desk.child is not None]
        pids = [pid for child in children for pid in (child.shim_pid, child.pid) if pid is not None]
        pids += [pid for desk in loop.desks if isinstance(pid := desk.engine.get("pid"), int)]
        self._ledger.write(pids)
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._end_strays()
            deaf = getattr(self._backend.queue, "swallowed", False)
            if deaf and not self._said_deaf:
                self._facts("queue.deaf")
            self._said_deaf = deaf
            said = self._backend.revive()
            if said is not None and said != self._said_of_database:
                self._facts("worker.warning", text=said)
            self._said_of_database = said

    def _end_strays(self) -> None:
        owned = {desk.child.shim_pid for desk in self._loop.desks if desk.child is not None}
        if self._backend.embedded is not None and self._backend.embedded.pid is not None:
            owned.add(self._backend.embedded.pid)
        count = end_strays(frozenset(owned), self._foreign)
        if count:
            self._facts("handler.strays", count=count)

    def _metadata(self) -> Mapping[str, Any]:
        """Our row in `workers`; from the lease keeper's thread, so only plain reads."""
        return {
            "version": __version__,
            "instance": self._instance,
            "state": STOPPED if self._stopped else self._loop.stage.value,
            "ready": not (self._stopped or obstacles(self._loop)),
            "handlers": {name: desk.life.state.value for name, desk in self._loop.handlers.items()},
            "sandbox": {"mode": self._loop.protection.mode, "missing": [*self._loop.protection.missing]},
            **self._gpus.vram(),
        }

    def _take_worker_id(self) -> None:
        """Two workers of one id would take back each other's tasks. It is ours once our heartbeat stands in its row: of
        two who come at once only one gets there, and nobody while somebody else has the row locked."""
        worker_id, lease_s, takeover = self._config.worker_id, self._config.lease_s, self._order.takeover
        age = self._silence_of_another()
        if age is not None and not takeover:
            raise WorkerIdBusy(
                f"a worker named {worker_id} sent a heartbeat {age:.0f}s ago from elsewhere: "
                "give another --worker, or --takeover when it is dead"
            )
        if age is not None:
            self._facts("worker.warning", text=f"Taking the worker id {worker_id} over")
        if self._backend.kind == "edge":
            return  # there is nowhere to write whose the id is
        said = {"version": __version__, "instance": self._instance, "state": STARTING, "takeover": takeover}
        for pause in TAKE_AGAIN_S:
            if self._backend.queue.heartbeat(worker_id, (), lease_s, said).superseded:
                break
            if self._silence_of_another() is None:
                return
            time.sleep(pause)
        raise WorkerIdBusy(
            f"another worker named {worker_id} starts elsewhere at this moment: give one of them another --worker"
        )

    def _silence_of_another(self) -> float | None:
        """How long ago another living instance of our id was heard of, seconds; None when there is none."""
        for row in self._backend.queue.stats().get("workers", ()):
            said = row.get("metadata") or {}
            theirs, age = said.get("instance"), row.get("silent_s")
            # After a jump of the database's clock the last heartbeat may lie in the future, which says nothing.
            fresh = age is not None and abs(age) < self._config.lease_s and said.get("state") != STOPPED
            if row.get("id") == self._config.worker_id and theirs and theirs != self._instance and fresh:
                return float(age)
        return None

    # -- at the end --------------------------------------------------------------------------------------------------

    def _last_claims(self, claimer: Claimer, inbox: Inbox, settler: Settler) -> None:
        """A claim that was on its way when the loop ended goes back, uncounted."""
        claimer.stop(self._time_left())
        self._loop.refuse_all()
        inbox.drain()
        settler.flush(min(FLUSH_S, self._time_left()))
        self._stopped = True

    def _time_left(self) -> float:
        """For the next part to end, seconds: together they get no more than :data:`END_S`."""
        now = time.monotonic()
        self._end_by = self._end_by or now + END_S
        return max(LEAST_S, self._end_by - now)

    def _end_children(self) -> None:
        """After a crash there may be children; after an orderly stop there are none."""
        for desk in self._loop.desks:
            if desk.child is not None:
                desk.child.kill()
                desk.child.release()
        self._end_strays()
        self._ledger.write(())

    def _clear_work(self, spool: Spool) -> None:
        """Directories of runs that are over; what the spool still needs stays."""
        needed = frozenset(Path(ending.work_dir) for ending in spool.leftovers())
        clear_but(self._config.data_dir / WORK, needed, self._config.data_dir / HANDLERS)


def instance_of(data_dir: Path) -> str:
    """Names the data directory, whichever process serves it."""
    path = data_dir / "instance"
    with contextlib.suppress(FileNotFoundError):
        if known := path.read_text().strip():
            return known
    made, fresh = str(uuid.uuid4()), path.with_suffix(".new")
    fresh.write_text(made)
    fresh.rename(path)
    return made


def _on_signals(stop: Callable[[], None]) -> None:
    """Signals only enqueue."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals that stop the worker wait until this is over."""
    stops = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)


def _leave() -> None:
    """Before there is anything to stop in order: unwind what was opened, and that is all."""
    _off_signals()
    raise SystemExit(0)


def _off_signals() -> None:
    """The end has begun and every wait in it is bounded: another signal changes nothing.

    Not SIG_IGN: Python complains of a signal that it has noted and whose handler is ignored by the time it looks.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} ({why})" for why, count in sorted(counts.items()))


def _secrets(config: Config) -> list[str]:
    """What must never stand in a log line."""
    found = [config.supabase_key.reveal(), config.database_url.reveal()]
    with contextlib.suppress(ValueError):
        password = urlsplit(config.database_url.reveal()).password
        if password:
            found += [password, unquote(password)]
    found += [token.reveal() for token in config.handler_secrets.values()]
    return [secret for secret in found if secret]
