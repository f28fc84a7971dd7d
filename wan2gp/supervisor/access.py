"""Whether a handler's own user could do with the operator's files what it is there for.

Judged by owner, group and mode, in a bounded look: the upper levels, some thousand entries. Access lists are not looked
at.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections import deque
from collections.abc import Iterable, Iterator

from wan2gp.supervisor.users import User, closed_to, may

LEVELS = 3
ENTRIES_MAX = 3_000
"""Looked at below one place."""
SECONDS_MAX = 2.0
READ, WRITE, ENTER = 4, 2, 1


def cannot_write(user: User, places: Iterable[str]) -> str | None:
    """What keeps this user from writing to the first of these places that it cannot write to, with the remedy."""
    for place in places:
        for path, status in _below(place):
            needed = READ | WRITE | ENTER if stat.S_ISDIR(status.st_mode) else READ | WRITE
            if status.st_uid != user.uid and not may(user, status, needed):
                return (
                    f"{path} cannot be written by the user id {user.uid}, and {place} is a place that settings name "
                    f"for writing: `chown -R {user.uid} {place}` gives the handler a user of its own (where several "
                    f"write there: `chgrp -R {user.shared} {place}; chmod -R g+rwX {place}`)"
                )
    return None


def cannot_read(user: User, places: Iterable[str]) -> str | None:
    """The same for what it must read: models above all."""
    for place in places:
        for path, status in _below(place, follow=True):
            if os.path.islink(path) and (closed := closed_to(user, [path])):
                return closed
            needed = READ | ENTER if stat.S_ISDIR(status.st_mode) else READ
            if not may(user, status, needed):
                return (
                    f"{path} cannot be read by the user id {user.uid}: `chmod -R o+rX {place}`, "
                    f"or `chgrp -R {user.shared} {place}; chmod -R g+rX {place}`"
                )
    return None


def _below(place: str, *, follow: bool = False) -> Iterator[tuple[str, os.stat_result]]:
    """It and what is in it, breadth first; with ``follow`` also what a link leads to."""
    count, ends = 0, time.monotonic() + SECONDS_MAX
    waiting = deque([(place, 0)])
    with contextlib.suppress(OSError):
        yield place, os.stat(place)
    while waiting and count < ENTRIES_MAX and time.monotonic() < ends:
        folder, level = waiting.popleft()
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                count += 1
                try:
                    status = entry.stat(follow_symlinks=follow)
                except OSError:  # gone, or a link to nothing
                    continue
                if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
                    yield entry.path, status
                if stat.S_ISDIR(status.st_mode) and level < LEVELS:
                    waiting.append((entry.path, level + 1))
                if count >= ENTRIES_MAX:
                    return
