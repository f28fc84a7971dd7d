"""RIFE in a process of its own, and pictures from it. Knows nothing of tasks."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan2gp.engine_process.process import DrainedProcess
from wan2gp.wan_sidecar.errors import Abandoned, WanError, describe_exit
from wan2gp.wan_sidecar.rife_weights import RifeModel

WAKE_S = 0.25
"""How long a wait may last without a look at who wants to go."""
START_S, PICTURE_S = 300.0, 900.0
"""PyTorch's first import after an installation takes a minute and more; a picture of 8192 x 4320 on a slow processor
some."""
LONGEST_HEAD = 1 << 20
TAIL_LINES = 20
CLEARED = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP")
_HOST = Path(__file__).with_name("rife_host.py")


class RifeFailed(WanError):
    """RIFE does not start, ended, or was silent for too long. ``why``: ``import``, ``weights``, ``device``, ``memory``,
    ``exit``, ``silence`` or ``refused``. ``tail``: the last lines it printed. Its process is gone."""

    def __init__(self, why: str, cause: str, tail: Sequence[str] = ()) -> None:
        super().__init__(cause)
        self.why = why
        self.tail = tuple(tail)


@dataclass(frozen=True)
class RifeAbout:
    """What runs."""

    name: str
    device: str
    """``cpu``, or the card's name."""
    torch: str
    pid: int


class Rife:
    """Used from the process's main thread; :meth:`stop` also from another, while nothing is asked."""

    def __init__(
        self,
        model: RifeModel,
        python: str,
        home: Path,
        *,
        device: str = "cpu",
        log_fd: int = 1,
        start_s: float = START_S,
        picture_s: float = PICTURE_S,
    ) -> None:
        """Starts nothing. ``device``: ``cpu`` or ``cuda``. Limits in seconds."""
        self.model = model
        self._python = python
        self._home = home
        self._device = device
        self._log_fd = log_fd
        self._start_s = start_s
        self._picture_s = picture_s
        self._process: DrainedProcess | None = None
        self._channel: socket.socket | None = None
        self.about: RifeAbout | None = None
        """None while it does not run."""

    def ensure(self, waiting: Callable[[], bool] = lambda: False) -> RifeAbout:
        """Start it unless it runs. ``waiting`` is called four times a second; true: it is no longer wanted. Raises
        :class:`RifeFailed` or ``Abandoned``."""
        if self.about is not None and self._process is not None and self._process.exit_code() is None:
            return self.about
        self.stop()
        process = self._start()
        model = self.model
        order = {"root": str(model.root), "weights": str(model.weights), "version": model.version}
        self._send({"do": "load", **order, "device": self._device}, b"", waiting, self._start_s)
        said, _ = self._answer("ready", waiting, self._start_s)
        self.about = RifeAbout(model.name, str(said.get("device")), str(said.get("torch")), process.pid)
        return self.about

    def between(
        self,
        first: bytes,
        last: bytes,
        size: tuple[int, int],
        times: Sequence[float],
        abandoned: Callable[[], bool] = lambda: False,
    ) -> Iterator[bytes]:
        """The pictures at ``times``, which rise, above 0 and below 1. All are RGB, ``size`` is width and height.

        Raises as :meth:`ensure`, which must have been called. May be left at any picture.
        """
        width, height = size
        order = {"do": "pair", "width": width, "height": height, "times": list(times)}
        self._send(order, first + last, abandoned, self._picture_s)
        for _ in times:
            self._send({"do": "more"}, b"", abandoned, self._picture_s)
            _, pixels = self._answer("picture", abandoned, self._picture_s, len(first))
            yield pixels

    def stop(self) -> None:
        """End it and all below it. Safe to call again."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        process, self._process = self._process, None
        self.about = None
        if process is not None:
            process.stop()

    # --- the process -------------------------------------------------------------------------------------------------

    def _start(self) -> DrainedProcess:
        ours, theirs = socket.socketpair()
        environ = {name: value for name, value in os.environ.items() if name not in CLEARED}
        if self._device == "cpu":
            environ["CUDA_VISIBLE_DEVICES"] = ""
        command = [self._python, "-I", str(_HOST), str(theirs.fileno())]
        try:
            with theirs:
                self._process = DrainedProcess(
                    command, cwd=self._home, environ=environ, log_fd=self._log_fd, pass_fds=[theirs.fileno()]
                )
        except OSError as error:
            ours.close()
            raise RifeFailed("refused", f"cannot start {self._python}: {error}") from error
        ours.setblocking(False)
        self._channel = ours
        return self._process

    # --- messages ----------------------------------------------------------------------------------------------------

    def _send(self, message: Mapping[str, Any], pixels: bytes, left: Callable[[], bool], limit_s: float) -> None:
        said = json.dumps({**message, "bytes": len(pixels)} if pixels else message).encode()
        rest = memoryview(len(said).to_bytes(4, "big") + said + pixels)
        channel, end_s = self._open(), time.monotonic() + limit_s
        while rest:
            self._wait(channel, select.POLLOUT, left, end_s)
            try:
                rest = rest[channel.send(rest) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._lost() from error

    def _answer(
        self, kind: str, left: Callable[[], bool], limit_s: float, size: int = 0
    ) -> tuple[Mapping[str, Any], bytes]:
        end_s = time.monotonic() + limit_s
        length = int.from_bytes(self._read(4, left, end_s), "big")
        if length > LONGEST_HEAD:
            raise self._failed("exit", "RIFE's process says what cannot be understood")
        try:
            said = json.loads(self._read(length, left, end_s))
            if said["is"] == "failed":
                raise self._failed(str(said["why"]), str(said["cause"]))
            known = said["is"] == kind and said.get("bytes", 0) == size
        except (ValueError, KeyError, TypeError) as error:
            raise self._failed("exit", "RIFE's process says what cannot be understood") from error
        if not known:
            raise self._failed("exit", f"RIFE's process answers something else than {kind}")
        return said, self._read(size, left, end_s) if size else b""

    def _read(self, size: int, left: Callable[[], bool], end_s: float) -> bytes:
        channel, taken = self._open(), bytearray(size)
        rest = memoryview(taken)
        while rest:
            self._wait(channel, select.POLLIN, left, end_s)
            try:
                count = channel.recv_into(rest)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._lost() from error
            if count == 0:
                raise self._lost()
            rest = rest[count:]
        return bytes(taken)

    def _open(self) -> socket.socket:
        if self._channel is None:
            raise RifeFailed("exit", "RIFE does not run")
        return self._channel

    def _wait(self, channel: socket.socket, event: int, left: Callable[[], bool], end_s: float) -> None:
        poller = select.poll()
        poller.register(channel, event)
        while not poller.poll(int(WAKE_S * 1000)):
            if left():
                self.stop()  # it is in the middle of a picture, or of its start: neither can be called off
                raise Abandoned("RIFE is no longer wanted")
            if time.monotonic() >= end_s:
                raise self._failed("silence", "RIFE's process is silent for too long")

    def _lost(self) -> RifeFailed:
        process = self._process
        code = None if process is None else process.wait(WAKE_S * 4)
        cause = "RIFE's process closed its end" if code is None else f"RIFE's process ended: {describe_exit(code)}"
        return self._failed("exit", cause)

    def _failed(self, why: str, cause: str) -> RifeFailed:
        process = self._process
        if process is not None and process.exit_code() is not None:
            process.drained()
        tail = () if process is None else process.lines(TAIL_LINES)
        self.stop()
        return RifeFailed(why, cause, tail)
