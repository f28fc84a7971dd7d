"""Reads the variables of other processes, where secrets use to stand: `prey["pids"]`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Tries


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    for who, pid in prey["pids"].items():
        tries(f"{who} environ", lambda pid=pid: Path(f"/proc/{pid}/environ").read_bytes()[:20])
        tries(f"{who} auxv", lambda pid=pid: Path(f"/proc/{pid}/auxv").read_bytes()[:8])
        for thread in ("self", "thread-self"):
            tries(f"{who} by {thread}", lambda pid=pid, thread=thread: around(thread, pid))


def around(own: str, pid: int) -> bytes:
    """The same file on a way that a list of forbidden names would not know."""
    return Path(f"/proc/{own}/root/proc/{pid}/task/{pid}/environ").read_bytes()[:20]
