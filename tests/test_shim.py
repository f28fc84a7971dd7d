"""The shim with real processes: whatever dies, in whatever way, nothing below it stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest_worker import ROOT, eventually
from wan2gp.shim import SURVIVORS, TAIL_LINE_BYTES, TAIL_LINES, CappedLog

# A handler that starts three kinds of grandchild and says their pids, then does what it is told.
HANDLER = """
import os, subprocess, sys, time
say = lambda *words: os.write(1, (" ".join(map(str, words)) + "\\n").encode())
plain = subprocess.Popen(["sleep", "600"])
session = subprocess.Popen(["sleep", "600"], start_new_session=True)
there, here = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        say("pid", os.getpid())
        os.close(here)
        os.execvp("sleep", ["sleep", "600"])
    os._exit(0)
os.wait()
os.close(here); os.read(there, 1)  # it has said so: nobody ends before
say("pid", os.getpid()); say("pid", plain.pid); say("pid", session.pid)
say("boot", sys.stdin.read())
if sys.argv[1] == "exit":
    sys.exit(7)
if sys.argv[1] == "deaf":
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
say("there")
time.sleep(600)
"""
# A supervisor: spawns the shim as the product does, says what it hears, obeys one-word orders.
SUPERVISOR = """
import os, sys, threading
import multiprocess
from wan2gp import shim
context = multiprocess.get_context("spawn")
if __name__ == "__main__":
    ours, theirs = context.Pipe()
    command = [sys.executable, sys.argv[1], sys.argv[2]]
    process = context.Process(target=shim.main, args=(theirs, command, b"the boot", sys.argv[3], os.getpid()))
    process.start(); theirs.close()
    print("shim", process.pid, flush=True)
    def hear():
        try:
            while True:
                print(ours.recv_bytes().decode(), flush=True)
        except (EOFError, OSError):
            print("end", flush=True)
    threading.Thread(target=hear, daemon=True).start()
    for line in sys.stdin:
        ours.send_bytes(line.strip().encode())
"""
Start = Callable[[str], "Scene"]


class Scene:
    """A supervisor with its shim and handler."""

    def __init__(self, folder: Path, how: str) -> None:
        (folder / "handler.py").write_text(HANDLER)
        (folder / "supervisor.py").write_text(SUPERVISOR)
        self.log = folder / "handler.log"
        files = [str(folder / name) for name in ("supervisor.py", "handler.py")]
        self.process = subprocess.Popen(
            [sys.executable, *files, how, str(self.log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.pids: list[int] = []
        self.shim = 0

    def begin(self) -> Scene:
        self.shim = int(self.hear("shim").split()[1])
        self.hear("started")
        eventually("the handler is there", lambda: self.words().count("pid ") == 4 and "boot" in self.words())
        self.pids = [int(line.split()[1]) for line in self.words().splitlines() if line.startswith("pid ")]
        self.handler = next((pid for pid in self.pids if self.name(pid).startswith("python")), 0)
        return self

    @staticmethod
    def name(pid: int) -> str:
        try:
            return psutil.Process(pid).name()
        except psutil.NoSuchProcess:
            return ""

    def words(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def hear(self, word: str) -> str:
        assert self.process.stdout is not None
        while True:
            line = self.process.stdout.readline().decode()
            assert line, f"the supervisor ended before saying {word!r}"
            if word in line:
                return line

    def order(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()

    def alive(self) -> list[int]:
        found = []
        for pid in [self.shim, *self.pids]:
            try:
                if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    found.append(pid)
            except psutil.NoSuchProcess:
                continue
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait(5)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    scenes: list[Scene] = []

    def make(how: str) -> Scene:
        scenes.append(Scene(tmp_path, how))
        return scenes[-1].begin()

    yield make
    for scene in scenes:
        scene.close()


def test_a_handler_killed_leaves_no_grandchild_and_its_signal_is_told(start: Start) -> None:
    scene = start("stay")
    os.kill(scene.handler, signal.SIGKILL)
    assert '"exited": 9' in scene.hear("exited")
    eventually("all are gone", lambda: not scene.alive())


def test_the_supervisor_killed_takes_everything_with_it(start: Start) -> None:
    scene = start("stay")
    scene.process.kill()
    eventually("all are gone", lambda: not scene.alive())


def test_an_order_to_kill_is_obeyed_also_for_a_deaf_handler(start: Start) -> None:
    scene = start("deaf")
    eventually("it is deaf", lambda: "there" in scene.words())
    scene.order("term")
    scene.order("kill")
    assert '"exited": 9' in scene.hear("exited")
    eventually("all are gone", lambda: not scene.alive())


def test_a_request_to_terminate_reaches_the_handler(start: Start) -> None:
    scene = start("stay")
    scene.order("term")
    assert '"exited": 15' in scene.hear("exited")
    eventually("all are gone", lambda: not scene.alive())


def test_a_handlers_shim_killed_takes_the_handler_with_it(start: Start) -> None:
    scene = start("stay")
    os.kill(scene.shim, signal.SIGKILL)
    eventually("the handler is gone", lambda: scene.handler not in scene.alive())


def test_an_exit_status_and_the_last_lines_are_told(start: Start) -> None:
    scene = start("exit")
    told = json.loads(scene.hear("exited"))
    assert os.waitstatus_to_exitcode(told["exited"]) == 7
    assert "boot the boot" in told["tail"]
    eventually("all are gone", lambda: not scene.alive())


def test_a_log_stays_below_its_cap_and_the_last_lines_are_kept(tmp_path: Path) -> None:
    log = CappedLog(str(tmp_path / "log"), max_bytes=1000)
    saved = [os.dup(1), os.dup(2)]
    try:
        for number in range(200):
            log.write(f"line {number}\n".encode())
    finally:
        for target, copy in enumerate(saved, 1):
            os.dup2(copy, target)
            os.close(copy)
    assert (tmp_path / "log").stat().st_size <= 1000
    assert (tmp_path / "log.1").stat().st_size <= 1000
    assert log.tail() == [f"line {number}" for number in range(200 - TAIL_LINES, 200)]
    log.close()


def test_a_line_without_an_end_is_part_of_the_last_words(tmp_path: Path) -> None:
    log = CappedLog(str(tmp_path / "log"))
    log.write(b"first\nSegmentation fau")
    log.write(b"lt")
    assert log.tail() == ["first", "Segmentation fault"]
    log.close()


def test_the_longest_last_words_fit_one_write_and_end_with_the_last_line(tmp_path: Path) -> None:
    """A report that came in two parts could stop half way, with a shim that is stopped there."""
    log = CappedLog(str(tmp_path / "log"))
    for number in range(TAIL_LINES):
        log.write(b"\xff" * 2 * TAIL_LINE_BYTES + b"%d\n" % number)
    tail = log.tail()
    report = {"exited": 2**15, "tail": tail, "survivors": [4_000_000] * SURVIVORS}
    assert len(json.dumps(report)) < 16_384 - 4
    assert tail[-1].endswith(f"\N{REPLACEMENT CHARACTER}{TAIL_LINES - 1}")
    log.close()


def test_the_shim_imports_no_more_than_it_must() -> None:
    code = "import sys; import wan2gp.shim; print(sorted(m for m in sys.modules if m.startswith('wan2gp')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    brought = set(json.loads(done.stdout.replace("'", '"')))
    brought = {name for name in brought if not name.startswith(("wan2gp.sandbox", "wan2gp.cgroup"))}
    assert brought == {"wan2gp", "wan2gp.processes", "wan2gp.profile", "wan2gp.shim"}
