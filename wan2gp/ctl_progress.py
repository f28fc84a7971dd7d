"""Follows one task to its end, with a live bar on a terminal and a line per phase elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from wan2gp.control import ProgressReply, ProgressRequest, TaskReply, TaskRequest
from wan2gp.ctl_exit import harmless
from wan2gp.ctl_link import Link
from wan2gp.ctl_output import span
from wan2gp.tasks import TaskStatus

LOOK_S = 0.2
"""Seconds between two looks at the task."""

FINAL = frozenset(status.value for status in TaskStatus if status.final)


class Display(Protocol):
    """Where progress is shown."""

    def show(self, progress: ProgressReply) -> None: ...

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def follow(link: Link, task_id: str, console: Console, *, alive: Callable[[], None] = lambda: None) -> TaskReply:
    """Wait until the task is final; its whole row. ``alive`` is called at every look and may raise to give up."""
    with display_on(console) as display:
        while True:
            alive()
            progress = link.ask(ProgressRequest(task_id), ProgressReply)
            display.show(progress)
            if progress.status in FINAL:
                break
            time.sleep(LOOK_S)
    return link.ask(TaskRequest(task_id), TaskReply)


def display_on(console: Console) -> Display:
    """The display that fits the console."""
    return LiveBar(console) if console.is_terminal else PhaseLines(console)


def words(progress: ProgressReply) -> str:
    """What the task does now."""
    if progress.status != TaskStatus.IN_PROGRESS.value:
        return progress.status.lower()
    steps = f"{progress.step} of {progress.steps}" if progress.step is not None and progress.steps else None
    return harmless(" ".join(part for part in (progress.phase or "started", progress.detail, steps) if part))


def left(progress: ProgressReply) -> str:
    """How long it will take yet, as far as that is known."""
    return "" if progress.eta_s is None else f"{span(progress.eta_s)} left"


class LiveBar:
    """One line that changes in place."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task("queued", total=None, left="")
        self._fraction = 0.0

    def show(self, progress: ProgressReply) -> None:
        """Move the bar; a new attempt begins at its left end."""
        complete = progress.status == TaskStatus.COMPLETE.value
        fraction = 1.0 if complete else progress.fraction
        if fraction is not None and fraction < self._fraction:
            self._progress.reset(self._task)
        self._fraction = fraction or 0.0
        total = None if fraction is None else 1.0
        self._progress.update(
            self._task, description=words(progress), total=total, completed=self._fraction, left=left(progress)
        )

    def __enter__(self) -> LiveBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class PhaseLines:
    """A line whenever the task enters another phase or another tenth of the way: what a log file can hold."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: tuple[str, int] = ("", 0)

    def show(self, progress: ProgressReply) -> None:
        """Say a new phase or tenth, once."""
        runs = progress.status == TaskStatus.IN_PROGRESS.value
        fraction = progress.fraction if runs else None
        now = (progress.phase or "started" if runs else progress.status, int((fraction or 0.0) * 10))
        if now == self._last:
            return
        self._last = now
        done = "" if fraction is None else f"{fraction:4.0%} "
        rest = f", {left(progress)}" if left(progress) else ""
        self._console.print(f"{done}{words(progress)}{rest}", markup=False)

    def __enter__(self) -> PhaseLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
