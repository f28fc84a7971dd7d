"""Looks at what it was given without asking: open files, variables, arguments; `prey["words"]` must not be there."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Refused, Tries


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    tries("open files", lambda: files(prey["data_dir"]))
    tries("variables", lambda: words(Path("/proc/self/environ").read_bytes(), prey["words"]))
    tries("arguments", lambda: words(Path("/proc/self/cmdline").read_bytes(), prey["words"]))
    tries("limits", limits)


def files(data_dir: str) -> str:
    """Regular files and directories of the worker's that somebody left open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target, kind = os.readlink(f"/proc/self/fd/{name}"), os.stat(f"/proc/self/fd/{name}").st_mode
        except OSError:
            continue
        if target.startswith(data_dir) and (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            found.append(target)
    strangers = [target for target in found if "/handlers/" not in target and "/work/" not in target]
    if not strangers:
        raise Refused("nothing of the supervisor's")
    return str(strangers)


def words(data: bytes, secrets: list[str]) -> str:
    found = [word for word in secrets if word.encode() in data]
    if not found:
        raise Refused("no secret")
    return str(found)


def limits() -> str:
    import resource

    if resource.getrlimit(resource.RLIMIT_CORE) == (0, 0):
        raise Refused("no core dumps")
    return str(resource.getrlimit(resource.RLIMIT_CORE))
