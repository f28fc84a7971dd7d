"""`wan2gp-ctl logs`: reads the files under the data directory, so that it also works when no supervisor runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from wan2gp.ctl_exit import CtlError, Exit
from wan2gp.ctl_link import data_dir
from wan2gp.ctl_output import write_line

LOOK_S = 0.2
"""Seconds between two looks at a file that is followed."""

CHUNK = 64 * 1024

Wanted = Callable[[str], bool]


def logs(args: argparse.Namespace) -> int:
    """The command."""
    path, wanted = source(data_dir(args) / "logs", args.of)
    write = _json_writer(path) if args.json else write_line
    for line in follow(path, wanted, args.lines) if args.follow else last_lines(path, wanted, args.lines):
        write(line)
        if args.follow:
            sys.stdout.flush()
    return Exit.OK


def source(folder: Path, of: str | None) -> tuple[Path, Wanted]:
    """The file to read and which of its lines: all of the worker's or a handler's, or those that name a task."""
    if of is None:
        return _existing(folder / "worker.log"), lambda line: True
    if _is_task_id(of):
        return _existing(folder / "worker.log"), lambda line: of.lower() in line
    handlers = {path.stem: path for path in sorted((folder / "handlers").glob("*.log"))}
    if of not in handlers:
        known = ", ".join(handlers) or "none yet"
        raise CtlError(Exit.FAILED, f"{of} is neither a task's id nor a handler with a log (those are: {known})")
    return handlers[of], lambda line: True


def _is_task_id(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise CtlError(Exit.FAILED, f"there is no log at {path}: no supervisor has run for this data directory yet")
    return path


def last_lines(path: Path, wanted: Wanted, count: int) -> Iterator[str]:
    """The last ``count`` wanted lines (0: all), across the file that was set aside before this one."""
    lines = (line for part in (*_rotated(path), path) for line in _lines_of(part) if wanted(line))
    return iter(deque(lines, maxlen=count)) if count else lines


def _rotated(path: Path) -> list[Path]:
    """Older parts of a log, oldest first: ``worker.<date>.log`` beside ``worker.log``."""
    parts = [part for part in path.parent.glob(f"{path.stem}.*{path.suffix}") if part != path]
    return sorted(parts, key=lambda part: part.stat().st_mtime_ns)


def _lines_of(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                yield line.rstrip("\n")
    except FileNotFoundError:
        return  # rotated away between the listing and the reading


def follow(path: Path, wanted: Wanted, count: int) -> Iterator[str]:
    """The last lines, then what is written, for ever; goes on in the new file when the log is rotated."""
    tail = Tail(path)
    try:
        yield from _until(path, wanted, count, tail.begin())
        while True:
            lines = tail.read()
            yield from (line for line in lines if wanted(line))
            if not lines:
                time.sleep(LOOK_S)
    finally:
        tail.close()


def _until(path: Path, wanted: Wanted, count: int, end: int) -> Iterator[str]:
    """The last wanted lines of what lies before byte ``end`` of the file."""
    with path.open("rb") as file:
        text = file.read(end).decode(errors="replace")
    older = (line for part in _rotated(path) for line in _lines_of(part))
    found = (line for lines in (older, text.splitlines()) for line in lines if wanted(line))
    return iter(deque(found, maxlen=count)) if count else found


class Tail:
    """Reads whole lines from the end of a file that grows, is cut short, or is replaced by a new one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("rb")
        self._rest = b""

    def begin(self) -> int:
        """Go behind the last whole line of what is there; that place, in bytes."""
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, end - CHUNK))
        behind = self._file.read(CHUNK).rfind(b"\n") + 1
        return self._file.seek(max(0, end - CHUNK) + behind)

    def read(self) -> list[str]:
        """The whole lines written since the last call; empty when there are none."""
        data = self._file.read(CHUNK)
        if not data:
            data = self._turn()
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in whole]

    def _turn(self) -> bytes:
        """At the end of the file: look whether the lines go on elsewhere."""
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return b""  # between the rename and the new file
        mine = os.fstat(self._file.fileno())
        if not os.path.samestat(now, mine):
            # Its last lines may have been written between our last read and the rename.
            last = self._file.read()
            self._file.close()
            self._file = self._path.open("rb")
            return last
        if now.st_size < self._file.tell():
            self._file.seek(0)
            self._rest = b""
        return b""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _json_writer(path: Path) -> Callable[[str], None]:
    def write(line: str) -> None:
        write_line(json.dumps({"file": str(path), "line": line}, ensure_ascii=False))

    return write
