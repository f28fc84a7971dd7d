"""What each control request does: from a typed request to a typed reply, without sockets."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from wan2gp import control
from wan2gp.control import (
    AnyReply,
    AnyRequest,
    ControlRefused,
    HandlerStatus,
    QueueStats,
    RunningTask,
    TaskRow,
    Unclaimable,
    WorkerStatus,
)
from wan2gp.supervisor.control_census import Census
from wan2gp.supervisor.queue import QueueError, QueueUnavailable, TaskQueue
from wan2gp.tasks import TaskStatus

CENSUS_S = 3.0
"""Seconds a status waits for the database before it comes without the queue's numbers."""

TASKS_MAX = 1000
"""Most rows one ``tasks`` request gets."""


class Operations(Protocol):
    """What the supervisor's loop does for the control socket. Every method is called from other threads than the
    loop's, returns soon, and may raise :class:`ControlRefused`."""

    def status(self) -> Mapping[str, Any]:
        """A snapshot with the fields of :class:`wan2gp.control.WorkerStatus`; nested mappings for its parts."""

    def obstacles(self) -> Mapping[str, str]:
        """Why no task would be taken now, by code; empty when one would be."""

    def restart(self, handler: str) -> str:
        """Replace the handler's process, clear BROKEN; a sentence that says what happens now. Raises
        ``ControlRefused("unknown_handler", …)``."""

    def free(self, handler: str) -> str:
        """Ask the handler to give the GPU back; a sentence that says when it does. Raises
        ``ControlRefused("unknown_handler", …)``."""

    def publish_again(self, task_id: str | None) -> int:
        """Send what could not be published now; how many results that are."""

    def models(self, models: Sequence[str], *, fetch: bool) -> Sequence[Mapping[str, Any]]:
        """The weights of these models that were wanted, as :class:`wan2gp.control.ModelFile`. Raises
        ``ControlRefused("bad_request", …)`` for a model that is none."""

    def drain(self) -> None:
        """Claim nothing more."""

    def resume(self) -> None:
        """Claim again. Raises ``ControlRefused("wrong_status", …)`` when the supervisor already stops."""

    def cancel_running(self, task_id: str) -> bool:
        """Tell the handler that runs the task; False when no handler of ours does."""


@dataclass(frozen=True)
class ControlDesk:
    """Answers requests. Safe to call from several threads; each call may take as long as the database does."""

    queue: TaskQueue
    operations: Operations
    data_dir: Path
    census: Census
    gpus: Callable[[], tuple[control.Gpu, ...]]
    turned_away: Callable[[], Mapping[str, int]]

    def answer(self, request: AnyRequest) -> AnyReply:
        """The reply. Raises :class:`ControlRefused`; anything else is a fault of ours."""
        try:
            return self._dispatch(request)
        except QueueUnavailable as error:
            raise ControlRefused("database_down", f"the database does not answer: {error}") from error
        except QueueError as error:
            raise ControlRefused("database_refused", f"the database refused: {error}") from error

    def _dispatch(self, request: AnyRequest) -> AnyReply:
        match request:
            case control.StatusRequest():
                return self._status()
            case control.ReadyRequest():
                found = dict(self.operations.obstacles())
                return control.ReadyReply(not found, found)
            case control.StatsRequest():
                return control.StatsReply(self.census.take(CENSUS_S))
            case control.SubmitRequest():
                return self._submit(request)
            case control.TaskRequest():
                return control.TaskReply(self._row(request.task_id), self._running(request.task_id))
            case control.ProgressRequest():
                return self._progress(request.task_id)
            case control.TasksRequest():
                return self._tasks(request)
            case control.CancelRequest():
                return self._cancel(request.task_id)
            case control.RetryRequest():
                return self._retry(request.task_id)
            case control.RestartRequest():
                return control.DoneReply(self.operations.restart(request.handler))
            case control.FreeRequest():
                return control.DoneReply(self.operations.free(request.handler))
            case control.DrainRequest():
                self.operations.drain()
                return control.DoneReply("claiming no more tasks; what runs goes on until `wan2gp-ctl resume`")
            case control.ResumeRequest():
                self.operations.resume()
                return control.DoneReply("claiming tasks")
            case control.LogsRequest():
                return log_places(self.data_dir)
            case control.ModelsRequest():
                files = self.operations.models(request.models, fetch=request.fetch)
                return control.ModelsReply(msgspec.convert(files, tuple[control.ModelFile, ...]))
            case control.PublishRequest():
                return self._publish(request.task_id)

    def _status(self) -> control.StatusReply:
        worker = self._worker()
        stats = self.census.take(CENSUS_S)
        worker = msgspec.structs.replace(
            worker,
            database_ok=worker.database_ok and stats.error is None,
            unclaimable=unclaimable(worker, stats),
            gpus=self.gpus(),
            turned_away=dict(self.turned_away()),
        )
        return control.StatusReply(worker, stats)

    def _worker(self) -> WorkerStatus:
        return msgspec.convert(msgspec.to_builtins(dict(self.operations.status())), WorkerStatus, strict=False)

    def _running(self, task_id: str) -> RunningTask | None:
        return next((task for task in self._worker().running if task.task_id == task_id), None)

    def _row(self, task_id: str) -> TaskRow:
        row = self.queue.task(checked_id(task_id))
        if row is None:
            raise ControlRefused("unknown_task", f"no task has the id {task_id}")
        return task_row(row)

    def _progress(self, task_id: str) -> control.ProgressReply:
        worker, status = self._worker(), TaskStatus.IN_PROGRESS.value
        here = next((task for task in worker.running if task.task_id == task_id), None)
        if any(result.task_id == task_id and result.state != "withheld" for result in worker.publishing):
            return control.ProgressReply(task_id, status, None, "publish")  # the row says so only later
        if here is not None:
            moves = here.step, here.steps, here.eta_s, here.preview
            return control.ProgressReply(task_id, status, here.fraction, here.phase, here.detail, *moves)
        row = self._row(task_id)
        return control.ProgressReply(task_id, row.status, row.progress, row.phase, row.detail)

    def _submit(self, request: control.SubmitRequest) -> control.SubmitReply:
        if not request.task_type.strip():
            raise ControlRefused("bad_request", "the task type is empty")
        for name, value in (("priority", request.priority), ("max_attempts", request.max_attempts)):
            if value is not None and not -(2**31) <= value < 2**31:
                raise ControlRefused("bad_request", f"{name} {value} is out of range: it has 32 bits")
        task_id = self.queue.enqueue(
            request.task_type, request.params, priority=request.priority, max_attempts=request.max_attempts
        )
        return control.SubmitReply(task_id)

    def _publish(self, task_id: str | None) -> control.DoneReply:
        count = self.operations.publish_again(None if task_id is None else checked_id(task_id))
        if count == 0 and task_id is not None:
            raise ControlRefused("wrong_status", f"no result of the task {task_id} waits here to be published")
        results = f"{count} result{'' if count == 1 else 's'}"
        return control.DoneReply(f"{results} sent again: see `wan2gp-ctl status`" if count else "nothing waits")

    def _tasks(self, request: control.TasksRequest) -> control.TasksReply:
        limit = max(1, min(request.limit, TASKS_MAX))
        status = None if request.status is None else folded_status(request.status)
        rows = self.queue.tasks(status=status, task_type=request.task_type, limit=limit)
        return control.TasksReply(tuple(task_row(row) for row in rows))

    def _cancel(self, task_id: str) -> control.ChangeReply:
        before = self._known(task_id, self.queue.cancel(checked_id(task_id)))
        if before.final:
            raise ControlRefused("wrong_status", f"the task {task_id} is already {before.value}")
        # The row is cancelled whatever the handler does; telling it now spares waiting for the next heartbeat.
        told = self.operations.cancel_running(task_id)
        return control.ChangeReply(task_id, before.value, told)

    def _retry(self, task_id: str) -> control.ChangeReply:
        before = self._known(task_id, self.queue.retry(checked_id(task_id)))
        if not before.final:
            raise ControlRefused(
                "wrong_status", f"the task {task_id} is {before.value}: only a finished one can be retried"
            )
        return control.ChangeReply(task_id, before.value)

    @staticmethod
    def _known(task_id: str, before: str | None) -> TaskStatus:
        if before is None:
            raise ControlRefused("unknown_task", f"no task has the id {task_id}")
        return TaskStatus(before)


def checked_id(task_id: str) -> str:
    """The id in its usual spelling, or :class:`ControlRefused`: what is no UUID is no task's id."""
    try:
        return str(uuid.UUID(task_id))
    except ValueError as error:
        raise ControlRefused("unknown_task", f"no task has the id {task_id}: ids are UUIDs") from error


def folded_status(text: str) -> str:
    """A status as the database spells it, from what a person typed (any case, ``_`` or ``-`` for the blank)."""
    wanted = text.replace("_", " ").replace("-", " ").casefold()
    for status in TaskStatus:
        if status.value.casefold() == wanted:
            return status.value
    raise ControlRefused("bad_request", f"{text} is no status: use one of {', '.join(s.value for s in TaskStatus)}")


def task_row(row: Mapping[str, Any]) -> TaskRow:
    """A queue's row (dates, UUIDs, decimals allowed) as the typed one; columns without a field there go to ``more``."""
    plain = msgspec.to_builtins(dict(row))
    known = {name: value for name, value in plain.items() if name in TaskRow.__struct_fields__}
    known["more"] = {name: value for name, value in plain.items() if name not in known}
    return msgspec.convert(known, TaskRow, strict=False)


def unclaimable(worker: WorkerStatus, stats: QueueStats) -> tuple[Unclaimable, ...]:
    """Queued types that this worker does not claim now, each with the reason."""
    queued = {row.task_type: row.count for row in stats.counts if row.status == TaskStatus.QUEUED.value}
    takers = {task_type: handler for handler in worker.handlers for task_type in handler.types}
    found = []
    for task_type, count in sorted(queued.items()):
        reason = worker.unable_types.get(task_type) or _why_not(takers.get(task_type), worker.unable)
        if reason is not None:
            found.append(Unclaimable(task_type, reason, count))
    return tuple(found)


def _why_not(handler: HandlerStatus | None, unable: Mapping[str, str]) -> str | None:
    if handler is None:
        return "no handler of this worker takes this type"
    if handler.name in unable:
        return f"handler {handler.name} cannot work here: {unable[handler.name]}"
    if handler.state == "broken":
        cause = f" ({handler.last_cause})" if handler.last_cause else ""
        again = f"`wan2gp-ctl restart {handler.name}` lets it try again at once"
        return f"handler {handler.name} is broken{cause}: {again}"
    return None


def log_places(data_dir: Path) -> control.LogsReply:
    """Where the logs of this data directory are; handlers that never ran have none yet."""
    logs = data_dir / "logs"
    handlers = {path.stem: str(path) for path in sorted((logs / "handlers").glob("*.log"))}
    return control.LogsReply(str(logs / "worker.log"), handlers)
