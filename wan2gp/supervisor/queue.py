"""What the supervisor asks of a task queue, whichever database is behind it.

Every method is synchronous and safe to call from several threads. A method raises :class:`QueueUnavailable` when the
database cannot be reached (try again later: nothing is lost, claims and finishes are safe to repeat),
:class:`FunctionsMissing` when the contract is not installed, and :class:`QueueRefused` when the database says no.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class QueueError(Exception):
    """Root of what a queue raises."""


class QueueUnavailable(QueueError):
    """The database cannot be reached now. ``server_down``: it refuses connections or says that it starts or stops, so
    that nobody else can reach it either; False when the fault may be on our side of the network. ``late``: the call
    went out, and its whole answer did not come in time; whether it was done is unknown."""

    def __init__(self, message: str, *, server_down: bool = False, late: bool = False) -> None:
        super().__init__(message)
        self.server_down = server_down
        self.late = late


class FunctionsMissing(QueueError):
    """The database answers but lacks the contract's functions: run ``wan2gp-ctl db migrate``."""


class ContractTooOld(FunctionsMissing):
    """It has them, of an older version than this program's."""


class QueueRefused(QueueError):
    """The database refused the call: our fault or the caller's, not the network's. ``code`` is its SQLSTATE."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class AccessDenied(QueueRefused):
    """Our key, our password or the address itself is refused, whatever is asked: nothing is wrong with the call, which
    may be made again once that is mended."""


def fact_of(error: QueueError) -> str:
    """Which fact of :mod:`wan2gp.logs` an error is: a refusal is not an outage."""
    return "queue.unavailable" if isinstance(error, QueueUnavailable) else "queue.refused"


class Verb(enum.Enum):
    """How a lease ends; the database knows these strings."""

    COMPLETE = "complete"
    FAIL = "fail"
    """Given up for good."""
    RETRY = "retry"
    """A failure of the task's own: counts; Failed after ``max_attempts`` of them."""
    LOSS = "loss"
    """Its process died: counts apart; Failed after two of them."""
    RELEASE = "release"
    """Handed back untouched or interrupted by a stop: free."""
    CANCEL = "cancel"
    """Ended because its user cancelled it."""
    WITHHOLD = "withhold"
    """The work is done and cannot be published: Failed, until COMPLETE comes under the same token."""


@dataclass(frozen=True)
class ClaimedTask:
    """One task under our lease."""

    id: str
    task_type: str
    params: Any
    """The JSON value of the row, with a JSON string already read as what is in it where that is possible."""
    attempt: int
    """1 at the first start."""
    max_attempts: int
    token: str = field(repr=False)
    """Secret proof of the lease; stays in the supervisor."""
    lease_id: str
    """Public name of the lease: hexadecimal, at least 8 characters, in paths."""
    user_id: str | None = None
    project_id: str | None = None
    created_at: str | None = None
    failures: int = 0
    losses: int = 0
    unreadable: str | None = None
    """Why ``params`` (then None) cannot be had: nested too deep, a number too long, or too large to arrive."""
    unreadable_code: str = "input.bad_params"
    """The code of the failure that ``unreadable`` is."""


@dataclass(frozen=True)
class Warm:
    """What is loaded at one place to load to, for a claim that prefers tasks which need nothing else.

    Tasks go before older ones of the same priority, and of these ``types`` and ``others`` alone.
    """

    types: Mapping[str, str | None]
    """The types that find something loaded, each with the model that it stands for when ``params.model`` names none."""
    model: str | None
    """The model that is loaded; None: any task of these types finds all it needs."""
    others: tuple[str, ...] = ()
    """Types for which what is loaded would have to go."""


@dataclass(frozen=True)
class ClaimReply:
    """The tasks claimed, by priority then age, and when to look again without being woken (None: no known time)."""

    tasks: tuple[ClaimedTask, ...]
    next_due_s: float | None = None
    passed: int | None = None
    """How many of them went before an older one; None: not known, or nothing was preferred."""


@dataclass(frozen=True)
class LeaseBeat:
    """A lease to renew, with what its task does now. ``progress`` is 0..1."""

    task_id: str
    token: str = field(repr=False)
    progress: float | None = None
    phase: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class HeartbeatReply:
    """Task ids of ours that were cancelled (stop them), and that are ours no longer (stop, publish nothing)."""

    cancelled: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    superseded: bool = False
    """The worker's id is another instance's now, and nothing was renewed: stop everything, publish nothing."""


@dataclass(frozen=True)
class SpawnedChild:
    """A task that an orchestrator task brings forth. ``depends_on`` are indexes of earlier children."""

    task_type: str
    params: Mapping[str, Any]
    priority: int | None = None
    depends_on: tuple[int, ...] = ()


@dataclass(frozen=True)
class Settlement:
    """The end of one lease."""

    task_id: str
    token: str = field(repr=False)
    verb: Verb
    output_location: str | None = None
    error_message: str | None = None
    """``code: sentence`` for FAIL, RETRY, LOSS, CANCEL."""
    result_data: Mapping[str, Any] | None = None
    cause: Mapping[str, Any] | None = None
    """What is recorded of this attempt in ``result_data.attempts`` and ``task_events``."""
    retry_in_s: float | None = None
    """For RETRY and LOSS: seconds before it may be claimed again."""
    project_id: str | None = None
    """The row's own. This and the two below are for a backend that completes by an Edge Function; no SQL sees them."""
    storage_path: str | None = None
    """Where the primary artifact is in the bucket, if it is in one."""
    thumbnail_path: str | None = None
    """Where its poster frame is in the bucket."""


@dataclass(frozen=True)
class FinishReply:
    """``accepted`` is False when the lease is not ours any more; ``status`` is the row's status now."""

    accepted: bool
    status: str | None
    repeated: bool = False
    """True when this very settlement had been accepted before (its answer was lost)."""
    error: str | None = None
    """Why the database would not store it (a trigger or a constraint of its own): the task failed with that."""
    kept: bool = False
    """Refused, but what this lease published is what the row shows, or a generation of the app names: it must not be
    deleted."""


@dataclass(frozen=True)
class Completing:
    """What is known just before, or after, somebody else's function completes a row under our lease."""

    held: bool
    """The lease is ours: it was renewed, and the row may become Complete by another hand than ours."""
    status: str | None
    made: bool = False
    """The app's own record of this result exists already: to call its function again would make a second one."""


class TaskQueue(Protocol):
    """The contract of ``wan2gp/supervisor/sql`` as Python; ``tests/queue_contract.py`` holds for every backend."""

    name: str

    @property
    def listening(self) -> bool:
        """Whether :meth:`wait` is ended by the database; False means that only polling finds new tasks."""

    @property
    def prefers(self) -> bool:
        """Whether :meth:`claim` heeds ``prefer``; known after :meth:`check`."""

    def check(self) -> None:
        """Raise unless the database answers and has all functions."""

    def claim(
        self,
        claim_id: str,
        worker_id: str,
        types: Sequence[str],
        limit: int,
        lease_s: float,
        prefer: Sequence[Warm] = (),
    ) -> ClaimReply:
        """Claim up to ``limit`` tasks of these types. The same ``claim_id`` again gives the same rows.

        ``prefer``: what is loaded, each type in one of them at most; without it tasks come in plain order.
        """

    def heartbeat(
        self, worker_id: str, leases: Sequence[LeaseBeat], lease_s: float, metadata: Mapping[str, Any]
    ) -> HeartbeatReply:
        """Renew the leases, store progress, write the worker's row.

        ``metadata.instance`` tells who speaks under the worker's id: another instance that was heard of within
        ``lease_s`` seconds and has not stopped keeps it, unless ``metadata.takeover`` is true.
        """

    def finish(self, settlement: Settlement) -> FinishReply:
        """End a lease; fenced by its token, safe to repeat."""

    def finish_many(self, settlements: Sequence[Settlement]) -> tuple[FinishReply, ...]:
        """The same for several in one round trip and one commit, replies in order."""

    def spawn(self, task_id: str, token: str, children: Sequence[SpawnedChild]) -> tuple[str, ...]:
        """Insert children and park the parent; returns their ids. Safe to repeat with the same token."""

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
        """Insert one task; returns its id."""

    def cancel(self, task_id: str) -> str | None:
        """Cancel; returns the status the row had, or None when there is no such row."""

    def retry(self, task_id: str) -> str | None:
        """Queue a finished task again; returns the status it had, or None."""

    def reclaim_own(self, worker_id: str, keep: Sequence[str] = ()) -> tuple[str, ...]:
        """Hand back what an earlier life of this worker still holds (the data directory's lock is ours), except the
        leases with these tokens; returns the tasks' ids."""

    def rescue(self, worker_id: str) -> int:
        """Take expired leases from the dead; returns how many rows became claimable or failed."""

    def task(self, task_id: str) -> Mapping[str, Any] | None:
        """The whole row with its lease (``progress``, ``phase``, ``detail``) and ``events``, for people."""

    def tasks(
        self, *, status: str | None = None, task_type: str | None = None, limit: int = 50
    ) -> tuple[Mapping[str, Any], ...]:
        """Rows, newest first, without params."""

    def stats(self) -> Mapping[str, Any]:
        """``{"counts": [{task_type, status, count}], "oldest_queued_s": {task_type: seconds}, "workers": [...]}``."""

    def facts(self) -> Mapping[str, Any]:
        """What else this database is: ``predecessor`` (the predecessor's app works on it), ``system_logs`` (it keeps
        workers' logs)."""

    def log(self, worker_id: str, lines: Sequence[Mapping[str, Any]]) -> int:
        """Store lines (``at``, ``level``, ``message``, ``task_id``, ``metadata``) where the database keeps workers'
        logs; returns how many it took."""

    def completing(self, task_id: str, token: str, lease_s: float) -> Completing:
        """Before somebody else's function completes this row: renew the lease for ``lease_s`` seconds and allow it."""

    def event(self, task_id: str, name: str, detail: Mapping[str, Any]) -> None:
        """Append to the task's history."""

    def wait(self, timeout_s: float) -> bool:
        """Sleep until something may be claimable (True) or ``timeout_s`` passed. One thread at a time."""

    def interrupt(self) -> None:
        """End a :meth:`wait` at once, from any thread or from a signal handler's follow-up."""

    def close(self) -> None:
        """Give everything back; ends a wait."""
