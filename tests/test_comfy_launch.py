"""The two tiny processes above ComfyUI: they change nothing of how it ends, and let nothing outlive it."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest_worker import eventually
from tests.survivors import Watch
from wan2gp.engine_process import process as sidecar
from wan2gp.engine_process.process import DrainedProcess
from wan2gp.processes import alive, held
from wan2gp.sandbox import landlock

LITTER = "import json, os, subprocess, sys, time; from tests.litter import leave; leave(sys.argv[1]); "
Start = Callable[..., DrainedProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[DrainedProcess] = []

    def make(program: str, *arguments: str, only_port: int = 0) -> DrainedProcess:
        command = [sys.executable, "-c", program, *arguments]
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        null = os.open(os.devnull, os.O_WRONLY)
        made.append(DrainedProcess(command, cwd=tmp_path, environ=environ, log_fd=null, only_port=only_port))
        return made[-1]

    yield make
    for process in made:
        process.stop(0)
        os.close(process._log_fd)


def has_ports() -> bool:
    try:
        return landlock.abi() >= landlock.TCP_SINCE
    except OSError:
        return False


def guards(process: DrainedProcess) -> tuple[int, int]:
    """The lower and the upper one."""
    lower = psutil.Process(process.pid).ppid()
    return lower, psutil.Process(lower).ppid()


def littered(start: Start, note: Path, then: str) -> tuple[DrainedProcess, Watch]:
    """A process that has left others; they are watched."""
    process = start(f"{LITTER}print('left', flush=True); {then}", str(note))
    eventually("it littered", lambda: "left" in process.lines())
    return process, Watch(one.pid for one in process.processes())


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os.abort()", -signal.SIGABRT),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM),
        ("import os; os.kill(0, 9)", -signal.SIGKILL),
    ],
)
def test_an_end_is_told_as_it_was(start: Start, program: str, code: int) -> None:
    assert start(program).wait(20) == code


def test_a_signal_from_outside_reaches_it_as_ever(start: Start) -> None:
    process = start("import time; time.sleep(600)")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM


def test_it_may_end_politely_when_it_is_stopped(start: Start) -> None:
    program = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(5)); print('up', flush=True)"
    process = start(f"{program}; time.sleep(600)")
    eventually("it is up", process.lines)
    process.stop(20)
    assert process.exit_code() == 5


def test_an_ignored_interrupt_is_not_handed_on(start: Start) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start("import signal; print(signal.getsignal(2) is signal.default_int_handler)")
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.wait(20) == 0
    process.drained()
    assert process.lines() == ["True"]


def test_a_command_that_cannot_be_executed_says_why(tmp_path: Path) -> None:
    with open(os.devnull, "w") as null:
        process = DrainedProcess(["/no/such/python"], cwd=tmp_path, environ=os.environ, log_fd=null.fileno())
        assert process.wait(20) == 127
        process.drained()
        assert process.lines() == ["cannot execute /no/such/python: No such file or directory"]
        process.stop()


def test_who_looks_for_it_by_name_finds_it_alone(start: Start) -> None:
    process = start("import time; time.sleep(600)", "a name like no other")
    family = [psutil.Process(process.pid), *(psutil.Process(pid) for pid in guards(process))]
    assert [one.pid for one in family if "a name like no other" in one.cmdline()] == [process.pid]
    assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid


def test_what_it_left_ends_with_it_though_nobody_asks(start: Start, tmp_path: Path) -> None:
    """Its starter lives on, and is busy with something else."""
    process, watch = littered(start, tmp_path / "note", "time.sleep(600)")
    os.kill(process.pid, signal.SIGKILL)
    watch.last()
    assert process.exit_code() == -signal.SIGKILL


@pytest.mark.parametrize("which", [0, 1], ids=["lower", "upper"])
def test_either_guard_killed_takes_it_and_all_it_left_along(start: Start, tmp_path: Path, which: int) -> None:
    process, watch = littered(start, tmp_path / "note", "time.sleep(600)")
    os.kill(guards(process)[which], signal.SIGKILL)
    watch.last()
    assert process.wait(20) == -signal.SIGKILL


@pytest.mark.parametrize("which", [0, 1], ids=["lower", "upper"])
def test_a_frozen_guard_holds_no_stop_up(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    monkeypatch.setattr(sidecar, "REAP_S", 0.3)
    process, watch = littered(start, tmp_path / "note", "time.sleep(600)")
    above = guards(process)
    os.kill(above[which], signal.SIGSTOP)
    process.stop(0)
    watch.last()
    eventually("the guards are gone", lambda: not any(map(alive, above)))
    assert process.exit_code() == -signal.SIGKILL


def test_a_dead_child_of_a_dead_child_leaves_no_zombie(start: Start) -> None:
    """A node that daemonises over and over must not fill the table of processes."""
    program = """
import os, sys, time
for _ in range(20):
    if os.fork() == 0:
        os._exit(0) if os.fork() else os._exit(0)
    os.wait()
print('done', flush=True)
time.sleep(600)
"""
    process = start(program)
    eventually("it is done", process.lines)
    lower = psutil.Process(guards(process)[0])
    eventually("its guard has waited for all", lambda: [one.pid for one in lower.children()] == [process.pid])


def test_memory_is_that_of_all_it_started(start: Start, tmp_path: Path) -> None:
    hog = "import time; held = bytearray(b'x') * (64 << 20); print('held', flush=True); time.sleep(600)"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {hog!r}]); time.sleep(600)"
    process = start(program)
    eventually("its child holds memory", lambda: "held" in process.lines())
    assert 64 << 20 <= held(process.pids()) < 256 << 20
    process.stop(0)
    assert held(process.pids()) == 0


CALLS = """
import socket, subprocess, sys
program, here, other, *below = sys.argv[1:]
def attempt(name, act):
    try:
        with socket.socket() as made:
            act(made)
        print(name, 'ok', flush=True)
    except OSError as error:
        print(name, error.strerror, flush=True)
attempt('listen', lambda made: (made.bind(('127.0.0.1', int(here))), made.listen()))
attempt('listen elsewhere', lambda made: made.bind(('127.0.0.1', 0)))
attempt('its port of another host', lambda made: made.connect(('127.0.0.2', int(here))))
attempt('another port', lambda made: made.connect(('127.0.0.1', int(other))))
if not below:
    subprocess.run([sys.executable, '-c', program, program, here, other, 'below'], check=True)
"""


@pytest.fixture
def ears() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The first is the same port on what stands for another host; nobody has it on the engine's own address."""
    with socket.create_server(("127.0.0.2", 0)) as theirs, socket.create_server(("127.0.0.1", 0)) as other:
        yield theirs, other


@pytest.mark.skipif(not has_ports(), reason="Landlock before Linux 6.7 knows no ports")
def test_it_listens_at_its_port_and_reaches_the_same_one_on_no_other_host(
    start: Start, ears: tuple[socket.socket, socket.socket]
) -> None:
    """What it starts does not either."""
    ports = [one.getsockname()[1] for one in ears]
    process = start(CALLS, CALLS, *map(str, ports), only_port=ports[0])
    assert process.wait(20) == 0, process.lines()
    process.drained()
    refused = "Permission denied"
    once = [
        "listen ok",
        f"listen elsewhere {refused}",
        f"its port of another host {refused}",
        f"another port {refused}",
    ]
    assert process.lines() == once * 2
    for one in ears:
        one.setblocking(False)
        with pytest.raises(BlockingIOError):
            one.accept()


def test_without_a_port_of_its_own_it_connects_as_its_starter_may(
    start: Start, ears: tuple[socket.socket, socket.socket]
) -> None:
    ports = [one.getsockname()[1] for one in ears]
    process = start(CALLS, CALLS, *map(str, ports), "below")
    assert process.wait(20) == 0
    process.drained()
    assert [line.rpartition(" ")[2] for line in process.lines()] == ["ok"] * 4
