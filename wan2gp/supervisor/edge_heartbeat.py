"""A heartbeat where there is no lease to renew: it finds out which tasks are ours no longer, and shows that we live."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wan2gp.supervisor.edge_book import Book, Held, nameless
from wan2gp.supervisor.edge_counts import EdgeCounts
from wan2gp.supervisor.edge_rows import RUNNING, EdgeRows, Row
from wan2gp.supervisor.queue import HeartbeatReply, LeaseBeat, QueueError, QueueUnavailable
from wan2gp.tasks import TaskStatus

TOUCH_S = 300.0
"""How often a row says that it is worked at; the pod scaler's patience is half an hour, seconds."""
LOOK_S = 15.0
"""How often the counts are asked at most, seconds."""
MISSED_MAX = 2
"""How often in a row the counts must not list a task that they had listed."""
STOPPED = "stopped"
_CANCELLED = TaskStatus.CANCELLED.value


class EdgeHeartbeat:
    """One thread beats."""

    def __init__(
        self,
        worker_id: str,
        counts: EdgeCounts,
        book: Book,
        rows: Callable[[], EdgeRows | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker_id = worker_id
        self._counts = counts
        self._book = book
        self._rows = rows
        self._clock = clock
        self._touch_at = self._look_at = float("-inf")

    def beat(self, leases: Sequence[LeaseBeat], metadata: Mapping[str, Any]) -> HeartbeatReply:
        """Raises :class:`~wan2gp.supervisor.queue.QueueUnavailable` only where there is somebody to ask."""
        held = [(beat, self._book.note(beat)) for beat in leases]
        rows = self._rows()
        if rows is None:
            return self._by_counts([one for _, one in held if one is not None])
        reply = self._by_rows(rows, leases)
        if metadata.get("state") != STOPPED:
            self._show(rows, metadata, asked=bool(leases))
        return reply

    def _show(self, rows: EdgeRows, metadata: Mapping[str, Any], *, asked: bool) -> None:
        try:
            rows.beat(self._worker_id, metadata)
        except QueueError:
            if not asked:
                raise  # nothing else of this beat has told whether anybody is there

    def _by_rows(self, rows: EdgeRows, leases: Sequence[LeaseBeat]) -> HeartbeatReply:
        if not leases:
            return HeartbeatReply()
        states = rows.states([lease.task_id for lease in leases])
        cancelled: list[str] = []
        lost: list[str] = []
        ours: list[str] = []
        for lease in leases:
            row = states.get(lease.task_id)
            found = cancelled if _status(row) == _CANCELLED else ours if self._is_ours(lease, row) else lost
            found.append(lease.task_id)
        if ours and self._clock() >= self._touch_at:
            self._touch(rows, ours)
        return HeartbeatReply(tuple(cancelled), tuple(lost))

    def _touch(self, rows: EdgeRows, ids: Sequence[str]) -> None:
        try:
            rows.touch(ids, self._worker_id)
        except QueueUnavailable:
            return  # what was found out must be told; the next beat touches them
        except QueueError:
            pass  # a table without updated_at has nobody who looks at it
        self._touch_at = self._clock() + TOUCH_S

    def _is_ours(self, lease: LeaseBeat, row: Row | None) -> bool:
        if row is None or row["status"] != RUNNING:
            return False
        return row["worker_id"] == self._worker_id or (row["worker_id"] is None and nameless(lease.token))

    def _by_counts(self, held: Sequence[Held]) -> HeartbeatReply:
        """Whether one that is missing was cancelled cannot be told: it is ours no longer in either case."""
        if not held or self._clock() < self._look_at:
            return HeartbeatReply()
        self._look_at = self._clock() + LOOK_S
        active = self._counts.active()
        if active is None:
            return HeartbeatReply()
        return HeartbeatReply(lost=tuple(one.task_id for one in held if self._missing(one, active)))

    def _missing(self, one: Held, active: Mapping[str, str | None]) -> bool:
        if one.task_id not in active:
            one.missed += one.seen
            return one.missed >= MISSED_MAX
        one.seen, one.missed = True, 0
        return active[one.task_id] not in (None, self._worker_id)


def _status(row: Row | None) -> str | None:
    return None if row is None else str(row["status"])
