"""Which processes are ours, on disk, so that the next life can end what this one could not; and strays of this life.

The shims see to it that there is normally nothing left. A pid alone proves nothing: it is killed only together with
the start time that was written down, which counts from the boot that was written down.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from wan2gp.processes import boot_id, children, descendants, kill, kill_named, lineage, start_time

STRAYS_S = 0.25
"""How long one look for strays may go on while new ones appear, seconds."""
STRAYS_PAUSE_S = 0.002


class Ledger:
    """The file ``children.json`` of the data directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: frozenset[int] = frozenset()

    def sweep(self) -> int:
        """End what an earlier life left. Returns how many processes that were."""
        try:
            said = json.loads(self._path.read_text())
            entries = [(int(pid), int(started)) for pid, started in said["processes"]]
            here = said["boot"] == boot_id() is not None
        except (OSError, ValueError, TypeError, KeyError):  # damaged, or of another kind: it names nobody
            return 0
        return sum(kill_named(*entry) for entry in entries) if here else 0

    def write(self, pids: Iterable[int]) -> None:
        """Note the processes that run now; cheap when nothing has changed."""
        now = frozenset(pids)
        if now == self._written:
            return
        self._written = now
        entries = [(pid, started) for pid in sorted(now) if (started := start_time(pid)) is not None]
        fresh = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # a full disk: the shims do the work anyway
            fresh.write_text(json.dumps({"boot": boot_id(), "processes": entries}))
            fresh.rename(self._path)


Named = tuple[int, "int | None"]
"""A process: its pid and its start time."""


def already_here() -> frozenset[Named]:
    """Our children before we have started any: an entry script that became us had started them, sshd for instance."""
    return frozenset((pid, start_time(pid)) for pid in children(os.getpid()))


def came_before(pid: int, foreign: frozenset[Named]) -> bool:
    """Whether a process is one of those of :func:`already_here`, or below one: nothing that we start ever is."""
    pids = {one for one, _ in foreign}
    return any(one in pids and (one, start_time(one)) in foreign for one in lineage(pid))


def end_strays(owned: frozenset[int], foreign: frozenset[Named] = frozenset()) -> int:
    """Kill and reap what fell to us because its shim was killed. Returns how many.

    Repeats while there is something, for at most :data:`STRAYS_S`: one may fork between the look and the signal, and
    the children of one that dies fall to us. Our own helpers run in our session; a handler's processes never do.
    ``foreign``: those of :func:`already_here`.
    """
    found: set[int] = set()
    end = time.monotonic() + STRAYS_S
    while strays := _strays(owned, foreign):
        found.update(strays)
        for pid in strays:
            for victim in [*descendants(pid), pid]:
                kill(victim)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # this pid alone: others belong to their owners
        if time.monotonic() > end:
            break
        time.sleep(STRAYS_PAUSE_S)
    return len(found)


def _strays(owned: frozenset[int], foreign: frozenset[Named]) -> list[int]:
    session = os.getsid(0)
    ours = [pid for pid in children(os.getpid()) if pid not in owned and _session(pid) != session]
    return [pid for pid in ours if (pid, start_time(pid)) not in foreign]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
