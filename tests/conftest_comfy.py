"""The built-in engine as a process: started on a free port with its own folders, and surely stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket

FAULTS = Path(__file__).parent / "builtin_faults" / "nodes.py"
START_S = 20.0
STOP_S = 5.0
ANSWER_S = 15.0
RUN_S = 100.0
"""Patience with one prompt, seconds: a long clip takes its time where four tests share two cores."""
Json = dict[str, Any]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class BuiltinServer:
    """A running engine. `path` holds its folders input, output, temp/temp and its log."""

    path: Path
    port: int
    process: subprocess.Popen[bytes]
    session: requests.Session = field(default_factory=requests.Session)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def input(self) -> Path:
        return self.path / "input"

    @property
    def output(self) -> Path:
        return self.path / "output"

    @property
    def temp(self) -> Path:
        return self.path / "temp" / "temp"

    @property
    def log(self) -> str:
        return (self.path / "log").read_text()

    def call(self, method: str, path: str, **given: Any) -> requests.Response:
        return self.session.request(method, self.url + path, timeout=ANSWER_S, **given)

    def get(self, path: str) -> Any:
        return self.call("GET", path).json()

    def post(self, prompt: Any, **body: Any) -> requests.Response:
        return self.call("POST", "/prompt", json={"prompt": prompt, **body})

    def run(self, prompt: Json, **body: Any) -> Json:
        """Posts and waits; the history entry."""
        answer = self.post(prompt, **body)
        assert answer.status_code == 200, answer.text
        return self.finished(answer.json()["prompt_id"])

    def finished(self, prompt_id: str) -> Json:
        deadline = time.monotonic() + RUN_S
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if history:
                entry: Json = history[prompt_id]
                return entry
            time.sleep(0.005)
        raise TimeoutError(f"prompt {prompt_id} did not end: {self.log[-2000:]}")

    def until_running(self, prompt_id: str) -> None:
        """Until the worker has taken the prompt from the queue."""
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            if any(item[1] == prompt_id for item in self.get("/queue")["queue_running"]):
                return
            time.sleep(0.005)
        raise TimeoutError(f"prompt {prompt_id} does not run: {self.log[-2000:]}")

    @contextlib.contextmanager
    def listen(self, client_id: str = "", path: str = "/ws") -> Iterator[Listener]:
        connected = websocket.create_connection(
            f"ws://127.0.0.1:{self.port}{path}?clientId={client_id}", timeout=ANSWER_S
        )
        try:
            yield Listener(connected)
        finally:
            connected.close()

    def peak_mib(self) -> float:
        """The most memory the process has had at once."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def wait_exit(self) -> int:
        return self.process.wait(ANSWER_S)

    def stop(self) -> None:
        """Whatever state it is in: KILL also ends a stopped process."""
        self.session.close()
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_S)


@dataclass
class Listener:
    """A websocket client that keeps what it reads."""

    socket: websocket.WebSocket

    def read(self) -> Json:
        """The next message. A binary one becomes `{"type": "preview", "data": {…}}`."""
        received = self.socket.recv()
        message: Json = json.loads(received) if isinstance(received, str) else binary_message(received)
        return message

    def until(self, event: str, **data: Any) -> list[Json]:
        """Everything up to and including the first message of that kind with that data."""
        seen = []
        while True:
            message = self.read()
            seen.append(message)
            if message["type"] == event and all(message["data"].get(key) == data[key] for key in data):
                return seen


def binary_message(received: bytes) -> Json:
    """What its header says, and whether a JPEG follows."""
    event, number = struct.unpack(">II", received[:8])
    if event == 1:
        return {"type": "preview", "data": {"event": 1, "format": number, "jpeg": received[8:11] == b"\xff\xd8\xff"}}
    metadata, image = json.loads(received[8 : 8 + number]), received[8 + number :]
    return {"type": "preview", "data": {"event": event, "metadata": metadata, "jpeg": image[:3] == b"\xff\xd8\xff"}}


def launch(path: Path, port: int, *flags: str) -> BuiltinServer:
    """Starts the process; does not wait for it."""
    (path / "user").mkdir(parents=True, exist_ok=True)
    module = [
        sys.executable,
        "-m",
        "wan2gp.comfy_sidecar.builtin",
        "--listen",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    folders = [f"--{name}-directory={path / name}" for name in ("input", "output", "temp", "user")]
    command = [*module, *folders, "--extra-nodes", str(FAULTS), "--disable-auto-launch", *flags]
    with (path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    return BuiltinServer(path, port, process)


def ready(server: BuiltinServer) -> BuiltinServer:
    """First of: answers, exits, the deadline."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(f"the engine exited with {server.process.returncode}: {server.log}")
        with contextlib.suppress(requests.ConnectionError):
            server.call("GET", "/prompt")
            return server
        time.sleep(0.01)
    raise TimeoutError(f"the engine did not start: {server.log}")


@pytest.fixture
def start_builtin(tmp_path: Path) -> Iterator[Callable[..., BuiltinServer]]:
    """Starts as many as a test wants, each in its own folder unless told which."""
    started: list[BuiltinServer] = []

    def start(*flags: str, path: Path | None = None, port: int | None = None, wait: bool = True) -> BuiltinServer:
        server = launch(path or tmp_path / f"engine{len(started)}", port or free_port(), *flags)
        started.append(server)
        return ready(server) if wait else server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def builtin_server(start_builtin: Callable[..., BuiltinServer]) -> BuiltinServer:
    """A fresh engine: for a test that breaks it or counts its files."""
    return start_builtin()


@pytest.fixture(scope="module")
def shared_builtin_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltinServer]:
    """One engine for all tests of a module that leave it as they found it."""
    server = launch(tmp_path_factory.mktemp("engine") / "shared", free_port())
    try:
        yield ready(server)
    finally:
        server.stop()
