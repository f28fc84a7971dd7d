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

from wan2gp.supervisor.edge_book import Book, nameless
from wan2gp.supervisor.edge_calls import UPDATE, EdgeCalls, refused
from wan2gp.supervisor.edge_counts import EdgeCounts
from wan2gp.supervisor.edge_debts import EdgeDebts
from wan2gp.supervisor.edge_rows import QUEUED, RUNNING, EdgeRows, Row
from wan2gp.supervisor.queue import (
    AccessDenied,
    FinishReply,
    FunctionsMissing,
    QueueRefused,
    QueueUnavailable,
    Settlement,
    Verb,
)
from wan2gp.supervisor.storage_store import LEASE_CHARACTERS
from wan2gp.tasks import TaskStatus

FAILED, COMPLETE = TaskStatus.FAILED.value, TaskStatus.COMPLETE.value
WITHHELD = "publish."
"""How the reason begins when a row failed because its result could not be published."""
HOLD_MAX_S = 60.0
"""How long a task that is to be tried later stays In Progress at most, seconds: nothing else keeps others from it."""


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
        debts: EdgeDebts,
        rows: Callable[[], EdgeRows | None],
        again_s: float = 1.0,
    ) -> None:
        """``again_s``: before the second look at counts that do not list a task any more, seconds."""
        self.worker_id = worker_id
        self._calls = calls
        self._counts = counts
        self._book = book
        self._debts = debts
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
            reply = FinishReply(True, status, repeated=True)
        elif sight.running is False and not self.revivable(settlement, sight):
            return FinishReply(False, sight.status, kept=self._shows(settlement, sight))
        elif status == QUEUED:
            return self._put_back(settlement)
        else:
            reply = self.write(settlement, status, text)
        if reply.accepted and status == FAILED and settlement.verb is not Verb.WITHHOLD:
            self._fail_dependants(settlement.task_id)
        return reply

    def _shows(self, settlement: Settlement, sight: Sight) -> bool:
        """Whether the row is complete with what this lease has published: its name stands in every path."""
        held = self._book.held(settlement.task_id)
        if sight.status != COMPLETE or held is None or held.token != settlement.token or not held.lease_id:
            return False
        return f"-{held.lease_id[:LEASE_CHARACTERS]}" in sight.output

    def _fail_dependants(self, task_id: str) -> None:
        """What waits for a failed task would wait for ever. A repeat of the end comes here again."""
        rows = self._rows()
        if rows is None:
            return
        try:
            rows.fail_dependants(task_id)
        except AccessDenied:
            raise
        except (QueueRefused, FunctionsMissing):
            pass  # a table whose tasks depend on each other in another way, or not at all

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
        if settlement.retry_in_s and settlement.verb is not Verb.RELEASE:
            hold_s = min(settlement.retry_in_s, HOLD_MAX_S)
            self._debts.owe(settlement.task_id, hold_s, nameless=nameless(settlement.token))
            return FinishReply(True, QUEUED)
        if rows.put_back(settlement.task_id, self.worker_id, nameless=nameless(settlement.token)):
            return FinishReply(True, QUEUED)
        status = self.look(settlement).status
        return FinishReply(status == QUEUED, status)  # an earlier try, whose answer was lost, did it

    def write(self, settlement: Settlement, status: str, text: str | None) -> FinishReply:
        """In the table if the row is still ours; else by the function, which changes any status into any other."""
        rows = self._rows()
        if rows is None:
            return self._update(settlement, status, text)
        values: Row = {"status": status, "error_message": text if status == FAILED else None}
        if text:
            values["output_location"] = text
        if status == COMPLETE:
            values["generation_processed_at"] = "now"
        if self._change(rows, settlement, values):
            return FinishReply(True, status)
        sight = self.look(settlement)
        # Ours too is what an earlier try did whose answer was lost.
        row = sight.row
        done = row is not None and sight.status == status and text in (None, sight.output)
        return FinishReply(row is not None and done and self.is_ours(settlement, row), sight.status)

    def _change(self, rows: EdgeRows, settlement: Settlement, values: Row) -> bool:
        """A row that is ours, or that we failed because it could not be published."""
        unnamed = nameless(settlement.token)
        if rows.end(settlement.task_id, self.worker_id, (RUNNING,), values, nameless=unnamed):
            return True
        if not self.revivable(settlement, self.look(settlement)):
            return False
        return rows.end(settlement.task_id, self.worker_id, (FAILED,), values, nameless=unnamed)

    def _update(self, settlement: Settlement, status: str, text: str | None) -> FinishReply:
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
        self._book.hold_again(settlement)
        rows = self._rows()
        if rows is None:
            now = datetime.now(timezone.utc).isoformat()
            body = {"task_id": settlement.task_id, "status": RUNNING, "worker_id": self.worker_id, "claimed_at": now}
            said = self._calls.repeat(UPDATE, body)
            if not said.ok and said.status != 404:
                raise refused(UPDATE, said)
        else:
            values: Row = {
                "status": RUNNING,
                "worker_id": self.worker_id,
                "error_message": None,
                "generation_started_at": "now",
            }
            if not self._change(rows, settlement, values):
                raise QueueUnavailable("the task changed just now", server_down=True)  # the next look sees what it is
        self._book.revived(settlement)

    def revivable(self, settlement: Settlement, sight: Sight) -> bool:
        """Whether it was we who failed the row, since its result could not be published."""
        if sight.row is None:
            return sight.running is not True and self._book.withheld(settlement)
        ours = self.is_ours(settlement, sight.row)
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
        return Sight(row["status"] == RUNNING and self.is_ours(settlement, row), row)

    def is_ours(self, settlement: Settlement, row: Row) -> bool:
        """By the name in it: a claim by a service key leaves ours, one by a token none."""
        return row["worker_id"] == self.worker_id or (row["worker_id"] is None and nameless(settlement.token))

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
