"""The process that runs the engine, and the line to it."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from wan2gp.engine_process.process import DrainedProcess
from wan2gp.wan_sidecar.errors import BadWord, Gone, Unavailable, Why
from wan2gp.wan_sidecar.protocol import LINE_BYTES, Heard, decode, encode

HOST = Path(__file__).with_name("host.py")
CHUNK_BYTES = 65536
TAIL_LINES = 40
SEND_S = 30.0
SLICE_S = 0.2
"""The end of a process is noticed this soon, where the line itself does not tell: its launchers hold it open."""
DROPPED = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__", "HF_TOKEN")
SET = {
    # Files come another way; without this each missing one costs the hub's client 25 seconds of attempts.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "MPLBACKEND": "Agg",
    "PYTHONNOUSERSITE": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONIOENCODING": "utf-8:replace",
    "PYTHONFAULTHANDLER": "1",
}


def engine_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """For the engine's process: ours, without what would put our modules before its own."""
    return {**{name: value for name, value in environ.items() if name not in DROPPED}, **SET}


class HostLink:
    """One process. To be made in the main thread, as :class:`DrainedProcess`."""

    def __init__(
        self, python: str, root: Path, arguments: Sequence[str], environ: Mapping[str, str], log_fd: int
    ) -> None:
        """Raises Unavailable when no process can be made."""
        self._channel, theirs = socket.socketpair()
        with theirs:
            try:
                self.process = DrainedProcess(
                    [python, "-s", "-u", str(HOST), str(theirs.fileno())],
                    cwd=root,
                    environ=engine_environ(environ),
                    log_fd=log_fd,
                    pass_fds=[theirs.fileno()],
                )
            except OSError as error:
                self._channel.close()
                raise Unavailable(Why.REFUSED, str(error)) from error
        self._channel.settimeout(SEND_S)
        self._rest = bytearray()
        self._write(msgspec.json.encode({"root": str(root), "arguments": list(arguments)}) + b"\n")

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, do: str, **fields: Any) -> None:
        """Raises RequestTooLong. That the process is gone is told by :meth:`hear`."""
        self._write(encode(do, **fields))

    def _write(self, line: bytes) -> None:
        try:
            self._channel.sendall(line)
        except TimeoutError as error:  # and half a line may have gone: nothing can follow it
            raise BadWord(f"the engine's process has read nothing for {SEND_S:g} s") from error
        except OSError:  # hear() knows how it ended
            return

    def hear(self, timeout_s: float) -> Heard | None:
        """The next message, or None after ``timeout_s`` seconds. What it said before it ended is heard first. Raises
        Gone, BadWord."""
        end = time.monotonic() + timeout_s
        while (line := self._line()) is None:
            left = end - time.monotonic()
            code = self.process.exit_code()
            if self._receive(0 if code is not None else max(0.0, min(left, SLICE_S))):
                continue
            if code is not None:
                self.process.drained()
                raise Gone(code, self.process.lines(TAIL_LINES))
            if left <= 0:
                return None
        try:
            return decode(line)
        except msgspec.DecodeError as error:
            raise BadWord(f"the engine's process said what is not of the protocol: {error}") from error

    def _line(self) -> bytes | None:
        end = self._rest.find(b"\n")
        if end < 0:
            if len(self._rest) > LINE_BYTES:
                raise BadWord(f"the engine's process said more than {LINE_BYTES} bytes in a line")
            return None
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return line

    def _receive(self, timeout_s: float) -> bool:
        """Whether something came."""
        poller = select.poll()
        poller.register(self._channel, select.POLLIN)
        if not poller.poll(timeout_s * 1000):
            return False
        try:
            chunk = self._channel.recv(CHUNK_BYTES)
        except OSError:
            chunk = b""
        self._rest += chunk
        if not chunk:  # closed at the other end: the exit code is about to come
            self.process.wait(SLICE_S)
        return bool(chunk)

    def tail(self) -> list[str]:
        """The last lines it printed."""
        return self.process.lines(TAIL_LINES)

    def stop(self, grace_s: float) -> None:
        """End it and all below it: without ``grace_s`` seconds to leave by itself, at once. Safe to call again."""
        if self._channel.fileno() >= 0:
            if grace_s > 0 and self._asked_to_leave():
                self.process.wait(grace_s)
            self._channel.close()
        self.process.stop(0)

    def _asked_to_leave(self) -> bool:
        self._channel.settimeout(0)
        try:
            return self._channel.send(encode("leave")) > 0
        except OSError:  # it is gone, or reads nothing
            return False


def own_environ() -> Mapping[str, str]:
    """This process's."""
    return os.environ
