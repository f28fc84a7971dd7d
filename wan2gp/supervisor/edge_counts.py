"""What the predecessor's ``task-counts`` tells, as far as it can be believed: a cheap look before each claim, and for
whom no table is open the only way to learn that a task is not active any more."""

from __future__ import annotations

import enum
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timezone
from typing import Any

from wan2gp.supervisor.edge_calls import COUNTS, EdgeCalls
from wan2gp.supervisor.queue import AccessDenied, FunctionsMissing, QueueUnavailable
from wan2gp.tasks import TaskStatus

ABSENT_S = 600.0
"""How long a function that is missing, or refuses us, is left alone, seconds."""
BELIEVED_S = 120.0
"""It has said that nothing is queued with 34 tasks queued: so long after a claim it is not believed, seconds."""


class Queued(enum.Enum):
    """What a claim may find."""

    NOTHING = "nothing"
    PERHAPS = "perhaps"
    EXPECTED = "expected"
    """Something is ready: a claim that finds nothing has lost a race."""


class EdgeCounts:
    """Safe to use from several threads; only one of them claims."""

    def __init__(self, calls: EdgeCalls, clock: Callable[[], float] = time.monotonic) -> None:
        self._calls = calls
        self._clock = clock
        self._absent_until = float("-inf")
        self._claimed_at = float("-inf")

    def before_claim(self, types: Collection[str]) -> Queued:
        """Whether a claim for these types is worth it. Never raises: without an answer a claim is."""
        now = self._clock()
        try:
            counts = self._ask(active=False)
        except QueueUnavailable:
            counts = None
        found = Queued.PERHAPS if counts is None else _queued(counts, types)
        if found is Queued.NOTHING and now - self._claimed_at < BELIEVED_S:
            return found
        self._claimed_at = now
        return found if found is Queued.EXPECTED else Queued.PERHAPS

    def active(self) -> Mapping[str, str | None] | None:
        """The worker of each active task by the task's id; None when there is no whole list of them.

        Raises :class:`QueueUnavailable`.
        """
        counts = self._ask(active=True)
        listed = None if counts is None else _list(counts, "active_tasks", "active_only")
        return None if listed is None else {str(row.get("task_id")): row.get("worker_id") for row in listed}

    def stats(self) -> Mapping[str, Any]:
        """The queue's numbers as :meth:`TaskQueue.stats <wan2gp.supervisor.queue.TaskQueue.stats>` gives them; empty
        where none are told. Raises :class:`QueueUnavailable`."""
        counts = self._ask(active=True)
        if counts is None:
            return {"counts": [], "oldest_queued_s": {}, "workers": []}
        numbers: Counter[tuple[str, str]] = Counter()
        oldest: dict[str, float] = {}
        for name, status in (("queued_tasks", TaskStatus.QUEUED), ("active_tasks", TaskStatus.IN_PROGRESS)):
            for row in _rows(counts, name):
                task_type = str(row.get("task_type"))
                numbers[task_type, status.value] += 1
                age = _age_s(row.get("created_at"))
                if status is TaskStatus.QUEUED and age is not None:
                    oldest[task_type] = max(age, oldest.get(task_type, 0.0))
        listed = [{"task_type": kind, "status": status, "count": n} for (kind, status), n in sorted(numbers.items())]
        return {"counts": listed, "oldest_queued_s": oldest, "workers": []}

    def check(self) -> bool:
        """Whether it answers, so that the key is good."""
        try:
            return self._ask(active=False) is not None
        except QueueUnavailable:
            return False

    def _ask(self, *, active: bool) -> dict[str, Any] | None:
        if self._clock() < self._absent_until:
            return None
        try:
            said = self._calls.once(COUNTS, {"run_type": "gpu", "include_active": active})
        except (FunctionsMissing, AccessDenied):
            said = None
        body = said.json() if said is not None and said.ok else None
        if isinstance(body, dict) and isinstance(body.get("totals"), dict):
            return body
        self._absent_until = self._clock() + ABSENT_S
        return None


def _queued(counts: Mapping[str, Any], types: Collection[str]) -> Queued:
    queued, eligible = _number(counts, "queued_only"), _number(counts, "eligible_queued")
    if queued is None and eligible is None:
        return Queued.PERHAPS
    if not queued and not eligible:
        return Queued.NOTHING
    listed = _list(counts, "queued_tasks", "queued_only")
    if listed is not None and not any(row.get("task_type") in types for row in listed):
        return Queued.NOTHING
    ready = queued if eligible is None else eligible
    return Queued.EXPECTED if ready else Queued.PERHAPS


def _list(counts: Mapping[str, Any], name: str, total: str) -> list[dict[str, Any]] | None:
    """A list that is whole by the count beside it."""
    rows = counts.get(name)
    number = _number(counts, total)
    if not isinstance(rows, list) or number is None or len(rows) < number:
        return None
    return _rows(counts, name)


def _rows(counts: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    rows = counts.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _number(counts: Mapping[str, Any], name: str) -> int | None:
    number = counts["totals"].get(name)
    return number if isinstance(number, int) else None


def _age_s(created_at: object) -> float | None:
    try:
        when = datetime.fromisoformat(str(created_at).replace("Z", "+00:00"))
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    return max(0.0, (datetime.now(timezone.utc) - when).total_seconds())
