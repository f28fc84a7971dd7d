"""Serves one handler: hello, one task at a time, its inputs, progress, cancellation, and an outcome in any case.

The engine has the main thread; the wire has its own (:mod:`wan2gp.handlers.link`).
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wan2gp.handlers.api import Handler, Interrupted, Job, TaskFailure
from wan2gp.handlers.classify import classify
from wan2gp.handlers.link import Link
from wan2gp.protocol import (
    Cancel,
    Event,
    Failed,
    Fetch,
    Finished,
    Hello,
    Inputs,
    Outcome,
    Progress,
    ProtocolError,
    Run,
    Shutdown,
    Source,
    Unload,
    Unloaded,
    Want,
)

PROGRESS_EVERY_S = 0.1
"""Least time between two progress messages of the same phase, seconds."""
WAKE_S = 1.0
"""How long a wait may last without a look at the cancel flag, seconds."""

FAILURE_MAX = 1000
"""Of what an engine says when it cannot unload, characters."""


def serve(handler: Handler, link: Link, *, warm: bool) -> int:
    """Load, say hello, then run what comes until told to leave. Returns the exit status; a start that fails raises."""
    try:
        handler.load()
        if warm:
            handler.warm()
        link.send(Hello(os.getpid()))
        _until_told(handler, link)
    finally:
        handler.close()
    return 0


def _until_told(handler: Handler, link: Link) -> None:
    while not link.leaving:  # looked at each time: a run may have taken the message itself from the queue
        message = link.receive()
        if isinstance(message, Run):
            _run(handler, link, message)
        elif isinstance(message, Unload):
            link.send(_unload(handler))
        elif isinstance(message, Shutdown):
            return
        elif isinstance(message, Fetch):
            raise ProtocolError("a handler was asked to fetch")
        # Cancel and Inputs of a run that is over by now: nothing to do.


def _unload(handler: Handler) -> Unloaded:
    """Somebody waits for the GPU, and must hear of the end of this: the supervisor replaces what cannot unload."""
    try:
        handler.unload()
    except Exception as error:
        # The outcome of an order, as in _outcome: whatever the engine raises is the answer.
        traceback.print_exc(file=sys.stderr)
        return Unloaded(f"{type(error).__name__}: {error}"[:FAILURE_MAX])
    return Unloaded()


def _run(handler: Handler, link: Link, run: Run) -> None:
    outcome = _outcome(handler, _Wire(link, run))
    # The outcome of a hostile or careless engine may be too large or no JSON; the supervisor must hear of the end.
    try:
        link.send(Finished(run.task_id, run.lease_id, outcome))
    except ProtocolError as error:
        failure = Failed("handler.protocol", f"cannot report the outcome: {error}")
        link.send(Finished(run.task_id, run.lease_id, failure))
    link.forget(run.task_id, run.lease_id)


def _outcome(handler: Handler, wire: _Wire) -> Outcome:
    try:
        return handler.run(wire.job())
    except Exception as error:
        # One of two catch-alls (the other is around main): whatever the engine raised is this task's outcome.
        if not isinstance(error, (Interrupted, TaskFailure)):
            traceback.print_exc(file=sys.stderr)
        return classify(error)


class _Wire:
    """One run's way to the supervisor."""

    def __init__(self, link: Link, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._run = run
        self._clock = clock
        self._last: tuple[str, float] = ("", -1.0)

    def job(self) -> Job:
        run = self._run
        return Job(
            task_id=run.task_id,
            task_type=run.task_type,
            attempt=run.attempt,
            lease_id=run.lease_id,
            params=run.params,
            place=Path(run.work_dir),
            obtain=self._obtain,
            report=self._report,
            fact=self._fact,
            cancel_flag=self._cancelled,
        )

    def _cancelled(self) -> bool:
        return self._link.cancelled(self._run.task_id, self._run.lease_id)

    def _fact(self, name: str, /, **fields: Any) -> None:
        self._link.send(Event(name, fields, self._run.task_id))

    def _report(
        self,
        fraction: float | None,
        phase: str,
        step: int | None,
        steps: int | None,
        detail: str | None,
        eta_s: float | None,
        preview: str | None,
    ) -> None:
        now = self._clock()
        if phase == self._last[0] and now - self._last[1] < PROGRESS_EVERY_S:
            return
        self._last = (phase, now)
        names = self._run.task_id, self._run.lease_id
        self._link.send(Progress(*names, fraction, phase, step, steps, detail, eta_s, preview))

    def _obtain(self, sources: Mapping[str, Source]) -> dict[str, Path]:
        if not sources:
            return {}
        self._link.send(Want(self._run.task_id, self._run.lease_id, dict(sources)))
        while not self._cancelled():
            answer = self._link.receive(WAKE_S)
            if isinstance(answer, Inputs) and answer.lease_id == self._run.lease_id:
                return _files(answer)
            if answer is not None and not isinstance(answer, (Inputs, Cancel, Shutdown)):
                raise ProtocolError(f"{type(answer).__name__} arrived during a run")
        raise Interrupted


def _files(answer: Inputs) -> dict[str, Path]:
    failure = answer.failure
    if failure is not None:
        raise TaskFailure(failure.code, failure.message, retryable=failure.retryable, detail=failure.detail)
    return {name: Path(path) for name, path in answer.files.items()}
