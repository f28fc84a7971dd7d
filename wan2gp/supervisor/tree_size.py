"""How much disk directories take whose owner is not trusted: he may move, link and nest what he likes meanwhile."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wan2gp.processes import reading_as_owner

DEEPEST = 64
"""Directories below one another; no engine nests so many, and each is an open descriptor of ours."""
MOST_FILES = 1_000_000
"""Files of one handler: they fill a disk's table of files, and a look at them takes seconds."""
BREATH = 256
"""After so many entries others get their turn: a walk holds Python's lock most of the time."""
BLOCK = 512
"""What ``st_blocks`` counts in, bytes."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class Size:
    """What was found. Holes take no space, and a file with several names takes it once."""

    bytes: int = 0
    files: int = 0
    wrong: str | None = None
    """Why the walk ended early: it is more than can be looked at, the end of a sentence for a person."""
    _seen: set[tuple[int, int]] = field(default_factory=set)

    def add(self, status: os.stat_result) -> None:
        """Count one file or directory."""
        self.files += 1
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if (status.st_dev, status.st_ino) in self._seen:
                return
            self._seen.add((status.st_dev, status.st_ino))
        self.bytes += status.st_blocks * BLOCK


def measure(
    roots: Iterable[Path], breathe: Callable[[], None], deepest: int = DEEPEST, most_files: int = MOST_FILES
) -> Size:
    """All that is below the roots, which need not exist. ``breathe`` is called now and then, and may sleep.

    Follows no link and opens nothing but directories; other file systems are not entered.
    """
    size = Size()
    for root in roots:
        with contextlib.suppress(OSError):
            _Walk(size, breathe, deepest, most_files).down(os.open(root, _FOLDER))
    return size


class _Walk:
    def __init__(self, size: Size, breathe: Callable[[], None], deepest: int, most_files: int) -> None:
        self._size = size
        self._breathe = breathe
        self._deepest = deepest
        self._most_files = most_files

    def down(self, root: int) -> None:
        device = os.fstat(root).st_dev
        path: list[tuple[int, Iterator[str]]] = [(root, self._folders(root, device))]
        try:
            while path and self._size.wrong is None:
                folder, inner = path[-1]
                name = next(inner, None)
                if name is None:
                    os.close(path.pop()[0])
                elif len(path) > self._deepest:
                    self._size.wrong = f"it nests directories more than {self._deepest} deep"
                else:
                    self._enter(name, path, device)
        finally:
            for folder, _ in path:
                os.close(folder)

    def _enter(self, name: str, path: list[tuple[int, Iterator[str]]], device: int) -> None:
        try:
            below = os.open(name, _FOLDER, dir_fd=path[-1][0])
        except PermissionError:
            self._size.wrong = f"it closed a directory ({name[:100]!r}) to the worker, who cannot tell what is in it"
        except OSError:
            return  # it is gone, or a link by now
        else:
            path.append((below, self._folders(below, device)))

    def _folders(self, folder: int, device: int) -> Iterator[str]:
        """Counts what is in it, and names the directories."""
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if self._size.files >= self._most_files:
                    self._size.wrong = f"it made more than {self._most_files} files"
                    return
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    self._size.add(status)
                    if self._size.files % BREATH == 0:
                        self._breathe()
                    if stat.S_ISDIR(status.st_mode) and status.st_dev == device:
                        yield entry.name


def nameless(pids: Iterable[int], device: int) -> int:
    """Bytes of files on one disk that these processes hold open and that have no name any more, as far as the kernel
    tells: a file that is only mapped is not among them."""
    found: dict[int, int] = {}
    for pid in pids:
        with reading_as_owner(pid), contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    status = os.stat(f"/proc/{pid}/fd/{name}")
                    if status.st_nlink == 0 and status.st_dev == device and stat.S_ISREG(status.st_mode):
                        found[status.st_ino] = status.st_blocks * BLOCK
    return sum(found.values())
