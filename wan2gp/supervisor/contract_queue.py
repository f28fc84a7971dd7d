"""The contract's functions as a :class:`~wan2gp.supervisor.queue.TaskQueue`: what is sent for each verb and what must
come back, whichever way the call takes."""

from __future__ import annotations

import abc
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from wan2gp.supervisor.queue import (
    ClaimReply,
    Completing,
    ContractTooOld,
    FinishReply,
    HeartbeatReply,
    LeaseBeat,
    QueueRefused,
    QueueUnavailable,
    Settlement,
    SpawnedChild,
    Warm,
)

CONTRACT_VERSION = 4
"""What ``wan2gp_version()`` of the database answers when it has all that this program can use."""
OLDEST_SERVED = 3
"""What it must answer at least: that version has no :attr:`ContractQueue.prefers`, and nothing else is missing."""

_Status = Annotated[str, msgspec.Meta(pattern="^[A-Za-z ]{1,40}$")] | None
_Id = Annotated[str, msgspec.Meta(pattern="^[0-9a-f-]{36}$")]
_Row = dict[str, Any]
LARGE_BYTES = 1 << 20
"""Params smaller than this are never blamed for an answer that does not arrive; as JSON text."""


@dataclass(frozen=True)
class Json:
    """An argument of type jsonb. Its value may hold what Postgres cannot; whoever sends it replaces that."""

    value: Any


class _Beaten(msgspec.Struct):
    """The answer to a heartbeat, in which nothing may be missing: silence is no renewal."""

    cancelled: tuple[str, ...]
    lost: tuple[str, ...]
    superseded: bool


class UnreadableReply(QueueRefused):
    """Python cannot hold what the answer's JSON can: nested too deep, or a number of too many digits."""


class MisshapenReply(QueueUnavailable):
    """What came back is not what the function gives: it comes from somebody between us and the database."""


class ContractQueue(abc.ABC):
    """All verbs, on one way of calling them. The subclass gives ``name``, ``call_s``, waiting and closing."""

    name: str
    call_s: float
    """Within which an answer must have come, seconds."""
    prefers: bool = False
    """Whether claims heed what is loaded; found out by :meth:`check`."""

    @abc.abstractmethod
    def _call(self, verb: str, arguments: Mapping[str, Any], shape: Any) -> Any:
        """One function, one transaction; ``shape`` is the type of its answer, for :func:`shaped`.

        All functions are safe to repeat, so this repeats a call whose answer was lost. Raises the errors of
        :mod:`wan2gp.supervisor.queue`, :class:`UnreadableReply` among them, and :class:`ValueError`,
        :class:`TypeError` or :class:`RecursionError` for arguments that are no JSON.
        """

    def check(self) -> None:
        version = self._call("version", {}, int)
        if version < OLDEST_SERVED:
            raise ContractTooOld(
                f"the database has version {version} of the queue's functions, this program needs {OLDEST_SERVED}: "
                "run `wan2gp-ctl db migrate`"
            )
        self.prefers = version >= CONTRACT_VERSION

    def claim(
        self,
        claim_id: str,
        worker_id: str,
        types: Sequence[str],
        limit: int,
        lease_s: float,
        prefer: Sequence[Warm] = (),
    ) -> ClaimReply:
        arguments: dict[str, Any] = {
            "p_claim_id": claim_id,
            "p_worker": worker_id,
            "p_types": list(types),
            "p_limit": limit,
            "p_lease_s": lease_s,
        }
        if prefer and self.prefers:
            arguments["p_prefer"] = Json([_loaded(one) for one in prefer])
        try:
            return self._claim_whole(arguments)
        except QueueUnavailable as error:
            if not error.late:
                raise
        return self._claim_late(arguments)

    def heartbeat(
        self, worker_id: str, leases: Sequence[LeaseBeat], lease_s: float, metadata: Mapping[str, Any]
    ) -> HeartbeatReply:
        beats = [
            {
                "task_id": beat.task_id,
                "token": beat.token,
                "progress": beat.progress,
                "phase": beat.phase,
                "detail": beat.detail,
            }
            for beat in leases
        ]
        reply: _Beaten = self._call(
            "heartbeat",
            {"p_worker": worker_id, "p_leases": Json(beats), "p_lease_s": lease_s, "p_metadata": Json(metadata)},
            _Beaten,
        )
        return HeartbeatReply(reply.cancelled, reply.lost, reply.superseded)

    def finish(self, settlement: Settlement) -> FinishReply:
        fields = _fields(settlement)
        for name in ("result_data", "cause"):
            fields[name] = None if fields[name] is None else Json(fields[name])
        reply: FinishReply = self._call("finish", {f"p_{name}": value for name, value in fields.items()}, FinishReply)
        return reply

    def finish_many(self, settlements: Sequence[Settlement]) -> tuple[FinishReply, ...]:
        if not settlements:
            return ()
        arguments = {"p_settlements": Json([_fields(one) for one in settlements])}
        replies: tuple[FinishReply, ...] = self._call("finish_many", arguments, tuple[FinishReply, ...])
        return replies

    def spawn(self, task_id: str, token: str, children: Sequence[SpawnedChild]) -> tuple[str, ...]:
        wanted = [
            {
                "task_type": child.task_type,
                "params": child.params,
                "priority": child.priority,
                "depends_on": child.depends_on,
            }
            for child in children
        ]
        arguments = {"p_task_id": task_id, "p_token": token, "p_children": Json(wanted)}
        ids: tuple[str, ...] = self._call("spawn", arguments, tuple[_Id, ...])
        return ids

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
        arguments = {
            "p_task_type": task_type,
            "p_params": Json(params),
            "p_priority": priority,
            "p_max_attempts": max_attempts,
            "p_run_after_s": run_after_s,
            "p_depends_on": Json(list(depends_on)),
            "p_id": str(uuid.uuid4()),
        }
        task_id: str = self._call("enqueue", arguments, _Id)
        return task_id

    def cancel(self, task_id: str) -> str | None:
        was: str | None = self._call("cancel", {"p_task_id": task_id}, _Status)
        return was

    def retry(self, task_id: str) -> str | None:
        was: str | None = self._call("retry", {"p_task_id": task_id}, _Status)
        return was

    def reclaim_own(self, worker_id: str, keep: Sequence[str] = ()) -> tuple[str, ...]:
        arguments = {"p_worker": worker_id, "p_keep": Json(list(keep))}
        ids: tuple[str, ...] = self._call("reclaim_own", arguments, tuple[_Id, ...])
        return ids

    def rescue(self, worker_id: str) -> int:
        count: int = self._call("rescue", {"p_worker": worker_id}, int)
        return count

    def task(self, task_id: str) -> Mapping[str, Any] | None:
        row: Mapping[str, Any] | None = self._call("task", {"p_task_id": task_id}, _Row | None)
        return row

    def tasks(
        self, *, status: str | None = None, task_type: str | None = None, limit: int = 50
    ) -> tuple[Mapping[str, Any], ...]:
        arguments = {"p_status": status, "p_task_type": task_type, "p_limit": limit}
        rows: tuple[Mapping[str, Any], ...] = self._call("tasks", arguments, tuple[_Row, ...])
        return rows

    def stats(self) -> Mapping[str, Any]:
        numbers: Mapping[str, Any] = self._call("stats", {}, _Row)
        return numbers

    def facts(self) -> Mapping[str, Any]:
        known: Mapping[str, Any] = self._call("facts", {}, _Row)
        return known

    def log(self, worker_id: str, lines: Sequence[Mapping[str, Any]]) -> int:
        taken: int = self._call("log", {"p_worker": worker_id, "p_lines": Json(list(lines))}, int)
        return taken

    def completing(self, task_id: str, token: str, lease_s: float) -> Completing:
        arguments = {"p_task_id": task_id, "p_token": token, "p_lease_s": lease_s}
        reply: Completing = self._call("completing", arguments, Completing)
        return reply

    def event(self, task_id: str, name: str, detail: Mapping[str, Any]) -> None:
        self._call("event", {"p_task_id": task_id, "p_name": name, "p_detail": Json(detail)}, None)

    def _claim_whole(self, arguments: Mapping[str, Any]) -> ClaimReply:
        try:
            reply: ClaimReply = self._call("claim", arguments, ClaimReply)
        except UnreadableReply as error:
            # What one row holds must not end every worker that takes it. The same claim gives the same rows again.
            return self._claim_bare(arguments, str(error))
        return reply

    def _claim_late(self, arguments: Mapping[str, Any]) -> ClaimReply:
        """The claim again, whose answer did not come in time: without the params, which shows whether it is they that
        are too large for this link. Else nobody on such a link would ever get past that row."""
        bare = self._call("claim_bare", arguments, _Row)
        if not bare["tasks"]:
            nothing: ClaimReply = shaped("claim_bare", bare, ClaimReply)
            return nothing
        try:
            return self._claim_whole(arguments)
        except QueueUnavailable as error:
            large = [task for task in bare["tasks"] if (task.get("params_bytes") or 0) >= LARGE_BYTES]
            if not (error.late and large):
                raise
        claimed: ClaimReply = shaped("claim_bare", {"tasks": [self._too_large(task) for task in large]}, ClaimReply)
        return claimed

    def _too_large(self, task: Mapping[str, Any]) -> _Row:
        why = (
            f"their {task['params_bytes']} bytes did not arrive from the database within {self.call_s:g} s, twice; "
            "give files by URL, not in the row"
        )
        return {**task, "params": None, "unreadable": why, "unreadable_code": "input.too_large"}

    def _claim_bare(self, arguments: Mapping[str, Any], why: str) -> ClaimReply:
        reply = self._call("claim_bare", arguments, _Row)
        tasks = [{**task, "params": None, "unreadable": why} for task in reply["tasks"]]
        claimed: ClaimReply = shaped("claim_bare", {**reply, "tasks": tasks}, ClaimReply)
        return claimed


def shaped(verb: str, reply: Any, shape: Any) -> Any:
    """``reply`` as a value of the type ``shape``. Raises :class:`MisshapenReply`, which does not repeat it."""
    try:
        return msgspec.convert(reply, shape)
    except msgspec.ValidationError as error:
        why = str(error)
    raise MisshapenReply(f"the answer to wan2gp_{verb} is not one of the queue's functions ({why})")


def _loaded(warm: Warm) -> dict[str, Any]:
    return {"types": dict(warm.types), "model": warm.model, "others": list(warm.others)}


def _fields(settlement: Settlement) -> dict[str, Any]:
    """What the SQL functions see of it."""
    return {
        "task_id": settlement.task_id,
        "token": settlement.token,
        "verb": settlement.verb.value,
        "output_location": settlement.output_location,
        "error_message": settlement.error_message,
        "result_data": settlement.result_data,
        "cause": settlement.cause,
        "retry_in_s": settlement.retry_in_s,
    }
