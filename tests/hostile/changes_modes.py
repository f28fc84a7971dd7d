"""Opens what is closed and closes what is open: modes, owners, times and labels of `prey["spoilt"]`, by name."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Tries


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    for label, path in prey["spoilt"].items():
        for name, act in WAYS.items():
            tries(f"{label}, {name}", lambda act=act, path=path: act(path))


def mode(path: str) -> str:
    """And back: whether it may be changed is seen by another mode, not by the call's word."""
    before = stat.S_IMODE(os.stat(path).st_mode)
    os.chmod(path, before ^ 0o004)
    after = stat.S_IMODE(os.stat(path).st_mode)
    if after == before:
        raise PermissionError(1, "it said yes and did nothing")
    os.chmod(path, before)
    return oct(after)


def owner(path: str) -> str:
    os.chown(path, os.getuid(), os.getgid())
    return "owned"


def times(path: str) -> str:
    found = os.stat(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    return "touched"


def label(path: str) -> str:
    os.setxattr(path, "user.vice", b"was here")
    os.removexattr(path, "user.vice")
    return "labelled"


WAYS = {"mode": mode, "owner": owner, "times": times, "label": label}
