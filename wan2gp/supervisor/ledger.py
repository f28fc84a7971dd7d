"""Which processes are ours, on disk, so that the next life can end what this one could not; and strays of this life.

The shims see to it that there is normally nothing left. A pid alone proves nothing: it is killed only together with
the start time that was written down.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from wan2gp.processes import children, descendants, kill, kill_named, start_time


class Ledger:
    """The file ``children.json`` of the data directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: frozenset[int] = frozenset()

    def sweep(self) -> int:
        """End what an earlier life left. Returns how many processes that were."""
        try:
            entries = json.loads(self._path.read_text())
            count = sum(kill_named(int(pid), int(started)) for pid, started in entries)
        except (OSError, ValueError, TypeError):
            return 0
        return count

    def write(self, pids: Iterable[int]) -> None:
        """Note the processes that run now; cheap when nothing has changed."""
        now = frozenset(pids)
        if now == self._written:
            return
        self._written = now
        entries = [(pid, started) for pid in sorted(now) if (started := start_time(pid)) is not None]
        fresh = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # a full disk: the shims do the work anyway
            fresh.write_text(json.dumps(entries))
            fresh.rename(self._path)


Named = tuple[int, "int | None"]
"""A process: its pid and its start time."""


def already_here() -> frozenset[Named]:
    """Our children before we have started any: an entry script that became us had started them, sshd for instance."""
    return frozenset((pid, start_time(pid)) for pid in children(os.getpid()))


def end_strays(owned: frozenset[int], foreign: frozenset[Named] = frozenset()) -> int:
    """Kill and reap what fell to us because its shim was killed. Returns how many.

    Our own helpers run in our session; a handler's processes never do. ``foreign``: those of :func:`already_here`.
    """
    session = os.getsid(0)
    count = 0
    for pid in children(os.getpid()):
        if pid in owned or _session(pid) == session or (pid, start_time(pid)) in foreign:
            continue
        for victim in [*descendants(pid), pid]:
            kill(victim)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # this pid alone: others belong to their owners
        count += 1
    return count


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
