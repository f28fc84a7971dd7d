"""A task of ours between claim and settlement, and the rules by which its run becomes the end of its lease."""

from __future__ import annotations

import enum
import errno
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wan2gp.errors import error_message
from wan2gp.protocol import OUT_OF_MEMORY, Failed, Inputs, Outcome, Progress, Source, Succeeded, misshapen
from wan2gp.supervisor import bounds
from wan2gp.supervisor.queue import ClaimedTask, Verb
from wan2gp.supervisor.spool import Ending
from wan2gp.supervisor.wanted import Named

RETRY_FIRST_S = 2.0
RETRY_MAX_S = 300.0
LONGEST_ETA_S = 30 * 24 * 3600.0
"""An estimate beyond a month is none."""
LONGEST_URL = 8192
PREVIEW_NAME = re.compile(r"[\w-]{1,40}\.(?:jpg|png|webp)")
ENGINE_DOWN_RETRY_S = 5.0
"""How long a task that an engine could not start for is left to other workers, seconds."""


class Why(enum.Enum):
    """Why a run was interrupted by us."""

    USER = "user"
    """Its user cancelled it."""
    STOP = "stop"
    """The worker stops."""
    RESTART = "restart"
    """The operator restarts the handler."""
    LOST = "lost"
    """Somebody else has the lease: nothing may be published or settled."""
    DANGER = "danger"
    """The lease could not be renewed and may be taken."""


_INTERRUPTED = {
    Why.STOP: ("worker.stopping", "the worker stopped before the end"),
    Why.RESTART: ("handler.restarted", "the handler was restarted before the end"),
    Why.DANGER: ("worker.lease_lost", "the lease could not be renewed in time"),
    Why.LOST: ("worker.lease_lost", "somebody else had taken the lease"),
}


@dataclass
class Running:
    """One task under our lease. Times are monotonic seconds."""

    task: ClaimedTask
    handler: str
    work_dir: str
    """Absolute; there only once somebody has made it."""
    claimed_at: float
    started_at: float | None = None
    progressed_at: float = 0.0
    fraction: float | None = None
    phase: str = "start"
    step: int | None = None
    steps: int | None = None
    detail: str | None = None
    eta_s: float | None = None
    preview: str | None = None
    """Name of a picture in the work directory."""
    why: Why | None = None
    interrupted_at: float | None = None
    sources: dict[str, Source] = field(default_factory=dict)
    """What the courier was asked for."""
    inputs: Inputs | None = None
    """What the courier has answered."""
    named: Named | None = field(default=None, repr=False)
    """What its params name, once it was asked for."""
    wishes: int = 0
    """How often it has asked for other inputs than before."""
    wanted: bool = False
    """The handler waits for its inputs."""
    fetched_s: float | None = None
    first_try: Failed | None = None
    """How its run ended in the process before; it is run once more within the same attempt."""
    left: tuple[str, ...] = ()
    """Work directories of earlier tries: the inputs are there, and perhaps half a result that must not be taken."""
    put_url: str | None = field(default=None, repr=False)
    """Where the task wants its primary artifact sent; signed, so a secret."""

    @property
    def key(self) -> tuple[str, str]:
        """(task id, lease id)."""
        return self.task.id, self.task.lease_id

    def names(self) -> Named:
        """What its params name; they are searched once, however often it asks."""
        if self.named is None:
            self.named = Named(self.task.params)
        return self.named

    def may_run_again(self, failed: Failed) -> bool:
        """Whether a fresh process should try it within this attempt: it ran out of memory for the first time."""
        return (
            failed.code == OUT_OF_MEMORY
            and failed.retryable
            and not failed.engine_down
            and self.why is None
            and self.first_try is None
        )

    def begin_again(self, failed: Failed) -> None:
        """Forget the first try but for its inputs. What it made stays behind in its own directory."""
        self.first_try, self.started_at = failed, None
        self.left, self.work_dir = (*self.left, self.work_dir), f"{self.work_dir}-again"
        self.fraction = self.step = self.steps = self.eta_s = self.preview = None
        self.phase, self.detail, self.wanted = "start", "once more in a fresh process", False
        if self.inputs is not None and not _all_there(self.inputs.files.values()):
            self.sources, self.inputs = {}, None  # it moved or deleted them: they are fetched again

    def timings(self, now: float) -> dict[str, float]:
        """Seconds spent: waiting for the handler, downloading, running."""
        started = self.started_at if self.started_at is not None else now
        times = {"wait_s": started - self.claimed_at, "run_s": now - started}
        if self.fetched_s is not None:
            times["download_s"] = self.fetched_s
        return {name: round(value, 3) for name, value in times.items()}

    def heard(self, message: Progress) -> None:
        """Note what the handler, which is not trusted, says of its work. The fraction never falls."""
        if message.fraction is not None and 0 <= message.fraction <= 1:
            self.fraction = max(message.fraction, self.fraction or 0.0)
        self.phase, self.detail = bounds.phase(message.phase), bounds.detail(message.detail)
        self.step, self.steps = message.step, message.steps
        self.eta_s = message.eta_s if message.eta_s is not None and 0 <= message.eta_s < LONGEST_ETA_S else None
        if message.preview is not None and PREVIEW_NAME.fullmatch(message.preview):
            self.preview = message.preview

    def row_detail(self) -> str | None:
        """What the row says of it: ``KSampler, 3 of 20, 35 s left``."""
        parts = [self.detail or ""]
        parts += [f"{self.step} of {self.steps}"] if self.step is not None and self.steps else []
        parts += [f"{self.eta_s:.0f} s left"] if self.eta_s is not None else []
        return ", ".join(part for part in parts if part) or None

    def describe(self, now: float) -> dict[str, Any]:
        """The row of this task in `status`."""
        return {
            "task_id": self.task.id,
            "task_type": self.task.task_type,
            "handler": self.handler,
            "attempt": self.task.attempt,
            "fraction": self.fraction,
            "phase": self.phase if self.started_at is not None else "waiting",
            "step": self.step,
            "steps": self.steps,
            "detail": self.detail,
            "eta_s": self._left_s(now),
            "preview": f"{self.work_dir}/{self.preview}" if self.preview else None,
            "seconds": now - (self.started_at or self.claimed_at),
        }

    def _left_s(self, now: float) -> float | None:
        """The estimate, less what has passed since it was made."""
        return None if self.eta_s is None else round(max(0.0, self.eta_s - (now - self.progressed_at)), 1)

    def ended(self, outcome: Outcome, now: float) -> Ending:
        """What a handler's outcome means for the row."""
        if isinstance(outcome, Succeeded):
            data = _result(outcome, self._remarks())
            return self._ending(Verb.COMPLETE, now, artifacts=outcome.artifacts, result_data=data)
        if isinstance(outcome, Failed):
            return self._failed(outcome, now)
        if self.why is Why.USER:
            return self._ending(Verb.CANCEL, now, error="task.cancelled: cancelled by its user")
        if self.why is None:
            return self._failed(Failed("handler.protocol", "the handler gave up unasked", True), now)
        return self._handed_back(now)

    def _failed(self, outcome: Failed, now: float) -> Ending:
        message = error_message(outcome.code, outcome.message)
        cause = {
            "kind": "failed",
            "code": outcome.code,
            "message": outcome.message[: bounds.TEXT_MAX],
            **_detail(outcome),
        }
        if self.why is Why.USER:
            return self._ending(Verb.CANCEL, now, error="task.cancelled: cancelled by its user")
        if self.why is not None:
            return self._handed_back(now)
        if outcome.engine_down:
            return self._ending(Verb.RELEASE, now, error=message, cause=cause, retry_in_s=ENGINE_DOWN_RETRY_S)
        if outcome.code == OUT_OF_MEMORY and self.first_try is not None:
            hopeless = (
                f"{message}; it ran out of memory in a fresh process too, so it needs smaller inputs or a larger GPU"
            )
            return self._ending(Verb.FAIL, now, error=hopeless, cause=cause)
        if outcome.retryable:
            return self._ending(Verb.RETRY, now, error=message, cause=cause, retry_in_s=backoff_s(self.task.failures))
        return self._ending(Verb.FAIL, now, error=message, cause=cause)

    def lost(self, code: str, cause: str, death: dict[str, Any], now: float) -> Ending:
        """Its process died under it."""
        if self.why is Why.USER:
            return self._ending(Verb.CANCEL, now, error="task.cancelled: cancelled by its user")
        if self.why is not None:
            return self._handed_back(now)
        message = error_message(code, f"the {self.handler} process ended under the task: {cause}")
        record = {"kind": "lost", "code": code, "message": cause, **death}
        return self._ending(Verb.LOSS, now, error=message, cause=record, retry_in_s=backoff_s(self.task.losses))

    def excused(self, outcome: Failed, now: float, retry_in_s: float) -> Ending:
        """It failed and is not to blame: it goes back to the queue uncounted, and stays there for a while."""
        cause = {
            "kind": "released",
            "code": outcome.code,
            "message": outcome.message[: bounds.TEXT_MAX],
            **_detail(outcome),
        }
        error = error_message(outcome.code, f"{outcome.message} (not counted: other tasks ended so just before)")
        return self._ending(Verb.RELEASE, now, error=error, cause=cause, retry_in_s=retry_in_s)

    def given_back(self, code: str, reason: str, now: float, error: str | None = None) -> Ending:
        """It goes back to the queue uncounted. ``error`` is kept on the row for its owner to see."""
        cause = {"kind": "released", "code": code, "message": reason}
        return self._ending(Verb.RELEASE, now, error=error, cause=cause)

    def _handed_back(self, now: float) -> Ending:
        """It was interrupted before its end, and not by its user."""
        return self.given_back(*_INTERRUPTED[self.why or Why.STOP], now)

    def _remarks(self) -> tuple[str, ...]:
        """What its owner should know of a run that went well at last."""
        if self.first_try is None:
            return ()
        return (f"it took a fresh process, since the first one ran out of memory: {self.first_try.message}",)

    def _ending(
        self,
        verb: Verb,
        now: float,
        *,
        error: str | None = None,
        cause: dict[str, Any] | None = None,
        retry_in_s: float | None = None,
        artifacts: tuple[Any, ...] = (),
        result_data: dict[str, Any] | None = None,
    ) -> Ending:
        if cause is not None and self.first_try is not None:
            cause["first_try"] = {"code": self.first_try.code, "message": self.first_try.message}
        data = {**(result_data or {}), "timings": self.timings(now)} if verb in (Verb.COMPLETE, Verb.FAIL) else {}
        return Ending(
            task_id=self.task.id,
            task_type=self.task.task_type,
            attempt=self.task.attempt,
            lease_id=self.task.lease_id,
            token=self.task.token,
            verb=verb,
            work_dir=self.work_dir,
            error_message=error,
            cause=cause,
            retry_in_s=retry_in_s,
            artifacts=artifacts,
            result_data=data,
            user_id=self.task.user_id,
            project_id=self.task.project_id,
            put_url=self.put_url if artifacts else None,
        )


def unplaced(what: str, error: OSError) -> Failed:
    """Why there is no directory for something, which passes."""
    code = "worker.disk_full" if error.errno == errno.ENOSPC else "input.unplaced"
    return Failed(code, f"cannot make a directory for {what}: {error.strerror}", retryable=True)


def _all_there(files: Iterable[str]) -> bool:
    return all(Path(path).is_file() for path in files)


def _result(outcome: Succeeded, remarks: tuple[str, ...]) -> dict[str, Any]:
    data: dict[str, Any] = {**outcome.data}
    if warnings := [*outcome.warnings, *remarks]:
        data["warnings"] = warnings
    if outcome.engine:
        data["engine"] = outcome.engine
    return data


def _detail(outcome: Failed) -> dict[str, Any]:
    return {"detail": bounds.failure_detail(outcome.detail)} if outcome.detail else {}


def backoff_s(before: int) -> float:
    """The pause before another attempt after ``before`` earlier ones of the same kind, with jitter, seconds."""
    return float(min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(before, 10)) * random.uniform(0.8, 1.2))


def within_wire(task: ClaimedTask) -> ClaimedTask:
    """The task; without its params where their shape alone would hold up the loop. For the claimer's thread."""
    why = misshapen(task.params)
    if why is None:
        return task
    unreadable = f"what is in them {why}; give large data as a file, by URL"
    return replace(task, params=None, unreadable=unreadable, unreadable_code="input.too_large")


PUT_URL = "put_url"
"""The key in ``params`` for a signed URL that the primary artifact is sent to, whatever the task's type."""


def without_put_url(task: ClaimedTask) -> tuple[ClaimedTask, str | None]:
    """The task as its handler may see it, and the URL. Raises :class:`ValueError` for what is no https URL.

    The URL is signed: whoever has it can write there, so no handler gets it.
    """
    if not isinstance(task.params, dict) or task.params.get(PUT_URL) is None:
        return task, None
    url = task.params[PUT_URL]
    params = {key: value for key, value in task.params.items() if key != PUT_URL}
    if not isinstance(url, str) or len(url) > LONGEST_URL or not url.isprintable():
        raise ValueError(f"{PUT_URL} must be a URL that is signed for PUT")
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.username:
        raise ValueError(f"{PUT_URL} must be an https URL without user and password, signed for PUT")
    return replace(task, params=params), url
