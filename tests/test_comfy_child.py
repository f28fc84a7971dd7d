"""The comfy handler as the process it will be: spoken to over its wire, and left without a trace."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from tests.comfy_jobs import fault, gone, make_video, spec_row
from tests.conftest_comfy import FAULTS, free_port
from wan2gp.boot import Boot, encode_boot
from wan2gp.protocol import (
    Beat,
    Cancel,
    Cancelled,
    Down,
    EngineState,
    Event,
    Finished,
    Hello,
    Inputs,
    Run,
    Shutdown,
    Succeeded,
    Unload,
    Up,
    Want,
    decode_up,
    encode,
)

WAIT_S = 60.0
IDENTITY = "comfy#1#" + "0" * 32
TASK, LEASE = "11111111-2222-3333-4444-555555555555", "abcdef01-2222-3333-4444-555555555555"


@dataclass
class Child:
    """A handler's process, and this test in the supervisor's place."""

    process: subprocess.Popen[bytes]
    router: zmq.Socket[bytes]
    path: Path
    said: list[Up] = field(default_factory=list)

    def send(self, message: Down) -> None:
        self.router.send_multipart([IDENTITY.encode(), encode(message)])

    def until(self, kind: type, **fields: Any) -> Any:
        """The next message of that kind with those fields; inputs it asks for are given."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if not self.router.poll(int(WAIT_S * 1000)):
                break
            message = decode_up(self.router.recv_multipart()[1])
            self.said.append(message)
            if isinstance(message, Want):
                self.send(Inputs(TASK, LEASE, {"video_url": str(self.path / "in.mp4")}))
            if isinstance(message, kind) and all(getattr(message, name) == fields[name] for name in fields):
                return message
        raise TimeoutError(f"no {kind.__name__}: {[one for one in self.said if not isinstance(one, Beat)]}")

    def run(self, params: Any) -> None:
        work_dir = self.path / "work"
        work_dir.mkdir(exist_ok=True)
        self.send(Run(TASK, "comfy", 1, LEASE, params, str(work_dir)))

    def server_pid(self) -> int:
        return next(
            int(one.fields["pid"]) for one in self.said if isinstance(one, Event) and one.name == "comfy.started"
        )


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    (tmp_path / "home").mkdir()
    make_video(tmp_path / "in.mp4", frames=12)
    endpoint = f"ipc://{tmp_path}/s"
    settings = {"path": "builtin", "port": free_port(), "args": f"--extra-nodes {FAULTS}"}
    boot = Boot("comfy", "wan2gp.handlers.comfy:ComfyHandler", endpoint, IDENTITY, str(tmp_path / "home"), settings)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(endpoint)
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "wan2gp.handlers", "comfy"], stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        assert process.stdin is not None
        process.stdin.write(encode_boot(boot))
        process.stdin.close()
        one = Child(process, router, tmp_path)
        try:
            one.until(Hello)
            yield one
        finally:
            process.kill()
            process.wait()


def test_the_row_of_the_specification_through_the_wire(child: Child) -> None:
    child.run(spec_row())
    outcome = child.until(Finished).outcome
    assert isinstance(outcome, Succeeded)
    assert (child.path / "work" / outcome.artifacts[0].path).is_file()
    states = [one.state for one in child.said if isinstance(one, EngineState)]
    assert states == ["starting", "ready"]
    assert ("comfy.uploaded", {"kind": "video", "name": "input.mp4"}) in [
        (one.name, one.fields) for one in child.said if isinstance(one, Event)
    ]


def test_it_beats_and_hears_a_cancellation_while_a_node_runs(child: Child) -> None:
    child.run({"workflow": fault("TestSleep", seconds=60, steps=6000)})
    child.until(Event, name="comfy.queued")
    child.until(Beat)
    child.send(Cancel(TASK, LEASE))
    assert child.until(Finished).outcome == Cancelled()


def test_told_to_leave_it_leaves_with_its_server(child: Child) -> None:
    child.run({"workflow": fault("TestSleep", seconds=60, steps=6000)})
    child.until(Event, name="comfy.queued")
    child.send(Shutdown())
    assert child.process.wait(WAIT_S) == 0
    assert gone(child.server_pid())


def test_it_has_no_engine_and_no_media_library_while_idle(child: Child) -> None:
    """What is not imported costs no memory: a worker keeps this process for ever, also without comfy tasks."""
    child.send(Unload())
    mapped = {Path(one.path).name for one in psutil.Process(child.process.pid).memory_maps()}
    assert not [name for name in mapped if name.startswith(("libav", "_imaging", "libtorch", "_psycopg"))]
    assert psutil.Process(child.process.pid).children() == []
    assert os.listdir(child.path / "home") == []
