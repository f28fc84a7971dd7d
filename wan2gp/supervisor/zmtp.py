"""The supervisor's side of ZMTP, the protocol between ZeroMQ's sockets: bytes in, messages out, no I/O.

Why not libzmq here, which children and `wan2gp-ctl` use: it trusts its peers. It ends the whole process (an assertion
in ``ipc_listener.cpp``) when one peer opens more connections than there are descriptors, it limits how many messages
wait but not how many bytes, and it keeps the parts of a message that never ends without any limit, at sixteen times
their size. Each of these would let one handler end the supervisor, and everybody's tasks with it.

A peer is a DEALER: greeting, NULL handshake, which gives its identity, then messages of so many frames at most, with
one limit for the whole. Anything else is a :class:`Violation`. Source: ZMTP 3.0, https://rfc.zeromq.org/spec/23/; its
heartbeats, which libzmq sends where it is told to, are those of 3.1, https://rfc.zeromq.org/spec/37/.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

MORE, LONG, COMMAND = 1, 2, 4
"""The bits of a frame's first byte."""
_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_NULL = b"NULL".ljust(20, b"\0")
_GREETING_BYTES = 64
GREETING = (_SIGNATURE + b"\x03\x00" + _NULL).ljust(_GREETING_BYTES, b"\0")
"""Version 3.0, no encryption: the socket is local, and its peers are known by the kernel's word."""
_READY = b"\x05READY"
_PING, _PONG = b"\x04PING", b"\x04PONG"
_TTL_BYTES = 2
_CONTEXT_MAX = 16
_UNSENT_MAX = 4096
"""Most of our answers to heartbeats that may wait for a peer that does not read them, bytes."""
_SHORT_MAX = 255
_HANDSHAKE_MAX = 1024
"""Longest handshake, bytes: it holds two names and two short values."""


class Violation(Exception):
    """What has come is not ZMTP as a DEALER of ours speaks it."""


def frame(payload: bytes, flags: int = 0) -> bytes:
    """``payload`` as one frame."""
    if len(payload) <= _SHORT_MAX:
        return bytes((flags, len(payload))) + payload
    return struct.pack("!BQ", flags | LONG, len(payload)) + payload


def message(parts: Sequence[bytes]) -> bytes:
    """``parts`` as one message."""
    *before, last = parts
    return b"".join(frame(each, MORE) for each in before) + frame(last)


def ready(socket_type: bytes, identity: bytes = b"") -> bytes:
    """The command that ends the handshake on one side."""
    properties = ((b"Socket-Type", socket_type), (b"Identity", identity))
    told = b"".join(bytes((len(name),)) + name + struct.pack("!I", len(value)) + value for name, value in properties)
    return frame(_READY + told, COMMAND)


class Session:
    """One connection's protocol. Feed it what has come; send :attr:`answer` as it grows; take messages with
    :meth:`take`."""

    def __init__(self, max_bytes: int, max_frames: int = 1, *, heartbeats: bool = False) -> None:
        """``max_bytes``, ``max_frames``: the longest message, all its frames together. ``heartbeats``: answer them."""
        self._max_bytes = max_bytes
        self._max_frames = max_frames
        self._heartbeats = heartbeats
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._buffer = bytearray()
        self._greeted = False
        self.identity: bytes | None = None
        """What the peer calls itself, once the handshake is done."""
        self.answer = bytearray(GREETING)
        """What is to be sent beside messages, between two of them; whoever sends it empties it."""

    def feed(self, data: bytes) -> None:
        """Take what has come. No more than one message and one read are ever held."""
        self._buffer += data

    def shake(self) -> bool:
        """Go on with the handshake; True once it is done. Raises :class:`Violation`."""
        if not self._greeted:
            self._greet()
        if self._greeted and self.identity is None:
            self._hear_ready()
        return self.identity is not None

    @property
    def held(self) -> int:
        """Bytes that have come and were not taken yet."""
        return len(self._buffer) + self._parts_bytes

    def take(self) -> list[bytes] | None:
        """The next message's frames, or None until all have come. Raises :class:`Violation`."""
        while (found := self._frame(self._max_bytes - self._parts_bytes)) is not None:
            flags, body = found
            if flags & COMMAND:
                self._hear_command(body)
                continue
            self._parts.append(body)
            self._parts_bytes += len(body)
            if not flags & MORE:
                whole, self._parts, self._parts_bytes = self._parts, [], 0
                return whole
        return None

    def _hear_command(self, body: bytes) -> None:
        context = body[len(_PING) + _TTL_BYTES :]
        if not self._heartbeats or not body.startswith(_PING) or len(context) > _CONTEXT_MAX:
            raise Violation("a command after the handshake")
        self.answer += frame(_PONG + context, COMMAND)
        if len(self.answer) > _UNSENT_MAX:
            raise Violation("more heartbeats than it reads answers to")

    def _greet(self) -> None:
        start = self._buffer[:_GREETING_BYTES]
        if not (_SIGNATURE[:1].startswith(start[:1]) and _SIGNATURE[9:].startswith(start[9:10])):
            raise Violation("a greeting that is not ZMTP's")
        if len(start) < _GREETING_BYTES:
            return
        if start[10] < 3 or start[12:32] != _NULL:
            raise Violation("a greeting of another version or mechanism")
        del self._buffer[:_GREETING_BYTES]
        self._greeted = True
        self.answer += ready(b"ROUTER")

    def _hear_ready(self) -> None:
        found = self._frame(_HANDSHAKE_MAX)
        if found is None:
            return
        flags, body = found
        if not flags & COMMAND or not body.startswith(_READY):
            raise Violation("no handshake after the greeting")
        properties = _properties(body[len(_READY) :])
        if properties.get(b"socket-type") != b"DEALER":
            raise Violation("a socket that is no DEALER")
        self.identity = properties.get(b"identity", b"")

    def _frame(self, max_bytes: int) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if not buffer:
            return None
        flags = buffer[0]
        if flags & MORE and len(self._parts) + 1 >= self._max_frames:
            most = "several" if self._max_frames == 1 else f"more than {self._max_frames}"
            raise Violation(f"a message of {most} frames")
        if flags & ~(MORE | LONG | COMMAND) or flags & MORE and flags & COMMAND:
            raise Violation("a frame with reserved bits")
        start = 9 if flags & LONG else 2
        if len(buffer) < start:
            return None
        size = int.from_bytes(buffer[1:start], "big")
        if size > max_bytes:
            raise Violation(f"a frame of {size} bytes: limit {max_bytes}")
        if len(buffer) < start + size:
            return None
        body = bytes(buffer[start : start + size])
        del buffer[: start + size]
        return flags, body


def _properties(data: bytes) -> dict[bytes, bytes]:
    """The handshake's names, in lower case, and values."""
    found: dict[bytes, bytes] = {}
    while data:
        name_end = 1 + data[0]
        value_at = name_end + 4
        value_end = value_at + int.from_bytes(data[name_end:value_at], "big")
        if value_end > len(data):
            raise Violation("a handshake that is cut off")
        found[data[1:name_end].lower()] = data[value_at:value_end]
        data = data[value_end:]
    return found
