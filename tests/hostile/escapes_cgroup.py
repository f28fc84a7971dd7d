"""Leaves the group that limits it, or lifts its limits: the groups are those of `prey["groups"]`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Tries

LIMITS = ("memory.max", "pids.max", "memory.limit_in_bytes", "memory.swap.max", "notify_on_release", "release_agent")
HOME = Path("/sys/fs/cgroup")


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    tries.saw["groups"] = "none here"
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        for root in (HOME / controllers, HOME / "unified", HOME):
            if (root / "cgroup.procs").exists():
                tries(f"{root}, out", lambda root=root: opened(root / "cgroup.procs"))
                tries(f"{root}, a group below", lambda root=root, group=group: made(root / group.lstrip("/")))
                for name in LIMITS:
                    if (own := root / group.lstrip("/") / name).exists():
                        tries(str(own), lambda own=own: opened(own))


def opened(path: Path) -> str:
    """To write; nothing is written."""
    os.close(os.open(path, os.O_WRONLY))
    return "opened"


def made(group: Path) -> str:
    (place := group / "vice").mkdir()
    place.rmdir()
    return "made"
