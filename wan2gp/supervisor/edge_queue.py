"""The task queue of those who cannot install SQL: the predecessor's Edge Functions, opened by a personal access token
or a service key.

They give less than our functions do (:data:`WEAKER`). A service key opens the tables too; found out once, that mends
some of it: what is ours is looked at, and changed under conditions. A personal access token opens the functions alone.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wan2gp.logs import Facts
from wan2gp.supervisor.edge_book import Book
from wan2gp.supervisor.edge_calls import CLAIM, COMPLETE, CREATE, UPDATE, UPLOAD_URL, Doubtful, EdgeCalls, refused
from wan2gp.supervisor.edge_claims import EdgeClaims
from wan2gp.supervisor.edge_complete import LOOKS_S, EdgeCompletion
from wan2gp.supervisor.edge_counts import EdgeCounts
from wan2gp.supervisor.edge_debts import EdgeDebts
from wan2gp.supervisor.edge_ends import EdgeEnds
from wan2gp.supervisor.edge_heartbeat import EdgeHeartbeat
from wan2gp.supervisor.edge_people import EdgePeople
from wan2gp.supervisor.edge_rows import BEAT_S, EdgeRows
from wan2gp.supervisor.queue import (
    ClaimReply,
    Completing,
    FinishReply,
    FunctionsMissing,
    HeartbeatReply,
    LeaseBeat,
    QueueError,
    QueueRefused,
    Settlement,
    SpawnedChild,
    Warm,
)
from wan2gp.supervisor.supabase_project import SupabaseProject
from wan2gp.tasks import TaskStatus

WEAKER = (
    "no lease: a task whose worker dies waits until the pod scaler, or this worker's next start, queues it again",
    "no fence: who loses a task and does not notice can still change its row",
    "two workers of one id do not notice each other, and --takeover ends nobody",
    "task types are not chosen: what no handler here takes is claimed and put back",
    "no priorities, no run_after, no dependencies but one",
    "tasks of the model that is loaded are not preferred",
    "tries are counted in this worker's memory alone: another worker, or its next life, begins anew",
    "the reasons of failures stand in output_location, and with a service key in error_message too",
    "an answer of complete_task that is lost may leave a result without its generation, or with two",
    "a task to be tried again later waits a minute at most, and with a personal access token not at all",
    "with a personal access token a claim whose answer is lost stays In Progress, cancelling is noticed late or never, "
    "what waits for a failed task waits for ever, and files of a refused result are not deleted",
)
"""What the edge backend lacks that the others have, for one line at the start and for the docs."""
_NOBODY = str(uuid.UUID(int=0))
_CANNOT = "the edge backend cannot"


class EdgeQueue:
    """A :class:`~wan2gp.supervisor.queue.TaskQueue` on a project, which stays its owner's to close.

    :meth:`finish` and :meth:`finish_many` raise :class:`~wan2gp.supervisor.publish.PublishFailed` too, for a result in
    the bucket that the app's function cannot complete now, or will not.
    """

    name = "edge"
    listening = False
    prefers = False

    def __init__(
        self,
        project: SupabaseProject,
        worker_id: str,
        facts: Facts | None = None,
        *,
        calls: EdgeCalls | None = None,
        rows: EdgeRows | None = None,
        looks_s: Sequence[float] = LOOKS_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``worker_id`` is that of every call. ``looks_s``: pauses before the looks at what an unanswered
        ``complete_task`` did."""
        self._worker_id = worker_id
        self._calls = calls or EdgeCalls(project)
        self._table = rows or EdgeRows(project, clock=clock)
        self.rest = False
        """Whether the key opens the tables; found out by :meth:`check`."""
        self._book = Book()
        self._counts = EdgeCounts(self._calls, clock)
        self._wake, self._closed = threading.Event(), threading.Event()
        self._debts = EdgeDebts(worker_id, self._calls, self._rows, clock)
        self._claims = EdgeClaims(
            self._calls, self._counts, self._book, self._debts, self._rows, self._wake.wait, clock
        )
        self._ends = EdgeEnds(worker_id, self._calls, self._counts, self._book, self._debts, self._rows, looks_s[0])
        self._completion = EdgeCompletion(self._ends, self._calls, self._rows, looks_s, clock)
        self._heartbeat = EdgeHeartbeat(worker_id, self._counts, self._book, self._rows, clock)
        self._people = EdgePeople(self._counts, self._book, self._rows)
        if facts is not None:
            self.speak(facts)

    def speak(self, facts: Facts) -> None:
        """Say from now on what the operator should know."""
        self._claims.facts = self._completion.facts = facts

    def _rows(self) -> EdgeRows | None:
        return self._table if self.rest else None

    def check(self) -> None:
        """Raise unless the functions are there and accept the key; find out what else it opens."""
        for name in (CLAIM, UPDATE, UPLOAD_URL, COMPLETE):
            if not self._calls.exists(name):
                raise FunctionsMissing(
                    f"the project at {self._calls.host} has no Edge Function {name}: deploy the predecessor's, or run "
                    "`wan2gp-ctl db migrate` and use the supabase backend"
                )
        if not self._counts.check():
            # Nothing has this id: it only shows whether the key is accepted.
            self._calls.repeat(UPDATE, {"task_id": _NOBODY, "status": TaskStatus.QUEUED.value})
        self.rest = self._table.open()

    def claim(
        self,
        claim_id: str,
        worker_id: str,
        types: Sequence[str],
        limit: int,
        lease_s: float,
        prefer: Sequence[Warm] = (),
    ) -> ClaimReply:
        """One task at most, in the order of the app's function. A repeat gives what an earlier call has claimed only
        where the table is open."""
        return self._claims.claim(worker_id, types) if limit > 0 else ClaimReply(())

    def heartbeat(
        self, worker_id: str, leases: Sequence[LeaseBeat], lease_s: float, metadata: Mapping[str, Any]
    ) -> HeartbeatReply:
        """There is no lease to renew: looks whether the tasks are still ours."""
        reply = self._heartbeat.beat(leases, metadata)
        if self.rest:
            with contextlib.suppress(QueueError):  # a busy worker does not claim, which pays too
                self._debts.pay(time.monotonic() + BEAT_S)
        return reply

    def finish(self, settlement: Settlement) -> FinishReply:
        return self._ends.finish(settlement, self._completion.complete)

    def finish_many(self, settlements: Sequence[Settlement]) -> tuple[FinishReply, ...]:
        """One after the other; what was told is remembered, so that a repeat goes on where this one failed."""
        return tuple(self.finish(one) for one in settlements)

    def spawn(self, task_id: str, token: str, children: Sequence[SpawnedChild]) -> tuple[str, ...]:
        raise QueueRefused(f"{_CANNOT} bring forth tasks: run `wan2gp-ctl db migrate` and use the supabase backend")

    def enqueue(
        self,
        task_type: str,
        params: Mapping[str, Any],
        *,
        priority: int | None = None,
        max_attempts: int | None = None,
        run_after_s: float | None = None,
        depends_on: Sequence[str] = (),
    ) -> str:
        """By ``create-task``, in the project that ``params.project_id`` names; without one straight into the table."""
        if priority is not None or max_attempts is not None or run_after_s is not None or len(depends_on) > 1:
            raise QueueRefused(
                f"{_CANNOT} queue a task with a priority, max_attempts, run_after or several dependencies: leave them "
                "out"
            )
        task_id, dependency = str(uuid.uuid4()), depends_on[0] if depends_on else None
        project = params.get("project_id")
        row = {"task_id": task_id, "task_type": task_type, "params": params, "project_id": project}
        if isinstance(project, str) and project:
            return self._create({**row, "dependant_on": dependency})
        rows = self._rows()
        if rows is None:
            raise QueueRefused(
                f"{_CANNOT} queue a task that belongs to no project: name one of yours as project_id in its params"
            )
        rows.insert(
            {
                "id": task_id,
                "task_type": task_type,
                "params": params,
                "status": TaskStatus.QUEUED.value,
                "dependant_on": dependency,
            }
        )
        return task_id

    def _create(self, row: Mapping[str, Any]) -> str:
        task_id = str(row["task_id"])
        try:
            said = self._calls.once(CREATE, row)
        except Doubtful as doubt:
            # The second one fails on the id of the first, if that was done.
            rows = self._rows()
            if rows is None:
                raise QueueRefused(f"{doubt}: the task {task_id} may be queued or not") from None
            if rows.row(task_id) is not None:
                return task_id
            said = self._calls.once(CREATE, row)
        if not said.ok:
            raise refused(CREATE, said)
        return task_id

    def cancel(self, task_id: str) -> str | None:
        return self._people.cancel(task_id)

    def retry(self, task_id: str) -> str | None:
        return self._people.retry(task_id)

    def reclaim_own(self, worker_id: str, keep: Sequence[str] = ()) -> tuple[str, ...]:
        """What is In Progress under this worker's name goes back; with a personal access token nobody can tell."""
        kept, rows = self._book.keep(keep), self._rows()
        if rows is None:
            return ()
        found = {str(row["id"]): str(row["task_type"]) for row in rows.running(worker_id)}
        parents = {task_id for task_id, task_type in found.items() if "orchestrator" in task_type}
        self._claims.parked(parents)
        known = kept | parents | self._book.ours() | self._debts.ids()
        ids = [task_id for task_id in found if task_id not in known]
        return tuple(task_id for task_id in ids if rows.put_back(task_id, worker_id))

    def rescue(self, worker_id: str) -> int:
        """There are no leases that could expire."""
        return 0

    def task(self, task_id: str) -> Mapping[str, Any] | None:
        return self._people.task(task_id)

    def tasks(
        self, *, status: str | None = None, task_type: str | None = None, limit: int = 50
    ) -> tuple[Mapping[str, Any], ...]:
        return self._people.tasks(status, task_type, limit)

    def stats(self) -> Mapping[str, Any]:
        return self._people.stats()

    def facts(self) -> Mapping[str, Any]:
        """It is the predecessor's, and logs are not sent to it this way."""
        return {"predecessor": True, "system_logs": False}

    def log(self, worker_id: str, lines: Sequence[Mapping[str, Any]]) -> int:
        return 0

    def completing(self, task_id: str, token: str, lease_s: float) -> Completing:
        """Not of use here."""
        return Completing(False, None, False)

    def event(self, task_id: str, name: str, detail: Mapping[str, Any]) -> None:
        raise QueueRefused(f"{_CANNOT} keep a task's history: run `wan2gp-ctl db migrate` and use the supabase backend")

    def wait(self, timeout_s: float) -> bool:
        """Always False: nobody tells of new tasks."""
        self._wake.wait(timeout_s)
        if not self._closed.is_set():
            self._wake.clear()
        return False

    def interrupt(self) -> None:
        self._wake.set()

    def close(self) -> None:
        self._closed.set()
        self._wake.set()
        self._debts.close()
        for part in (self._calls, self._table, self._ends, self._completion):
            part.close()
