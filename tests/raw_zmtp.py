"""ZMTP by hand, for peers that do what no socket of ZeroMQ's would. Standard library only: handlers import it."""

from __future__ import annotations

import socket
import struct

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
MORE, LONG, COMMAND = 1, 2, 4


def frame(payload: bytes, flags: int = 0) -> bytes:
    return struct.pack("!BQ", flags | LONG, len(payload)) + payload


def ready(identity: bytes, socket_type: bytes = b"DEALER") -> bytes:
    body = b"\x05READY"
    for name, value in ((b"Socket-Type", socket_type), (b"Identity", identity)):
        body += bytes((len(name),)) + name + struct.pack("!I", len(value)) + value
    return frame(body, COMMAND)


def connect(endpoint: str) -> socket.socket:
    """A connection that has said nothing yet."""
    own = socket.socket(socket.AF_UNIX)
    own.connect(endpoint.removeprefix("ipc://"))  # before it has a time limit: with one, a full queue is an error
    own.settimeout(10)
    return own


def join(endpoint: str, identity: bytes) -> socket.socket:
    """A connection under a name."""
    own = connect(endpoint)
    own.sendall(GREETING + ready(identity))
    return own
