"""Asks Postgres for a session: `prey["postgres"]` has the socket's path, perhaps a port, and a user and database."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Refused, Tries

WAIT_S = 5.0
ASKS = {3: "a password", 5: "a password", 10: "a password (SCRAM)"}
"""Kinds of authentication request, by the protocol's number."""


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    known = prey["postgres"]
    tries("by its socket", lambda: session(socket.AF_UNIX, known["path"], known))
    if "port" in known:
        tries("by its port", lambda: session(socket.AF_INET, ("127.0.0.1", known["port"]), known))


def session(family: int, to: Any, known: Mapping[str, Any]) -> str:
    """Version 3.0 of the protocol: who I am, and what it says to that."""
    words = b"".join(part.encode() + b"\0" for part in ("user", known["user"], "database", known["database"])) + b"\0"
    with socket.socket(family, socket.SOCK_STREAM) as made:
        made.settimeout(WAIT_S)
        made.connect(to)
        made.sendall(struct.pack("!II", 8 + len(words), 196608) + words)
        kind, answer = made.recv(1), made.recv(4096)
    if kind == b"E":
        raise Refused(answer[4:].split(b"\0")[0].decode())
    number = struct.unpack("!I", answer[4:8])[0] if kind == b"R" else -1
    if number in ASKS:
        raise Refused(f"asks for {ASKS[number]}")
    return f"let in: {kind!r} {number}"
