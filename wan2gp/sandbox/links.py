"""Where a path really leads, and by whose word: a link that a handler can have laid is not taken at it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

LINKS_MAX = 40
"""The kernel follows no more in one path (path_resolution(7))."""


@dataclass(frozen=True)
class Way:
    """A path without links, and the directories in which the links lay that led there."""

    end: str
    folders: frozenset[str] = frozenset()

    def passes(self, places: Iterable[str]) -> bool:
        """Whether one of its links lies in one of these places, or below it."""
        return any(below(folder, place) for place in places for folder in self.folders)


def way(path: str) -> Way | None:
    """Like :func:`os.path.realpath`, with the way. What is not there has no links. None for what no path can be, and
    for a chain of links that the kernel would not follow either."""
    rest, here, folders, count = deque(path.split("/")), "/", set(), 0
    while rest:
        part = rest.popleft()
        if part in ("", "."):
            continue
        if part == "..":
            here = os.path.dirname(here)
            continue
        target = _link(os.path.join(here, part))
        if target is None:
            here = os.path.join(here, part)
            continue
        if (count := count + 1) > LINKS_MAX or "\0" in path:
            return None
        folders.add(here)
        here = "/" if target.startswith("/") else here
        rest.extendleft(reversed(target.split("/")))
    return None if "\0" in here else Way(here, frozenset(folders))


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except (OSError, ValueError):  # no link, nothing, closed to us, or what no path can be
        return None


def real(path: str, untrusted: Iterable[str]) -> str | None:
    """Where the path leads; None where that is a link's word that lies below one of the untrusted places, which must be
    without links themselves."""
    found = way(path)
    return None if found is None or found.passes(untrusted) else found.end


def below(path: str, place: str) -> bool:
    """Whether it is that place, or lies in it."""
    return path == place or path.startswith(place.rstrip("/") + "/")
