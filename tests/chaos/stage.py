"""What a run plays on: a Postgres of its own, a storage, workers with a link each, and how they come back to life."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

from tests.chaos.plan import LEASE_S, POLL_S, RENEW_S, Plan
from tests.chaos.records import Life, Sample
from tests.comfy_jobs import make_video
from tests.conftest_comfy import FAULTS, free_port
from tests.conftest_db import PgServer
from tests.conftest_worker import Worker, launch, worker_environment
from tests.faulty_link import FaultyLink
from tests.storage_server import StorageServer
from tests.storage_stand_in import BucketSpec
from wan2gp.demo_stage import InputServer
from wan2gp.processes import adopt_orphans, alive, children, descendants

BUCKET = "image_uploads"
SLOW_DISK = Path(__file__).with_name("slow_disk") / "sitecustomize.py"
BORN_AGAIN_S = 0.2
"""A supervisor that ended is started again after so long, as its container would be, seconds."""
UNBORN_S = 5.0
"""A supervisor that lived for a shorter time may have had no handler for SIGTERM yet, on a busy machine, seconds."""
SAMPLE_EVERY_S = 0.5
LINGER_S = 3.0
"""A process that its supervisor's death leaves for longer has outlived it: one second, and what a busy machine adds."""
HANDLERS, SHIM, SERVER = "wan2gp.handlers", "spawn_main", "wan2gp.comfy_sidecar.builtin"
LIMITS = {"COMFY_STUCK_S": "6", "COMFY_START_TIMEOUT_S": "60"}


@dataclass
class Actor:
    """A worker through all its lives."""

    name: str
    link: FaultyLink
    data_dir: Path
    environ: dict[str, str]
    port: int
    worker: Worker
    born_s: float
    ending: bool = False
    """Its end was brought about from here."""
    expected: bool = False
    """This life was to end, by a signal of ours or because its database was away at the start."""
    due_s: float | None = None
    """When it is to be started again, monotonic; None while it lives."""
    pauses: list[list[float]] = field(default_factory=list)
    """From when to when it could not work though it lived, over all its lives."""
    samples: list[Sample] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    exits: list[tuple[float, int]] = field(default_factory=list)
    """Those that were not to be: when, and with which code."""

    @property
    def pid(self) -> int:
        return self.worker.process.pid

    @property
    def lives_now(self) -> bool:
        return self.due_s is None and self.worker.process.poll() is None

    def below(self, role: str) -> list[tuple[int, str]]:
        """Its processes of that role (handler, shim, courier, server), each with the name of its handler."""
        found = []
        for pid in descendants(self.pid):
            said = role_of(pid)
            if said is not None and said[0] == role:
                found.append((pid, said[1]))
        return sorted(found, key=lambda one: one[1])


def role_of(pid: int) -> tuple[str, str] | None:
    """What a process below a supervisor is, and whose; None for others and for those that are gone."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return None
    if command[-3:-1] == ["-m", HANDLERS]:
        return ("courier" if command[-1] == "courier" else "handler"), command[-1]
    if SERVER in command:
        return "server", "comfy"
    return ("shim", _guarded(pid)) if any(SHIM in part for part in command) else None


def _guarded(shim: int) -> str:
    """The name of the handler below a shim; nothing while there is none yet."""
    below = [role_of(pid) for pid in children(shim)]
    return next((said[1] for said in below if said is not None), "")


class Clip(InputServer):
    """Serves the input video, also to a courier that is killed in the middle."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]


class Stage:
    """A context manager, to be entered in the main thread. ``folder`` keeps everything that is worth a look."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.open = contextlib.ExitStack()
        self.actors: dict[str, Actor] = {}
        self.storage: StorageServer | None = None
        self.frozen: set[int] = set()
        """Processes that were stopped from here and not continued yet."""
        self.errands: set[int] = set()
        """Processes that were started from here and are no workers."""
        self.lingered: dict[int, str] = {}
        """Those that outlived their supervisor for longer than :data:`LINGER_S`, as words."""
        self._strays: dict[int, float] = {}
        self._cpu_s: dict[psutil.Process, float] = {}
        self._options = ("--poll-interval", str(POLL_S))
        self._sampled_s = 0.0

    def __enter__(self) -> Stage:
        adopt_orphans()  # whoever is left behind falls to this process, and is found
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _build(self) -> None:
        self.short = Path(tempfile.mkdtemp(prefix="w2g-c-"))  # sockets' paths have 107 bytes
        self.open.callback(shutil.rmtree, self.short, ignore_errors=True)
        self.server = PgServer(self.folder / "postgres", self.short / "pg")
        self.open.callback(self.server.stop_server)
        self.url = self.server.new_database(self.server.contract_template())
        self.litter = self.folder / "litter"
        self.litter.mkdir()
        self.clip = self.open.enter_context(Clip(make_video(self.folder / "input.mp4")))
        self.slow = self.folder / "slow_disk"
        self.slow.mkdir()
        shutil.copy(SLOW_DISK, self.slow)
        if self.plan.storage:
            self._open_storage()
        for name in self.plan.workers:
            self.actors[name] = self._actor(name)

    def _open_storage(self) -> None:
        self.storage = StorageServer(self.folder / "storage")
        self.storage.start()
        self.open.callback(self.storage.stop)
        self.storage.storage.buckets.setdefault(BUCKET, BucketSpec())

    def _actor(self, name: str) -> Actor:
        link = self.open.enter_context(FaultyLink(self.url))
        port = free_port()
        more = {
            "DATABASE_URL": link.url,
            "WORKER_ID": name,
            "WAN2GP_LEASE_S": str(LEASE_S),
            "WAN2GP_RENEW_S": str(RENEW_S),
            "WAN2GP_ALLOW_PRIVATE_URLS": "1",
            "COMFY_PORT": str(port),
            "COMFY_ARGS": f"--extra-nodes {FAULTS}",
            **LIMITS,
        }
        if self.storage is not None:
            more |= {"SUPABASE_URL": self.storage.url, "SUPABASE_SERVICE_ROLE_KEY": self.storage.key}
            more |= {"WAN2GP_QUEUE": "postgres"}
        environ = worker_environment(self.folder, self.short / name, **more)
        environ["PYTHONPATH"] = f"{self.slow}:{environ['PYTHONPATH']}"
        data_dir = self.folder / name
        return Actor(name, link, data_dir, environ, port, self._launch(data_dir, environ), time.time())

    def _launch(self, data_dir: Path, environ: dict[str, str]) -> Worker:
        return launch(data_dir, self.url, environ, *self._options, wait=False)

    # -- lives -------------------------------------------------------------------------------------------------------

    def tend(self) -> None:
        """Called all the time: who has ended is started again, and what they hold of memory is written down."""
        now_s = time.monotonic()
        for actor in self.actors.values():
            if actor.due_s is None:
                code = actor.worker.process.poll()
                if code is not None:
                    self._buried(actor, code)
                    actor.due_s = now_s + BORN_AGAIN_S
            elif now_s >= actor.due_s and not actor.ending:
                actor.due_s, actor.born_s, actor.expected = None, time.time(), False
                actor.worker = self._launch(actor.data_dir, actor.environ)
        if now_s >= self._sampled_s:
            self._sampled_s = now_s + SAMPLE_EVERY_S
            for actor in self.actors.values():
                if actor.lives_now:
                    self._sample(actor)
            self._look_for_strays(now_s)

    def _look_for_strays(self, now_s: float) -> None:
        """What falls to this process had a supervisor above it that is gone, and must not live much longer."""
        own = {actor.pid for actor in self.actors.values()} | self.errands | {self.server.pid}
        for pid in children(os.getpid()):
            if pid in own:
                continue
            if not alive(pid):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            elif now_s - self._strays.setdefault(pid, now_s) > LINGER_S and pid not in self.frozen:
                self.lingered.setdefault(pid, f"{pid} outlived its supervisor for {LINGER_S:g} s: {_command(pid)}")

    def _buried(self, actor: Actor, code: int) -> None:
        now = time.time()
        if code not in _codes(actor.expected, now - actor.born_s):
            actor.exits.append((now, code))
        actor.lives.append(self._life(actor, now))
        actor.samples = []

    def _life(self, actor: Actor, ended: float | None) -> Life:
        end = ended or time.time()
        pauses = tuple((one[0], min(one[1], end)) for one in actor.pauses if one[0] < end and one[1] > actor.born_s)
        return Life(actor.name, actor.born_s, ended, pauses, tuple(actor.samples), actor.pid)

    def _sample(self, actor: Actor) -> None:
        for pid in (actor.pid, *descendants(actor.pid)):
            said = role_of(pid)
            role = "supervisor" if pid == actor.pid else said and (said[1] if said[0] == "handler" else said[0])
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                used = process.cpu_times()
                self._cpu_s[process] = used.user + used.system
                if role:
                    actor.samples.append(Sample(time.time(), role, process.memory_info().rss))

    @property
    def cpu_s(self) -> float:
        """What the workers' processes have used, each as it was last seen, seconds."""
        return sum(self._cpu_s.values())

    def all_lives(self) -> list[Life]:
        """Also those that still go on."""
        lives = [life for actor in self.actors.values() for life in actor.lives]
        return lives + [self._life(actor, None) for actor in self.actors.values() if actor.lives_now]

    # -- the end -----------------------------------------------------------------------------------------------------

    def stop_workers(self, patience_s: float = 15.0) -> None:
        """All of them, in order. One that does not is killed and said to have ended badly."""
        for actor in self.actors.values():
            actor.ending = True
            if actor.lives_now:
                actor.expected = True
                actor.worker.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + patience_s
        while any(actor.lives_now for actor in self.actors.values()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for actor in self.actors.values():
            if actor.due_s is None:
                late = actor.worker.process.poll() is None
                if late:
                    actor.expected = False
                    actor.worker.process.kill()
                self._buried(actor, actor.worker.process.wait(10))
                actor.due_s = time.monotonic()

    def drain(self, actor: Actor, patience_s: float) -> int | None:
        """Another life of a worker that has stopped, until the queue is empty; its exit code, None when it was late."""
        worker = launch(actor.data_dir, self.url, actor.environ, *self._options, "--once", wait=False)
        self.errands.add(worker.process.pid)
        try:
            return worker.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait(5)
            return None

    def left_behind(self) -> list[str]:
        """Processes that nobody owns any more: below this one, and none of its own."""
        known = {actor.pid for actor in self.actors.values() if actor.lives_now}
        known |= {pid for actor in self.actors.values() if actor.lives_now for pid in descendants(actor.pid)}
        if self.server.pid is not None:
            known |= {self.server.pid, *descendants(self.server.pid)}
        return [f"{pid}: {_command(pid)}" for pid in descendants(os.getpid()) if pid not in known and alive(pid)]

    def close(self) -> None:
        """Safe to repeat; nothing that was started here lives on."""
        for actor in self.actors.values():
            actor.link.thaw()
            if actor.lives_now:
                actor.worker.process.kill()
                actor.worker.process.wait(10)
        self.open.close()


def _codes(expected: bool, lived_s: float) -> tuple[int, ...]:
    """How a life may end. Exit code 5: the database was away at its start, and its container tries again. SIGTERM ends
    by itself a process that is not yet a supervisor."""
    by_signal = (0, -signal.SIGKILL, -signal.SIGTERM) if lived_s < UNBORN_S else (0, -signal.SIGKILL)
    return (5, *by_signal) if expected else (5,)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()[:200]
    except OSError:
        return "gone"
