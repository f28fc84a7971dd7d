"""What people ask of a queue, where there are only Edge Functions: by the table if the key opens it, else refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from wan2gp.supervisor.edge_book import Book
from wan2gp.supervisor.edge_counts import EdgeCounts
from wan2gp.supervisor.edge_rows import QUEUED, RUNNING, EdgeRows
from wan2gp.supervisor.queue import QueueRefused
from wan2gp.tasks import TaskStatus

_FINAL = tuple(status.value for status in TaskStatus if status.final)


class EdgePeople:
    """Safe to use from several threads."""

    def __init__(self, counts: EdgeCounts, book: Book, rows: Callable[[], EdgeRows | None]) -> None:
        self._counts = counts
        self._book = book
        self._rows = rows

    def task(self, task_id: str) -> Mapping[str, Any] | None:
        row = self._table("show a task").row(task_id)
        return None if row is None else {**self._with_progress(row), "events": []}

    def tasks(self, status: str | None, task_type: str | None, limit: int) -> tuple[Mapping[str, Any], ...]:
        found = self._table("list tasks").rows(status, task_type, limit)
        return tuple(self._with_progress(row) for row in found)

    def stats(self) -> Mapping[str, Any]:
        """From the counts, as far as they tell; the workers from their table."""
        rows = self._rows()
        workers = rows.workers() if rows is not None else []
        return {**self._counts.stats(), "workers": [_worker(row) for row in workers]}

    def cancel(self, task_id: str) -> str | None:
        changes = {"status": TaskStatus.CANCELLED.value, "generation_processed_at": "now", "updated_at": "now"}
        return self._change("cancel a task", task_id, (QUEUED, RUNNING), changes)

    def retry(self, task_id: str) -> str | None:
        changes = {
            "status": QUEUED,
            "worker_id": None,
            "output_location": None,
            "error_message": None,
            "generation_started_at": None,
            "generation_processed_at": None,
            "updated_at": "now",
        }
        return self._change("queue a task again", task_id, _FINAL, changes)

    def _change(self, what: str, task_id: str, before: tuple[str, ...], values: Mapping[str, Any]) -> str | None:
        rows = self._table(what)
        for _ in range(3):  # somebody else may change it between the look and the change
            found = rows.states([task_id]).get(task_id)
            if found is None:
                return None
            status = str(found["status"])
            if status not in before or rows.change(task_id, (status,), values):
                return status
        raise QueueRefused(f"cannot {what}: its status changes all the time; try again")

    def _table(self, what: str) -> EdgeRows:
        rows = self._rows()
        if rows is None:
            raise QueueRefused(
                f"the edge backend cannot {what} with a personal access token: use the project's app, or give the "
                "worker the service role key"
            )
        return rows

    def _with_progress(self, row: Mapping[str, Any]) -> dict[str, Any]:
        held = self._book.held(str(row["id"]))
        beat = held.beat if held is not None else None
        if beat is None:
            return dict(row)
        return {**row, "progress": beat.progress, "phase": beat.phase, "detail": beat.detail}


def _worker(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("id", "status", "last_heartbeat", "metadata")
    return {**{name: row.get(name) for name in names}, "silent_s": _silent_s(row.get("last_heartbeat"))}


def _silent_s(heard: object) -> float | None:
    """By our clock, which may differ from the database's."""
    try:
        when = datetime.fromisoformat(str(heard).replace("Z", "+00:00"))
    except ValueError:
        return None
    return max(0.0, (datetime.now(timezone.utc) - when).total_seconds())
