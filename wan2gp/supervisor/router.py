"""The supervisor's end of the wire: a ROUTER that knows its peers, drops strangers and never blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import zmq

from wan2gp.protocol import MAX_MESSAGE_BYTES, Down, ProtocolError, Up, decode_up, encode

QUEUE_FRAMES = 1000
"""Frames that may wait in either direction for one peer."""
BURST = 256
"""Frames taken in one go, so that a chatty child cannot keep the loop from its other duties."""


class Unreachable(Exception):
    """The peer is not connected, or does not read: its death will be seen elsewhere."""


class Router:
    """One ROUTER socket. Only peers that were :meth:`admit`-ted are heard."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)  # before anything of it is taken into memory
        self._socket.setsockopt(zmq.SNDHWM, QUEUE_FRAMES)
        self._socket.setsockopt(zmq.RCVHWM, QUEUE_FRAMES)
        self._socket.bind(endpoint)
        self._peers: set[bytes] = set()
        self.endpoint = endpoint
        if endpoint.startswith("ipc://"):
            Path(endpoint.removeprefix("ipc://")).chmod(0o600)

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """For a poller."""
        return self._socket

    def admit(self, identity: bytes) -> None:
        """Hear this peer from now on."""
        self._peers.add(identity)

    def expel(self, identity: bytes) -> None:
        """Its incarnation is over: whatever it still says is dropped."""
        self._peers.discard(identity)

    def send(self, identity: bytes, message: Down) -> None:
        """Send without waiting. Raises :class:`Unreachable`, or :class:`ProtocolError` for what is too large."""
        try:
            self._socket.send_multipart([identity, encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:  # EHOSTUNREACH: not connected; EAGAIN: its queue is full
            raise Unreachable(f"cannot reach {identity.decode(errors='replace')}: {error}") from error

    def receive(self) -> Iterator[tuple[bytes, Up | ProtocolError]]:
        """What has arrived, at most a burst of it; a frame that is no message comes as the error it is."""
        with contextlib.suppress(zmq.Again):
            for _ in range(BURST):
                identity, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
                if identity not in self._peers:
                    continue
                if len(frames) != 1:
                    yield identity, ProtocolError(f"a message of {len(frames)} frames")
                else:
                    yield identity, _decoded(frames[0])

    def close(self) -> None:
        """Unbind and close."""
        self._socket.close()


def _decoded(frame: bytes) -> Up | ProtocolError:
    try:
        return decode_up(frame)
    except ProtocolError as error:
        return error
