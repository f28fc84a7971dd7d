"""Ending tasks by Edge Functions: no fence, no repeat that is safe by itself, and a success that may be none.

So the row is looked at wherever it can be: before, whether it is still ours to end; after, whether it has ended. What
an unanswered ``complete_task`` did is found out first, and it is called again only if it surely did nothing.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from wan2gp.supervisor.edge_book import Book
from wan2gp.supervisor.edge_calls import UPDATE, EdgeCalls, refused
from wan2gp.supervisor.edge_counts import EdgeCounts
from wan2gp.supervisor.edge_rows import QUEUED, RUNNING, EdgeRows, Row
from wan2gp.supervisor.queue import FinishReply, QueueUnavailable, Settlement, Verb
from wan2gp.tasks import TaskStatus

FAILED, COMPLETE = TaskStatus.FAILED.value, TaskStatus.COMPLETE.value
WITHHELD = "publish."
"""How the reason begins when a row failed because its result could not be published."""


@dataclass(frozen=True)
class Sight:
    """What is known of a row. ``running``: whether it is In Progress and ours; None: that cannot be told."""

    running: bool | None
    row: Row | None = None
    """Where the table is open; None there means that there is no such row."""

    @property
    def status(self) -> str | None:
        return None if self.row is None else str(self.row["status"])

    @property
    def output(self) -> str:
        return "" if self.row is None else str(self.row["output_location"] or "")


class EdgeEnds:
    """Safe to use from several threads, except for two on one task."""

    def __init__(
        self,
        worker_id: str,
        calls: EdgeCalls,
        counts: EdgeCounts,
        book: Book,
        rows: Callable[[], EdgeRows | None],
        again_s: float = 1.0,
    ) -> None:
        """``again_s``: before the second look at counts that do not list a task any more, seconds."""
        self.worker_id = worker_id
        self._calls = calls
        self._counts = counts
        self._book = book
        self._rows = rows
        self._again_s = again_s
        self._closed = threading.Event()

    def close(self) -> None:
        """Ends waits."""
        self._closed.set()

    def finish(self, settlement: Settlement, complete: Callable[[Settlement], FinishReply]) -> FinishReply:
        """``complete`` does it for a result in the bucket."""
        known = self._book.ended(settlement)
        if known is not None:
            return dataclasses.replace(known, repeated=True)
        if settlement.verb is Verb.CANCEL:
            reply = FinishReply(True, TaskStatus.CANCELLED.value)
        elif settlement.verb is Verb.COMPLETE and settlement.storage_path:
            reply = complete(settlement)
        else:
            reply = self._plain(settlement)
        self._book.end(settlement, reply)
        return reply

    def _plain(self, settlement: Settlement) -> FinishReply:
        status, text = self._meant(settlement)
        sight = self.look(settlement)
        if sight.row is not None and self._is_so(sight, status, text):
            return FinishReply(True, status, repeated=True)
        if sight.running is False and not self.revivable(settlement, sight):
            return FinishReply(False, sight.status)
        if status == QUEUED:
            return self._put_back(settlement)
        return self.write(settlement, status, text)

    def _meant(self, settlement: Settlement) -> tuple[str, str | None]:
        """The status, and what stands in ``output_location``: the only place that this contract has for words."""
        if settlement.verb is Verb.COMPLETE:
            return COMPLETE, settlement.output_location or _texts(settlement.result_data)
        if settlement.verb in (Verb.RETRY, Verb.LOSS, Verb.RELEASE):
            again, causes = self._book.verdict(settlement)
            return (QUEUED, None) if again else (FAILED, causes)
        return FAILED, settlement.error_message or "failed"

    def _is_so(self, sight: Sight, status: str, text: str | None) -> bool:
        """An earlier call, whose answer was lost, did it."""
        return sight.status == status and (status == QUEUED or (bool(text) and sight.output == text))

    def _put_back(self, settlement: Settlement) -> FinishReply:
        rows = self._rows()
        if rows is None:
            return self.write(settlement, QUEUED, None)
        if rows.put_back(settlement.task_id, self.worker_id):
            return FinishReply(True, QUEUED)
        return FinishReply(False, self.look(settlement).status)

    def write(self, settlement: Settlement, status: str, text: str | None) -> FinishReply:
        """By the function, which changes any status into any other."""
        body = {"task_id": settlement.task_id, "status": status}
        if text:
            body["output_location"] = text
        said = self._calls.repeat(UPDATE, body)
        if said.status == 404:
            return FinishReply(False, None)
        if not said.ok:
            raise refused(UPDATE, said)
        return FinishReply(True, status)

    def revive(self, settlement: Settlement) -> None:
        """A row that we failed is under way again: ``complete_task`` completes no other."""
        now = datetime.now(timezone.utc).isoformat()
        body = {"task_id": settlement.task_id, "status": RUNNING, "worker_id": self.worker_id, "claimed_at": now}
        said = self._calls.repeat(UPDATE, body)
        if not said.ok and said.status != 404:
            raise refused(UPDATE, said)

    def revivable(self, settlement: Settlement, sight: Sight) -> bool:
        """Whether it was we who failed the row, since its result could not be published."""
        if sight.row is None:
            return sight.running is not True and self._book.withheld(settlement)
        ours = sight.row["worker_id"] in (None, self.worker_id)
        said = self._book.withheld(settlement) or sight.output.startswith(WITHHELD)
        return sight.status == FAILED and ours and said

    def is_of_this_life(self, settlement: Settlement) -> bool:
        """Whether we remember the claim of it."""
        held = self._book.held(settlement.task_id)
        return held is not None and held.token == settlement.token

    def look(self, settlement: Settlement) -> Sight:
        """Raises :class:`QueueUnavailable`."""
        rows = self._rows()
        if rows is None:
            return Sight(self._active(settlement))
        row = rows.states([settlement.task_id]).get(settlement.task_id)
        if row is None:
            return Sight(False)
        return Sight(row["status"] == RUNNING and row["worker_id"] in (None, self.worker_id), row)

    def _active(self, settlement: Settlement) -> bool | None:
        """By the counts. That a task is missing there means something only after it was there, and twice."""
        held = self._book.held(settlement.task_id)
        for pause in (0.0, self._again_s):
            if self._closed.wait(pause):
                raise QueueUnavailable("the worker stops", server_down=True)
            active = self._counts.active()
            if active is not None and settlement.task_id in active:
                if held is not None:
                    held.seen = True
                return active[settlement.task_id] in (None, self.worker_id)
            if active is None or held is None or not held.seen:
                return None
        return False


def _texts(data: Mapping[str, Any] | None) -> str | None:
    """What a workflow said instead of making files, by node, as one text."""
    texts = (data or {}).get("text")
    if isinstance(texts, Mapping):
        lines = [line for said in texts.values() for line in ([said] if isinstance(said, str) else said)]
        return "\n".join(str(line) for line in lines) or None
    return texts if isinstance(texts, str) and texts else None
