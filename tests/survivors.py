"""What is killed, how, and how long what was started below it goes on living: for the tests and for `tests.bench`."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import select
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.comfy_jobs import fault
from tests.conftest_worker import Worker, eventually
from tests.stop_clock import StopClock

NODES = Path(__file__).parent / "builtin_faults" / "litter.py"
COMFY = {"COMFY_ARGS": f"--extra-nodes {NODES}"}
TICK_S = 0.02
STALL_S = 0.25
"""A watcher that could not look for so long proves that the machine stood still, seconds."""
PATIENCE_S = 30.0
STAMP = r"^(\d+-\d+-\d+ \d+:\d+:\d+\.\d+) .*{words}"


class Watch(threading.Thread):
    """Notes the first moment at which each of some processes is gone."""

    def __init__(self, pids: Iterable[int]) -> None:
        super().__init__(name="watch", daemon=True)
        self._pids = {os.pidfd_open(pid): pid for pid in pids}
        self.gone: dict[int, float] = {}
        """By pid: when, seconds of CLOCK_REALTIME."""
        self.longest_gap_s = 0.0
        self.start()

    def run(self) -> None:
        poller, end = select.poll(), time.time() + PATIENCE_S
        for descriptor in self._pids:
            poller.register(descriptor, select.POLLIN)
        looked = time.time()
        while len(self.gone) < len(self._pids) and looked < end:
            ready = poller.poll(TICK_S * 1000)
            now = time.time()
            self.longest_gap_s, looked = max(self.longest_gap_s, now - looked), now
            for descriptor, _ in ready:
                poller.unregister(descriptor)
                self.gone[self._pids[descriptor]] = now
        for descriptor in self._pids:
            os.close(descriptor)

    @property
    def stalled(self) -> bool:
        return self.longest_gap_s > STALL_S

    def last(self) -> float:
        """When the last one went. Fails when one stays."""
        self.join(PATIENCE_S + 5)
        left = set(self._pids.values()) - set(self.gone)
        assert not left, [psutil.Process(pid).cmdline() for pid in left]
        return max(self.gone.values())


@dataclass(frozen=True)
class Litter:
    """What a task's engine has left, and who stands above it."""

    task: str
    pids: dict[str, int]
    handler: int
    shim: int
    since: float
    """When the task was made, seconds of CLOCK_REALTIME."""

    @property
    def left(self) -> set[int]:
        """The processes that somebody started and nobody waits for."""
        return {pid for name, pid in self.pids.items() if name != "self"}

    @property
    def everything(self) -> set[int]:
        """With engine, handler, shim and whatever else is below it."""
        with contextlib.suppress(psutil.Error):
            below = {process.pid for process in psutil.Process(self.shim).children(recursive=True)}
            return {self.shim, *below, *self.pids.values()}
        return {*self.pids.values()}


def litter(worker: Worker, name: str, phase: str = "load") -> Litter:
    """Have the handler `name` run a task that litters and stays; `phase`: the one in which it says it is."""
    note = worker.data_dir / "handlers" / name / f"note-{uuid.uuid4().hex[:8]}"  # where it may write
    graph = {"workflow": fault("FaultLitter", note=str(note))}
    params = graph if name == "comfy" else {"pids": str(note), "stay": True, "phase": phase}
    since = time.time()
    task = worker.insert(name, params, max_attempts=1)
    pids = json.loads(eventually(f"{name} littered", lambda: note.exists() and note.read_text()))
    handler = worker.handler_pid(name)
    return Litter(task, pids, handler, psutil.Process(handler).ppid(), since)


Scene = dict[str, Litter]
"""By handler."""


@dataclass(frozen=True)
class Cell:
    """One way in which something ends."""

    name: str
    owners: tuple[str, ...]
    """The handlers that have littered."""
    do: Callable[[Worker, Scene], float]
    """Does it, and returns the moment from which to count, seconds of CLOCK_REALTIME."""
    doomed: Callable[[Scene], set[int]]
    """Who must be gone."""
    phase: str = "load"
    environ: Mapping[str, str] = field(default_factory=dict)
    """What the worker must have been started with."""
    fatal: bool = False
    """The worker does not live on."""


def measure(worker: Worker, cell: Cell) -> tuple[float, bool]:
    """How long the last one lived on, seconds, and whether the machine stood still meanwhile."""
    scene = {owner: litter(worker, owner, cell.phase) for owner in cell.owners}
    watch = Watch(cell.doomed(scene))
    began = cell.do(worker, scene)
    return watch.last() - began, watch.stalled


def all_of(worker: Worker) -> list[int]:
    """Every process that was started with the worker's environment, wherever it belongs by now."""
    mark, found = f"PYTHONPATH={worker.environ['PYTHONPATH']}\0".encode(), []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (place / "environ").read_bytes():
                found.append(int(place.name))
    return found


def kill_with_all(worker: Worker) -> float:
    """Kill the supervisor, whatever it does just now; how long the last one lived on, seconds. A process that has only
    begun finds out when it gets so far, for which it needs a processor: the wait for one is not counted."""
    clock, end = StopClock(), time.monotonic() + PATIENCE_S
    worker.process.kill()
    worker.process.wait(10)
    while left := all_of(worker):
        assert time.monotonic() < end, left
        time.sleep(TICK_S)
    return clock.seconds()


def said_at(worker: Worker, words: str, after: float) -> float:
    """The stamp of the first line of the log with `words` that is not older than `after`."""

    def look() -> float | None:
        for found in re.finditer(STAMP.format(words=words), worker.log, re.MULTILINE):
            at = datetime.datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S.%f").timestamp()
            if at >= after - 0.001:
                return at
        return None

    return float(eventually(f"the log says {words}", look))


# -- what is done ----------------------------------------------------------------------------------------------------


def _everything(scene: Scene) -> set[int]:
    return set().union(*(one.everything for one in scene.values()))


def _engine(scene: Scene) -> set[int]:
    return {*scene["comfy"].pids.values()}


def _above(pid: int, steps: int) -> int:
    """The parent of a process, or that one's."""
    for _ in range(steps):
        pid = psutil.Process(pid).ppid()
    return pid


def _kill(victims: Callable[[Worker, Scene], Iterable[int]]) -> Callable[[Worker, Scene], float]:
    def do(worker: Worker, scene: Scene) -> float:
        pids = list(victims(worker, scene))
        at = time.time()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return at

    return do


def _terminate(worker: Worker, scene: Scene) -> float:
    """Counted from the end of the grace."""
    at = time.time()
    worker.process.send_signal(signal.SIGTERM)
    return at + float(worker.environ["WAN2GP_STOP_GRACE_S"])


def _hang(worker: Worker, scene: Scene) -> float:
    return said_at(worker, "Handler litterer hangs", scene["litterer"].since)


def _cancel(worker: Worker, scene: Scene) -> float:
    """Counted from the end of the grace that a cancelled run has."""
    at = time.time()
    assert worker.ctl("cancel", scene["litterer"].task).returncode == 0
    return said_at(worker, "Handler litterer hangs", at)


def _overrun(worker: Worker, scene: Scene) -> float:
    return said_at(worker, "ComfyUI stopped", scene["comfy"].since)


BOTH = ("comfy", "litterer")
SIGTERM_GRACE = {"WAN2GP_STOP_GRACE_S": "0.3"}
CELLS = (
    Cell("engine, kill -9", ("comfy",), _kill(lambda _, scene: [scene["comfy"].pids["self"]]), _engine),
    Cell(
        "engine's guard, kill -9", ("comfy",), _kill(lambda _, scene: [_above(scene["comfy"].pids["self"], 1)]), _engine
    ),
    Cell(
        "its upper guard, kill -9",
        ("comfy",),
        _kill(lambda _, scene: [_above(scene["comfy"].pids["self"], 2)]),
        _engine,
    ),
    Cell("handlers, kill -9", BOTH, _kill(lambda _, scene: [one.handler for one in scene.values()]), _everything),
    Cell("shims, kill -9", BOTH, _kill(lambda _, scene: [one.shim for one in scene.values()]), _everything),
    Cell("handler, hard limit", ("litterer",), _hang, _everything, phase="step"),
    Cell("handler, cancelled", ("litterer",), _cancel, _everything),
    Cell("engine, hard limit", ("comfy",), _overrun, _engine, environ={"COMFY_RUN_TIMEOUT_S": "1"}),
    Cell("supervisor, SIGTERM", BOTH, _terminate, _everything, environ=SIGTERM_GRACE, fatal=True),
    Cell("supervisor, kill -9", BOTH, _kill(lambda worker, _: [worker.process.pid]), _everything, fatal=True),
)
