"""Whose a process is that connects to us: by its control group, by its parents, by the user of its own that it has.

Who is asked about may have made a chain of thousands of parents to keep the asker busy, so what is asked for each
connection is bounded; only when somebody must be blamed is such a chain followed to its end.
"""

from __future__ import annotations

import functools
import os

from wan2gp.cgroups import owner_name
from wan2gp.processes import HOPS_MAX, groups_of, lineage, user_of

FAR_HOPS_MAX = 10_000
"""More parents than a handler may have processes."""
FAR_EVERY_S = 5.0
"""Shortest time between two walks so far, which take a tenth of a second, seconds."""


class Kin:
    """What there is to know of one process; each thing is read when it is asked for, and once. Reading raises
    :class:`OSError` where ``/proc`` cannot be read."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._hops = HOPS_MAX

    def is_of(self, shim: int, uid: int | None) -> bool:
        """Whether it is below this shim, whose handler has a user of its own, or none (None)."""
        if shim <= 0:
            return False
        if self._shim_of_group is not None:
            return self._shim_of_group == shim
        return shim in self._parents or (self.deep and uid is not None and self._uid == uid)

    @property
    def deep(self) -> bool:
        """Whether it has more parents than were looked at."""
        return len(self._parents) >= self._hops

    def look_far(self) -> None:
        """Look at all its parents. It takes its time."""
        self._hops = FAR_HOPS_MAX
        self.__dict__.pop("_parents", None)

    @functools.cached_property
    def _parents(self) -> tuple[int, ...]:
        return tuple(lineage(self.pid, self._hops))[1:]

    @functools.cached_property
    def _shim_of_group(self) -> int | None:
        """By the control group, which nobody leaves; None when it is in none that a shim of ours has made."""
        for path in groups_of(self.pid):
            above, _, group = path.rpartition("/")
            shim = group.rpartition("-")[2]
            if above.rpartition("/")[2] == _our_groups(os.getpid()) and shim.isdigit():
                return int(shim)
        return None

    @functools.cached_property
    def _uid(self) -> int | None:
        return user_of(self.pid)


@functools.lru_cache(maxsize=1)
def _our_groups(pid: int) -> str:
    return owner_name(pid)
