"""The asking end of the control socket, as `wan2gp-ctl` and the demo use it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import msgspec
import zmq

from wan2gp.control import AnyRequest, ControlRefused, Refused, Reply, decode_reply, encode

REPLY_S = 15.0
"""Seconds a call waits for its reply: a slow database is given time, a dead supervisor is not waited for longer."""

ALIVE_S = 0.5
"""Seconds between two questions whether the supervisor still lives, while its reply is awaited."""

GREETING_S = 1.0
"""Seconds that a supervisor which lets one in may take to say so."""

R = TypeVar("R", bound=Reply)


def turns_away(endpoint: str) -> bool:
    """Whether this process's connections are closed before a word: a socket of ZeroMQ's does not show that, and
    connects again for ever."""
    with contextlib.suppress(TimeoutError), socket.socket(socket.AF_UNIX) as own:
        own.settimeout(GREETING_S)
        try:
            own.connect(endpoint.removeprefix("ipc://"))
            return not own.recv(1)
        except ConnectionResetError:
            return True
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            return False
    return False


class ControlSilent(Exception):
    """No reply came in time: the supervisor is gone, hangs, or is another program."""


class ControlClient:
    """One connection. Not for several threads at once. Use as a context manager, or call :meth:`close`."""

    def __init__(self, endpoint: str, token: str) -> None:
        self._token = token.encode()
        self._ids = itertools.count(1)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)

    def call(
        self,
        request: AnyRequest,
        expected: type[R],
        timeout_s: float = REPLY_S,
        alive: Callable[[], bool] = lambda: True,
    ) -> R:
        """Ask and wait. Raises :class:`ControlRefused`, or :class:`ControlSilent` after ``timeout_s`` seconds, or soon
        after ``alive`` says no: a socket whose other end is gone is silent and not closed."""
        call_id = str(next(self._ids)).encode()
        self._socket.send_multipart([call_id, self._token, encode(request)])
        reply = self._receive(call_id, timeout_s, alive)
        if isinstance(reply, Refused):
            raise ControlRefused(reply.code, reply.message)
        if not isinstance(reply, expected):
            raise ControlSilent(f"the supervisor answered {type(reply).__name__} instead of {expected.__name__}")
        return reply

    def _receive(self, call_id: bytes, timeout_s: float, alive: Callable[[], bool]) -> Reply:
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            if not self._socket.poll(round(1000 * min(left_s, ALIVE_S)) + 1):
                if alive():
                    continue
                raise ControlSilent("the supervisor is gone")
            frames = self._socket.recv_multipart()
            if len(frames) != 2 or frames[0] != call_id:
                continue  # the late answer to a call that was given up
            try:
                return decode_reply(frames[1])
            except msgspec.DecodeError as error:
                raise ControlSilent(f"the supervisor's answer cannot be read: {error}") from error
        raise ControlSilent(f"the supervisor did not answer within {timeout_s:g} s")

    def close(self) -> None:
        """Give the socket back at once."""
        self._socket.close(linger=0)
        self._context.term()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
