"""What a profile's paths come to on this disk: where links of model directories lead, what lists of paths name.

Nothing that a handler can write itself widens what any handler may read: a link, a list or an environment's
configuration below a path that some handler may write is passed over. So is what would open a place that the profile
closes, or everything. It is looked at here, before each start, and not by the supervisor: a disk that does not answer
holds up this process alone.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from wan2gp.profile import Profile
from wan2gp.sandbox.interpreters import PREFIX_PARTS, interpreter_places
from wan2gp.sandbox.links import below, real
from wan2gp.sandbox.path_lists import directories_of

LINKS_DEEP = 8
"""How far below a model directory links are looked for."""
ENTRIES_MAX = 50_000
"""How many entries of model directories are looked at in all, so that a start never takes minutes."""
OTHERS_MAX = 2_000
"""The same, of the other directories: packs of nodes hold many files and few links."""
SECONDS_MAX = 5.0
"""Nor longer than this: a disk may be far away."""
REMEDY = "grant what the others lead to with sandbox.read_paths"


@dataclass
class Readable:
    """Paths to grant, without links, and in a sentence each what was passed over."""

    paths: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def readable(profile: Profile) -> Readable:
    """All that may be read: the profile's own, and what its models, lists, links and interpreters lead to."""
    search = _Search(profile)
    roots = [*profile.models]
    for path in profile.path_lists:
        if search.is_strange(path):
            search.found.notes.append(f"{path} names no directories: a handler may write it itself")
        else:
            roots += directories_of(path)
    for python in profile.interpreters:
        search.interpreter(python)
    search.roots(roots)
    search.walk(ENTRIES_MAX, "model directories", LINKS_DEEP)
    for folder, levels in profile.links.items():
        search.links_of(folder, levels)
    search.walk(OTHERS_MAX, ", ".join(profile.links), 0)
    return search.found


class _Search:
    """Where directories and the links below them lead, each place once, those near the top first."""

    def __init__(self, profile: Profile) -> None:
        self.found = Readable(list(profile.read))
        self._untrusted = tuple(dict.fromkeys((*profile.write, *profile.untrusted)))
        self._never = [os.path.realpath(path) for path in profile.never]
        self._seen: set[str] = set()
        self._waiting: deque[tuple[str, int]] = deque()
        self._ends = time.monotonic() + SECONDS_MAX

    def is_strange(self, path: str) -> bool:
        """Whether a handler may have made or written it, or a link on the way to it."""
        place = real(path, self._untrusted)
        return place is None or self._writable(place)

    def roots(self, places: Iterable[str]) -> None:
        for place in places:
            self._reach(place, LINKS_DEEP)

    def links_of(self, folder: str, levels: int) -> None:
        """Of a directory that is granted already."""
        place = real(folder, self._untrusted)
        if place is not None:
            self._waiting.append((place, levels))

    def interpreter(self, python: str) -> None:
        for prefix in interpreter_places(python, self._untrusted):
            if self._shut(prefix) is None:
                self._grant(prefix)
            else:
                for part in PREFIX_PARTS:
                    self._grant(f"{prefix}/{part}")

    def _grant(self, path: str) -> None:
        place = real(path, self._untrusted)
        if place is not None and self._shut(place) is None:
            self.found.paths.append(place)

    def walk(self, most: int, what: str, again: int) -> None:
        """Look at so many entries below what is waiting; behind a link, ``again`` levels are looked at."""
        looked_at = 0
        while self._waiting:
            directory, levels = self._waiting.popleft()
            for entry in _entries(directory):
                with contextlib.suppress(OSError):  # gone between two looks
                    self._look(entry, levels, again, self._writable(directory))
                looked_at += 1
                if looked_at > most or time.monotonic() > self._ends:
                    self.found.notes.append(
                        f"after {looked_at} entries of {what} no more links are looked for: {REMEDY}"
                    )
                    self._waiting.clear()
                    return

    def _writable(self, path: str) -> bool:
        return any(below(path, place) for place in self._untrusted)

    def _look(self, entry: os.DirEntry[str], levels: int, again: int, writable: bool) -> None:
        if not entry.is_symlink():
            if levels > 0 and entry.is_dir(follow_symlinks=False):
                self._waiting.append((entry.path, levels - 1))
        elif not writable:
            self._reach(entry.path, again)
        elif not below(real(entry.path, ()) or "/", os.path.dirname(entry.path)):
            self.found.notes.append(f"{entry.path} is not followed: a handler may have made it itself")

    def _reach(self, path: str, levels: int) -> None:
        target = real(path, self._untrusted)
        if target is None and real(path, ()) is not None:
            self.found.notes.append(f"{path} is not followed: it leads over a link that a handler may have made itself")
        if target is None or target in self._seen:
            return
        self._seen.add(target)
        shut = self._shut(target)
        if shut is not None:
            self.found.notes.append(f"{path} is not followed: {target} would open {shut}")
        else:
            self.found.paths.append(target)
            self._waiting.append((target, levels))

    def _shut(self, target: str) -> str | None:
        """What a grant of it would open that must not be."""
        if target == "/":
            return "everything"
        return next((place for place in self._never if below(place, target) or below(target, place)), None)


def _entries(directory: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except OSError:  # a file, gone, or closed to us: so it is to the handler
        return
