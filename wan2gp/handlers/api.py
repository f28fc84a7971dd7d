"""What a handler is, to its author: a class with ``load``, ``warm``, ``run``, ``unload`` and ``close``.

A handler lives in its own process and sees one task at a time. It knows neither queue nor lease nor credentials.
Other packages add theirs through the entry-point group ``wan2gp.handlers``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wan2gp.protocol import Outcome, Source
from wan2gp.secret import Secret


@dataclass(frozen=True)
class HandlerContext:
    """What a handler gets at start: its settings (JSON values, no secrets), its own directory, a way to state facts."""

    name: str
    home: Path
    """A directory that is this handler's alone and outlives its process; engines keep state here."""
    settings: Mapping[str, Any]
    event: Callable[..., None]
    """``event(name, **fields)``: a fact to log; the names are in :mod:`wan2gp.logs`."""
    engine_state: Callable[..., None]
    """``engine_state(state, **detail)``: ``stopped``, ``starting``, ``ready`` or ``failed``; ``detail`` is shown by
    ``wan2gp-ctl status`` (``pid``, ``port``, ``version`` …). ``model``: the name of what is loaded now, as tasks name
    it in ``params.model``; tasks of that model are preferred until the next word, a failed start or an unload."""
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    """The tokens that its spec asked for, by name. They are in no setting, variable or argument, and whatever this
    process says to the supervisor has ``***`` in their place."""


class Interrupted(Exception):
    """Raised by :meth:`Job.fetch` when the task was cancelled meanwhile; the runtime turns it into ``Cancelled``."""


class TaskFailure(Exception):
    """A failure with a code of :mod:`wan2gp.errors`; raise it anywhere below :meth:`Handler.run`."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool | None = None,
        recycle: bool | None = None,
        engine_down: bool = False,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """``retryable`` None: what the registry of codes says. ``recycle``: this process must not be used again; None:
        only after ``engine.cuda_broken``, whose handler says False when it has replaced the process that broke.
        ``engine_down``: the engine could not start, so the task goes back uncounted."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.recycle = recycle
        self.engine_down = engine_down
        self.detail = dict(detail or {})


@dataclass(frozen=True)
class Job:
    """One task's run, as the handler sees it."""

    task_id: str
    task_type: str
    attempt: int
    lease_id: str
    params: Any
    place: Path = field(repr=False)
    """Where :attr:`work_dir` is made."""
    obtain: Callable[[Mapping[str, Source]], dict[str, Path]] = field(repr=False)
    report: Callable[..., None] = field(repr=False)
    fact: Callable[..., None] = field(repr=False)
    cancel_flag: Callable[[], bool] = field(repr=False)

    @property
    def work_dir(self) -> Path:
        """This attempt's own directory, made at the first use. What the handler makes for the user lies in it."""
        self.place.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self.place

    def fetch(self, sources: Mapping[str, Source]) -> dict[str, Path]:
        """The files behind ``sources`` (by a name of the handler's choice), downloaded by the courier.

        Blocks. Raises :class:`TaskFailure` with an ``input.*`` code, or :class:`Interrupted`. A URL that does not
        stand in the task's ``params`` is refused.
        """
        return self.obtain(sources)

    def progress(
        self,
        fraction: float | None,
        phase: str = "step",
        *,
        step: int | None = None,
        steps: int | None = None,
        detail: str | None = None,
        eta_s: float | None = None,
        preview: str | None = None,
    ) -> None:
        """The work goes on: ``fraction`` 0..1 of the whole run, ``phase`` one of start, load, step, decode, publish.

        ``eta_s``: seconds to the end, when that is known. ``preview``: name of a picture in :attr:`work_dir`.
        """
        self.report(fraction, phase, step, steps, detail, eta_s, preview)

    def event(self, name: str, /, **fields: Any) -> None:
        """A fact to log, bound to this task."""
        self.fact(name, **fields)

    def cancelled(self) -> bool:
        """True once the task was cancelled or the worker is stopping; look often, return ``Cancelled()``."""
        return self.cancel_flag()


class Handler(abc.ABC):
    """One engine. All methods are called from the child's main thread."""

    def __init__(self, context: HandlerContext) -> None:
        self.context = context

    def load(self) -> None:
        """Import what is heavy. An exception here costs no task: the process is started again with back-off."""

    def warm(self) -> None:
        """Start the engine now: called after :meth:`load` when the handler is prewarmed, or after a failed start.
        Raise when it cannot start; that costs no task."""

    @abc.abstractmethod
    def run(self, job: Job) -> Outcome:
        """Do the task. May raise: :mod:`wan2gp.handlers.classify` turns the exception into ``Failed``."""

    def unload(self) -> None:
        """Give the GPU's memory back, all but a bare context, before this returns; called when idle.

        Another engine may be waiting for it. Whoever cannot raises, and its process is replaced.
        """

    def close(self) -> None:
        """Leave nothing behind; called once, before the process ends."""
