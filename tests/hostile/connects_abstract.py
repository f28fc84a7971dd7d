"""Talks to a socket without a file, to which anybody on the machine may connect: `prey["abstract"]` is its name."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Tries


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    tries("connects", lambda: connected(socket.SOCK_STREAM, prey["abstract"]))
    tries("sends", lambda: sent(prey["abstract"] + "-datagrams"))


def connected(kind: int, name: str) -> str:
    with socket.socket(socket.AF_UNIX, kind) as made:
        made.connect(f"\0{name}")
        return "connected"


def sent(name: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        return made.sendto(b"secret", f"\0{name}")
