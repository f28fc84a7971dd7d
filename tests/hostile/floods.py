"""Talks without end: `prey["times"]` messages and lines of output, and rubbish to the socket `prey["router"]`."""

from __future__ import annotations

import gc
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Tries

WAIT_S = 2.0


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    times = int(prey["times"])
    tries("output", lambda: printed(times))
    tries("rubbish", lambda: rubbish(prey["router"]))
    tries("connections", lambda: connections(prey["router"], 200))
    tries("messages", lambda: messages(times, prey))


def printed(times: int) -> int:
    for number in range(times):
        sys.stdout.write(f"\x1b[2J2026-01-01 00:00:00 | CRITICAL | forged line {number}\r")
    sys.stdout.flush()
    return times


def rubbish(path: str) -> int:
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(WAIT_S)
        made.connect(path)
        try:
            for _ in range(100):
                made.sendall(b"\xff\0" * 50_000)
        except OSError:
            return -1  # it hung up
    return 1


def connections(path: str, times: int) -> int:
    held = []
    try:
        for _ in range(times):
            held.append(one := socket.socket(socket.AF_UNIX))
            one.settimeout(WAIT_S)
            one.connect(path)
    finally:
        for one in held:
            one.close()
    return times


def messages(times: int, prey: Mapping[str, Any]) -> int:
    """By the handler's own link, where this is a handler."""
    link = next((thing for thing in gc.get_objects() if type(thing).__name__ == "Link"), None)
    if link is None:
        return 0
    from wan2gp.protocol import Event, Progress

    for number in range(times):
        link.send(Progress(prey["task"], prey["lease"], number / times, detail="x" * 100))
        link.send(Event("comfy.log_warning", {"text": f"flood {number}"}, prey["task"]))
    return times
