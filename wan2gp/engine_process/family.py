"""Which processes are below another: asked of the kernel's own lists, since reading all of ``/proc`` takes too long to
do twice a second while somebody works.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import psutil

_LISTED = os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
"""A kernel may be built without these lists."""


def children(pid: int) -> list[int]:
    """Its children; none when it is gone."""
    return _listed(pid) if _LISTED else _sought(pid)


def below(pid: int) -> Iterator[int]:
    """All that it started and that these did, nearest first along each branch."""
    for child in children(pid):
        yield child
        yield from below(child)


def _listed(pid: int) -> list[int]:
    """A child belongs to the thread that made it."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread ended
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                    found += [int(child) for child in file.read().split()]
    return found


def _sought(pid: int) -> list[int]:
    with contextlib.suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children()]
    return []
