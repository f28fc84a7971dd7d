"""Processes that multiply: what the kernel keeps within limits where it can is counted everywhere.

A child that is at its limit ends: what it started has been refused more, at any place in its code, and nobody knows
what works in it still.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from wan2gp import cgroups
from wan2gp.processes import all_tasks
from wan2gp.supervisor.weight import Excess, Root

CODE = "handler.process_limit"


class Refusals:
    """How often the kernel refused a child another process, by the control group that its shim has made for it."""

    def __init__(self) -> None:
        self._groups: dict[bytes, cgroups.Group] = {}

    def __call__(self, root: Root) -> int:
        group = self._groups.get(root.identity) or cgroups.existing(root.pid, os.getpid())
        if group is None:
            return 0
        self._groups[root.identity] = group
        return group.hits().get("processes", 0)

    def forget_all_but(self, roots: Mapping[Root, int]) -> None:
        """The others are gone."""
        kept = {root.identity for root in roots}
        self._groups = {identity: group for identity, group in self._groups.items() if identity in kept}


class Crowd:
    """``limit``: most processes and threads of one child. ``exceeded`` is called, in the thread that looks, with those
    that are at it."""

    def __init__(
        self,
        limit: int,
        exceeded: Callable[[Mapping[bytes, Excess]], None],
        refused: Refusals | None = None,
        in_all: Callable[[], int | None] = all_tasks,
    ) -> None:
        self._limit = limit
        self._exceeded = exceeded
        self._refused = refused or Refusals()
        self._in_all = in_all
        self._due_at: int | None = None

    def look(self, tasks: Mapping[Root, int]) -> None:
        """Judge how many tasks each child has now."""
        found = {root.identity: excess for root, count in tasks.items() if (excess := self._judge(root, count))}
        self._refused.forget_all_but(tasks)
        room, now = min((self._limit - count for count in tasks.values()), default=0), self._in_all()
        self._due_at = now + max(1, room) if tasks and now is not None else None
        if found:
            self._exceeded(found)

    def hurries(self) -> bool:
        """Whether there are so many more tasks than at the last look that a child may be over its limit by now."""
        if self._due_at is None:
            return False
        now = self._in_all()
        return now is not None and now >= self._due_at

    def _judge(self, root: Root, count: int) -> Excess | None:
        if count >= self._limit:
            return Excess(CODE, f"it had {count} processes and threads, {self._limits()}")
        if self._refused(root):
            return Excess(CODE, f"the kernel refused it another process, {self._limits()}")
        return None

    def _limits(self) -> str:
        return (
            f"the limit is {self._limit} (sandbox.processes): look for what starts them, or raise the limit for an "
            "engine that needs so many"
        )
