"""What a handler is, to its author: a class with ``load``, ``run``, ``unload`` and ``close``.

A handler lives in its own process and sees one task at a time. It knows neither queue nor lease nor credentials.
Other packages add theirs through the entry-point group ``wan2gp.handlers``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wan2gp.protocol import Outcome


@dataclass(frozen=True)
class HandlerContext:
    """What a handler gets at start: its settings (JSON values, no secrets), its own directory, a way to state facts."""

    name: str
    home: Path
    """A directory that is this handler's alone and outlives its process; engines keep state here."""
    settings: Mapping[str, Any]
    event: Callable[..., None]
    """``event(name, **fields)``: a fact to log."""


@dataclass(frozen=True)
class Job:
    """One task's run, as the handler sees it."""

    task_id: str
    task_type: str
    attempt: int
    lease_id: str
    params: Any
    work_dir: Path
    inputs: Mapping[str, Path]
    """Parameter name to the file the courier fetched, e.g. ``{"video_url": …}``."""
    report: Callable[..., None] = field(repr=False)
    fact: Callable[..., None] = field(repr=False)
    cancel_flag: Callable[[], bool] = field(repr=False)

    def progress(
        self,
        fraction: float | None,
        phase: str = "step",
        *,
        step: int | None = None,
        steps: int | None = None,
        detail: str | None = None,
    ) -> None:
        """The work goes on: ``fraction`` 0..1 of the whole run, ``phase`` one of start, load, step, decode, publish."""
        self.report(fraction, phase, step, steps, detail)

    def event(self, name: str, **fields: Any) -> None:
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

    @abc.abstractmethod
    def run(self, job: Job) -> Outcome:
        """Do the task. May raise: :mod:`wan2gp.handlers.classify` turns the exception into ``Failed``."""

    def unload(self) -> None:
        """Give the GPU back; called when idle."""

    def close(self) -> None:
        """Leave nothing behind; called once, before the process ends."""
