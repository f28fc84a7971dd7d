"""Which tasks an engine was killed under: the kernel that ends a process for its memory leaves no other trace."""

from __future__ import annotations

import collections
from collections.abc import Callable

from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.comfy_errors import KILLED, killed_again

REMEMBERED = 256
"""Tasks; the oldest is forgotten first, and is then tried once more than it need be."""


class KilledTasks:
    """In this process only: on another worker, with other memory, the task may well end."""

    def __init__(self, again: Callable[[TaskFailure], TaskFailure] = killed_again) -> None:
        """``again``: what the second failure of a task becomes."""
        self._again = again
        self._tasks: collections.OrderedDict[str, None] = collections.OrderedDict()

    def judge(self, task_id: str, failure: TaskFailure) -> TaskFailure:
        """The failure as it should be reported: a second kill under one task is its lack of memory."""
        if not failure.detail.get(KILLED):
            return failure
        if task_id in self._tasks:
            return self._again(failure)
        self._tasks[task_id] = None
        if len(self._tasks) > REMEMBERED:
            self._tasks.popitem(last=False)
        return failure
