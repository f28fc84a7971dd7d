"""Orders the supervisor about: `prey["control"]` is its socket, `prey["token"]` the file with the word for it."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Refused, Tries

WAIT_S = 1.0
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16 + 1 + 31)
"""ZMTP 3.0, without security."""
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    tries("the token", lambda: Path(prey["token"]).read_bytes()[:10])
    tries("without a token", lambda: ordered(prey["control"], b""))
    tries("with a guess", lambda: ordered(prey["control"], b"0" * 64))
    tries("with rubbish", lambda: rubbish(prey["control"]))


def frame(data: bytes, more: bool) -> bytes:
    return bytes([1 if more else 0, len(data)]) + data


def ordered(path: str, token: bytes) -> str:
    """That it take no more tasks, as the control client would."""
    request = json.dumps({"op": "drain"}).encode()
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(WAIT_S)
        made.connect(path)
        made.sendall(GREETING)
        made.recv(64, socket.MSG_WAITALL)
        made.sendall(READY)
        head = made.recv(2, socket.MSG_WAITALL)
        if len(head) < 2:
            raise Refused("hung up")
        made.recv(head[1], socket.MSG_WAITALL)
        made.sendall(frame(b"1", True) + frame(token, True) + frame(request, False))
        try:
            answer = made.recv(4096)
        except TimeoutError:
            raise Refused("no answer") from None
    if not answer:
        raise Refused("hung up")
    if b"refused" in answer or b"token" in answer:
        raise Refused("it wants the token")
    return f"answered {answer[:60]!r}"


def rubbish(path: str) -> str:
    """No message at all; what counts is that it serves others afterwards."""
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(WAIT_S)
        made.connect(path)
        made.sendall(b"\0\xff" * 100_000)
    raise Refused("nothing to answer")
