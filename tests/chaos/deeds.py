"""The faults: each is done to whoever is there at that moment, undone when its time is over, and written down."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg

from tests.chaos.plan import DeedPlan, as_line, written
from tests.chaos.records import Deed
from tests.chaos.stage import Actor, Stage
from tests.storage_stand_in import Refusal
from wan2gp.processes import descendants
from wan2gp.supervisor.embedded import EmbeddedUnavailable

FSYNC_S = 0.15
"""How long a flush takes on a slow disk, seconds."""
LOOK_S = 2
AGAIN_S, DATABASE_S = 0.1, 20.0
"""Between two tries to start the database, and how long it is tried, seconds."""
LIST = "deeds.jsonl"
WORKERS_SESSIONS = (
    "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'wan2gp%' AND pid <> pg_backend_pid() ORDER BY pid"
)
HELD = """SELECT l.task_id::text AS id, t.task_type FROM task_leases l JOIN tasks t ON t.id = l.task_id
           WHERE l.token IS NOT NULL AND l.worker_id = %s AND l.phase IS NOT NULL ORDER BY l.claimed_at"""
Undo = Callable[[], None]


class Doer:
    """Called from the main thread alone: a database that is started elsewhere would end with the thread."""

    def __init__(self, stage: Stage, start_s: float) -> None:
        self.done: list[Deed] = []
        self.outages: list[tuple[float, float]] = []
        self.nobody = 0
        """Deeds for which there was no victim."""
        self._stage = stage
        self._start_s = start_s
        self._waiting = list(stage.plan.deeds)
        self._undo: list[tuple[float, int, Undo]] = []
        self._refused: set[str] = set()
        """Workers whose connections are refused now."""
        self._storage_is_down = False
        self._list = (stage.folder / LIST).open("w", buffering=1)
        self._list.write(written(stage.plan) + "\n")

    @property
    def idle(self) -> bool:
        """Nothing is to be done or undone any more."""
        return not self._waiting and not self._undo

    def turn(self) -> None:
        """Do what is due."""
        now_s = time.monotonic()
        while self._undo and (first := min(self._undo, key=lambda one: one[0]))[0] <= now_s:
            self._undo.remove(first)
            first[2]()
        while self._waiting and self._start_s + self._waiting[0].at_s <= now_s:
            self._do(self._waiting.pop(0))

    def close(self) -> None:
        """Everything is undone. Safe to repeat."""
        self._waiting = []
        for _, _, undo in sorted(self._undo, key=lambda one: one[0]):
            undo()
        self._undo = []
        self._list.close()

    def _do(self, plan: DeedPlan) -> None:
        deed = getattr(self, f"_{plan.name}_{plan.victim}", None) or getattr(self, f"_{plan.name}")
        at_s = round(time.monotonic() - self._start_s, 3)
        struck: Deed | None = deed(plan)
        if struck is None:
            self.nobody += 1
            return
        self.done.append(struck)
        seen = {"pid": struck.pid, "task": struck.task_id, "handler": struck.handler, "at": round(struck.at, 3)}
        self._list.write(as_line(replace(plan, at_s=at_s), **seen) + "\n")

    def _later(self, seconds: float, undo: Undo) -> float:
        """Undo something after so many seconds; the time at which that will be."""
        self._undo.append((time.monotonic() + seconds, len(self.done), undo))
        return time.time() + seconds

    # -- processes ---------------------------------------------------------------------------------------------------

    def _kill(self, plan: DeedPlan) -> Deed | None:
        return self._signal(plan, signal.SIGKILL)

    def _freeze(self, plan: DeedPlan) -> Deed | None:
        return self._signal(plan, signal.SIGSTOP)

    def _signal(self, plan: DeedPlan, number: int) -> Deed | None:
        actor = self._stage.actors[plan.worker]
        found = self._victim(actor, plan)
        if found is None:
            return None
        pid, handler = found
        task = self._task(actor, handler)
        until = None
        if plan.victim == "supervisor" and number == signal.SIGKILL:
            actor.expected = True
        at = time.time()
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return None
        if number == signal.SIGSTOP:
            until = self._frozen(actor if plan.victim == "supervisor" else None, pid, plan.seconds)
        return Deed(at, plan.name, plan.victim, plan.worker, pid, task, handler, until)

    def _victim(self, actor: Actor, plan: DeedPlan) -> tuple[int, str | None] | None:
        if not actor.lives_now:
            return None
        if plan.victim == "supervisor":
            return actor.pid, None
        if plan.victim == "backend":
            pids = self._sessions()
            return (pids[plan.pick % len(pids)], None) if pids else None
        found = actor.below(plan.victim)
        if not found:
            return None
        pid, handler = found[plan.pick % len(found)]
        return pid, handler or None

    def _task(self, actor: Actor, handler: str | None) -> str | None:
        """What the victim is working on, as far as the database can tell now."""
        if handler in (None, "courier"):
            return None
        held = self._ask(HELD, actor.name)
        return next((row[0] for row in held if row[1] == handler), None)

    def _frozen(self, actor: Actor | None, pid: int, seconds: float) -> float:
        pause = [time.time(), time.time() + seconds]
        self._stage.frozen.add(pid)
        if actor is not None:
            actor.pauses.append(pause)

        def thaw() -> None:
            self._stage.frozen.discard(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            pause[1] = time.time()

        return self._later(seconds, thaw)

    def _stop_supervisor(self, plan: DeedPlan) -> Deed | None:
        actor = self._stage.actors[plan.worker]
        if not actor.lives_now:
            return None
        actor.expected = True
        at = time.time()
        actor.worker.process.send_signal(signal.SIGTERM)
        return Deed(at, plan.name, plan.victim, plan.worker, actor.pid)

    # -- the database ------------------------------------------------------------------------------------------------

    def _restart_database(self, plan: DeedPlan) -> Deed:
        self._thaw_backends()
        at = time.time()
        pid = self._stage.server.pid
        self._stage.server.stop_server()

        return Deed(at, plan.name, plan.victim, None, pid, until=self._back_up(at, plan.seconds))

    def _kill_database(self, plan: DeedPlan) -> Deed | None:
        """The postmaster: its children end by themselves, and the next start recovers from the log."""
        pid = self._stage.server.pid
        if pid is None:
            return None
        self._thaw_backends()
        at = time.time()
        os.kill(pid, signal.SIGKILL)
        return Deed(at, plan.name, plan.victim, None, pid, until=self._back_up(at, plan.seconds))

    def _back_up(self, at: float, seconds: float) -> float:
        """It runs again after so many seconds; the time at which that will be."""

        def start() -> None:
            deadline = time.monotonic() + DATABASE_S
            while True:
                try:
                    self._stage.server.start_server()
                    break
                except EmbeddedUnavailable:  # children of the last one are not gone yet
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(AGAIN_S)
            self.outages.append((at, time.time()))

        return self._later(seconds, start)

    def _terminate_backend(self, plan: DeedPlan) -> Deed | None:
        """All of the workers' sessions at once."""
        at = time.time()
        pids = self._sessions()
        ended = self._ask("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", pids) if pids else []
        return Deed(at, plan.name, plan.victim) if ended else None

    def _kill_backend(self, plan: DeedPlan) -> Deed | None:
        """By the kernel, upon which Postgres ends all sessions and recovers as after a crash."""
        self._thaw_backends()
        struck = self._signal(plan, signal.SIGKILL)
        if struck is not None:
            self.outages.append((struck.at, self._database_back()))
        return struck

    def _freeze_backend(self, plan: DeedPlan) -> Deed | None:
        """It may hold locks that others wait for: the database stands still."""
        struck = self._signal(plan, signal.SIGSTOP)
        if struck is not None and struck.until is not None:
            self.outages.append((struck.at, struck.until))
        return struck

    def _thaw_backends(self) -> None:
        """A server that ends waits for its sessions, and one that stands still would hold it up."""
        if self._stage.server.pid is not None:
            for pid in self._stage.frozen & set(descendants(self._stage.server.pid)):
                os.kill(pid, signal.SIGCONT)

    def _database_back(self) -> float:
        deadline = time.monotonic() + 10.0
        while not self._ask("SELECT 1") and time.monotonic() < deadline:
            time.sleep(0.02)
        return time.time()

    def _sessions(self) -> list[int]:
        return [row[0] for row in self._ask(WORKERS_SESSIONS)]

    def _ask(self, statement: str, *values: Any) -> list[Any]:
        """Nothing when the database is away."""
        try:
            with psycopg.connect(
                self._stage.url, autocommit=True, connect_timeout=LOOK_S, options=f"-c statement_timeout={LOOK_S}s"
            ) as connection:
                return connection.execute(statement.encode(), values or None).fetchall()
        except psycopg.OperationalError:
            return []

    # -- what lies between and beside --------------------------------------------------------------------------------

    def _cut_network(self, plan: DeedPlan) -> Deed:
        """Nothing passes, and nobody is told."""
        link = self._stage.actors[plan.worker].link
        link.freeze()
        return self._apart(plan, link.thaw)

    def _refuse_network(self, plan: DeedPlan) -> Deed | None:
        """All connections break, and new ones are refused."""
        if plan.worker in self._refused:
            return None
        link = self._stage.actors[plan.worker].link
        link.cut()
        self._refused.add(plan.worker)

        def mend() -> None:
            link.mend()
            self._refused.discard(plan.worker)

        return self._apart(plan, mend)

    def _apart(self, plan: DeedPlan, mend: Undo) -> Deed:
        """The worker alone is without its database for a while."""
        at = time.time()
        pause = [at, at + plan.seconds]
        self._stage.actors[plan.worker].pauses.append(pause)

        def over() -> None:
            mend()
            pause[1] = time.time()

        return Deed(at, plan.name, plan.victim, plan.worker, until=self._later(plan.seconds, over))

    def _drop_network(self, plan: DeedPlan) -> Deed | None:
        """Every connection breaks; new ones pass."""
        if plan.worker in self._refused:
            return None
        at = time.time()
        link = self._stage.actors[plan.worker].link
        link.cut()
        link.mend()
        return Deed(at, plan.name, plan.victim, plan.worker)

    def _slow_disk(self, plan: DeedPlan) -> Deed:
        control = self._stage.slow / "delay"
        at = time.time()
        control.write_text(str(FSYNC_S))
        return Deed(
            at, plan.name, plan.victim, until=self._later(plan.seconds, lambda: control.unlink(missing_ok=True))
        )

    def _refuse_storage(self, plan: DeedPlan) -> Deed | None:
        """5xx, as a gateway gives them while what is behind it is overloaded."""
        if self._stage.storage is None:
            return None
        refusals = self._stage.storage.storage.mischief.refusals
        refusal = Refusal((500, 502, 503, 504)[plan.pick % 4], "upstream", times=1000)
        refusals.append(refusal)
        at = time.time()

        def lift() -> None:
            refusal.times = 0

        return Deed(at, plan.name, plan.victim, until=self._later(plan.seconds, lift))

    def _forget_storage(self, plan: DeedPlan) -> Deed | None:
        """The next uploads are done and not answered, others are cut off in their middle."""
        if self._stage.storage is None:
            return None
        mischief = self._stage.storage.storage.mischief
        mischief.lost += 1
        mischief.cuts.append(plan.pick % 200)
        return Deed(time.time(), plan.name, plan.victim)

    def _down_storage(self, plan: DeedPlan) -> Deed | None:
        """Connections are refused."""
        storage = self._stage.storage
        if storage is None or self._storage_is_down:
            return None
        at = time.time()
        storage.down()
        self._storage_is_down = True

        def up() -> None:
            storage.up()
            self._storage_is_down = False

        return Deed(at, plan.name, plan.victim, until=self._later(plan.seconds, up))
