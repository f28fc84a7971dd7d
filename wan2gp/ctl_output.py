"""What `wan2gp-ctl` writes: tables for a terminal, the same without decoration for a pipe, JSON for a program."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from typing import IO, Any, NoReturn, cast

import msgspec
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wan2gp.ctl_exit import harmless

PLAIN_WIDTH = 4000
"""Columns of a line that goes into a pipe: nothing is cut off there."""

STATUS_STYLES = {
    "Complete": "green",
    "Failed": "red",
    "Cancelled": "yellow",
    "In Progress": "cyan",
    "Queued": "blue",
    "idle": "green",
    "busy": "cyan",
    "broken": "bold red",
    "backoff": "yellow",
    "recycling": "yellow",
    "running": "green",
    "draining": "yellow",
    "stopping": "yellow",
}


class _Trimmed(io.TextIOBase):
    """Takes the blanks off the ends of lines: a table fills its columns up, which helps nobody in a pipe."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        self._file.write(re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE))
        return len(text)

    def flush(self) -> None:
        self._file.flush()


class Screen(Console):
    """A console that writes escape codes to a terminal only, and that leaves a closed pipe to the caller."""

    def __init__(self, file: IO[str]) -> None:
        terminal = file.isatty()
        super().__init__(
            file=file if terminal else cast(IO[str], _Trimmed(file)),
            force_terminal=terminal,
            force_interactive=terminal,
            width=None if terminal else PLAIN_WIDTH,
            highlight=False,
            emoji=False,
        )

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def screen() -> Screen:
    """The console on standard output."""
    return Screen(sys.stdout)


def error_screen() -> Screen:
    """The console on standard error: progress goes there, so that standard output stays fit for programs."""
    return Screen(sys.stderr)


def write_json(value: Any) -> None:
    """One indented JSON document."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def write_line(text: str) -> None:
    """One line, without what would steer a terminal."""
    sys.stdout.write(harmless(text) + "\n")


def table(console: Console, columns: Sequence[str], title: str = "") -> Table:
    """An empty table in the shape that fits the console; numbers' columns end with ``>``."""
    from rich import box

    shape = Table(
        title=escape(title) or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for name in columns:
        shape.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left", overflow="fold")
    return shape


def grid(console: Console) -> Table:
    """A table of names and values."""
    shape = Table.grid(padding=(0, 2, 0, 0))
    shape.add_column(style="dim" if console.is_terminal else None, no_wrap=True)
    shape.add_column(overflow="fold")
    return shape


def styled(text: str) -> Text:
    """A status or a state in its colour."""
    return Text(harmless(text), style=STATUS_STYLES.get(text, ""))


def plain(value: Any) -> Text:
    """Any value as text, never read as markup; None is a dash."""
    return Text("-" if value is None or value == "" else harmless(str(value)))


def bar(console: Console, fraction: float | None) -> RenderableType:
    """A progress bar on a terminal, a percentage elsewhere."""
    if fraction is None:
        return plain(None)
    if not console.is_terminal:
        return Text(f"{fraction:.0%}")
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_row(ProgressBar(total=1.0, completed=fraction, width=16), f"{fraction:4.0%}")
    return row


def span(seconds: float | None) -> str:
    """A length of time for a person."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24:02d} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(count: int | float | None) -> str:
    """A number of bytes for a person."""
    if count is None:
        return "-"
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
