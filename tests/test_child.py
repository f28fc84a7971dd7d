"""The supervisor's side of a child: nothing that its shim does, or leaves undone, holds the loop up or ends it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import multiprocess
import pytest

from wan2gp import shim
from wan2gp.supervisor import child as module
from wan2gp.supervisor.child import Child


class PaperProcess:
    """What a shim's process looks like to its parent; its death is the test's to declare."""

    pid = 4_194_305
    sentinel = -1

    def __init__(self, **_: Any) -> None:
        self.alive, self.closed = True, False

    def start(self) -> None: ...

    def join(self, timeout: float) -> None: ...

    def kill(self) -> None:
        """It is in a call of the kernel that hangs."""

    def is_alive(self) -> bool:
        return self.alive

    def close(self) -> None:
        if self.alive:
            raise ValueError("Cannot close a process while it is still running.")
        self.closed = True


class Stage:
    """A child whose shim is the test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[Any] = []

        def pipe() -> tuple[Any, Any]:
            ours, theirs = multiprocess.Pipe()
            made.append(theirs)
            return ours, SimpleNamespace(close=lambda: None)

        monkeypatch.setattr(module, "_spawn", SimpleNamespace(Pipe=pipe, Process=PaperProcess))
        self.child = Child("engine", 1)
        log = folder / "log"
        self.child.spawn(target="x", endpoint="x", home=folder / "home", log=log, settings={}, secrets={}, warm=False)
        self.channel = made[0]
        self.process: PaperProcess = self.child._process

    def say(self, part: bytes) -> None:
        os.write(self.channel.fileno(), part)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    one = Stage(tmp_path, monkeypatch)
    yield one
    one.channel.close()
    one.process.alive = False
    one.child.release()


def test_a_shim_that_is_stopped_in_the_middle_of_its_report_holds_nobody_up(stage: Stage) -> None:
    report = json.dumps({"exited": 9, "tail": ["x" * 5000], "survivors": []}).encode()
    frame = struct.pack("!i", len(report)) + report
    stage.channel.send_bytes(b'{"started": 77, "at": 1}')
    for part in (frame[:2], frame[2:100], frame[100:-1]):
        stage.say(part)
        assert stage.child.news() is None
    assert stage.child.pid == 77
    stage.say(frame[-1:])
    death = stage.child.news()
    assert death is not None and (death.status, death.tail) == (9, ("x" * 5000,))


def test_a_shim_that_dies_in_the_middle_of_its_report_is_a_death_that_nobody_saw(stage: Stage) -> None:
    stage.say(struct.pack("!i", 1000) + b"{")
    stage.channel.close()
    stage.process.alive = False
    death = stage.child.news()
    assert death is not None and death.status is None


def test_orders_reach_a_shim_whose_channel_is_never_waited_for(stage: Stage) -> None:
    stage.child.terminate()
    assert stage.channel.recv_bytes() == shim.TERM
    stage.child.kill()
    assert stage.channel.recv_bytes() == shim.KILL


def test_a_shim_that_the_kernel_does_not_let_go_takes_no_supervisor_with_it(stage: Stage) -> None:
    stage.child.release()
    assert not stage.process.closed
    stage.process.alive = False
    stage.child.release()
    assert stage.process.closed
