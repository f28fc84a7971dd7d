"""A disk that fills up: below a limit of free space the worker claims nothing more; what runs goes on.

A thread looks, since a look at a dead network disk may hang for ever. Kept inputs are given up first: the courier
finds out that one is gone as soon as it wants it, and downloads the file again.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wan2gp.logs import Facts

CODE = "worker.disk_full"
LOOK_S = 5.0
"""Time between two looks, seconds."""
LOW_LOOK_S = 1.0
"""The same while the space does not suffice: it is waited for."""
FIRST_LOOK_S = 2.0
"""How long a start waits for the first look, seconds."""
ENOUGH = 1.5
"""Claiming goes on at so many times the limit, or every file that comes and goes would turn it on and off."""
MIB = 1024 * 1024
JOIN_S = 1.0


@dataclass(frozen=True)
class Space:
    """One disk: its number (``st_dev``), a place on it, and bytes."""

    device: int
    place: Path
    free: int
    total: int


def shortage(spaces: Iterable[Space], limit: int, low: bool) -> str | None:
    """What is wrong, a sentence for a person, or None. ``limit`` in bytes; ``low``: something was wrong before."""
    found = lacking(spaces, limit, low)
    return _sentence(min(found, key=lambda space: space.free), limit) if found else None


def lacking(spaces: Iterable[Space], limit: int, low: bool) -> list[Space]:
    """The disks that lack space."""
    return [space for space in spaces if space.free < _needed(space, limit, low)]


def _needed(space: Space, limit: int, low: bool) -> int:
    """More while it is low, but never so much that a small disk could not give it any more."""
    return max(limit, min(int(limit * ENOUGH), (limit + space.total) // 2)) if low else limit


def _sentence(space: Space, limit: int) -> str:
    size = f"{space.free // MIB} MiB are free under {space.place}"
    if space.total < limit:
        return (
            f"{size}, whose disk has {space.total // MIB} MiB in all, less than disk.min_free_mib = {limit // MIB}: "
            "give a larger disk, or a lower limit"
        )
    short = f"less than disk.min_free_mib = {limit // MIB}"
    if space.free >= limit:
        short = f"and it was {short}: work goes on at {_needed(space, limit, True) // MIB}"
    return f"{size}, {short}; free space there"


class DiskWatch:
    """``blocked`` is called from its thread with what is wrong, at every look, and with None once nothing is."""

    def __init__(
        self,
        data_dir: Path,
        min_free: int,
        facts: Facts,
        blocked: Callable[[str | None], None],
        failed: Callable[[BaseException], None],
        statvfs: Callable[[Path], os.statvfs_result] = os.statvfs,
    ) -> None:
        self._data_dir = data_dir
        self._limit = min_free
        self._low = False
        self._facts = facts
        self._blocked = blocked
        self._failed = failed
        self._statvfs = statvfs
        self._stopped = threading.Event()
        self._looked = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="disk", daemon=True)

    def start(self) -> None:
        """Look from now on. Returns after the first look, unless that takes too long."""
        if self._limit:
            self._thread.start()
            self._looked.wait(FIRST_LOOK_S)

    def stop(self) -> None:
        """End the thread; one that hangs in a look is left alone."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)

    def _serve(self) -> None:
        try:
            while not self._stopped.is_set():
                self.look()
                self._looked.set()
                self._stopped.wait(LOW_LOOK_S if self._low else LOOK_S)
        except BaseException as error:  # a worker whose disk nobody watches must stop rather than limp
            self._failed(error)

    def look(self) -> None:
        """Look once; give up kept inputs where space is short."""
        was_low, spaces = self._low, self._spaces()
        wrong = shortage(spaces, self._limit, was_low)
        if wrong is not None:
            self._sweep(lacking(spaces, self._limit, was_low))
            wrong = shortage(self._spaces(), self._limit, was_low)
        self._low = wrong is not None
        if (self._low or was_low) and not self._stopped.is_set():
            self._blocked(wrong)

    def _spaces(self) -> list[Space]:
        """Of each disk once; a place that is not there yet will be on its parent's."""
        found: dict[int, Space] = {}
        for place in (self._data_dir, *(self._data_dir / name for name in ("spool", "outputs", "work"))):
            with contextlib.suppress(OSError):
                device = place.stat().st_dev
                if device not in found:
                    disk = self._statvfs(place)
                    if disk.f_blocks == 0:
                        continue  # a network disk that does not tell: nothing can be said of it
                    found[device] = Space(device, place, disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize)
        return list(found.values())

    def _sweep(self, low: list[Space]) -> None:
        """Give up kept inputs, if that helps."""
        cache = self._data_dir / "handlers" / "courier" / "cache" / "blobs"
        with contextlib.suppress(OSError):
            if cache.stat().st_dev in {space.device for space in low}:
                count, size = sweep_cache(cache, lambda: shortage(self._spaces(), self._limit, True) is None)
                if count:
                    self._facts("worker.cache_swept", count=count, mib=size // MIB)


def sweep_cache(blobs: Path, enough: Callable[[], bool]) -> tuple[int, int]:
    """Give up files of the courier's cache, those used longest ago first, until it is enough; how many and their bytes.

    Safe while the courier works: it links a file, and downloads anew what it cannot link; drafts are left alone. The
    directory belongs to the courier, which is not trusted: no link is followed, and only names that it gives to kept
    files are removed.
    """
    try:
        directory = os.open(blobs, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return 0, 0
    count = size = 0
    try:
        for _, name, held in sorted(_kept(directory)):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)
                count, size = count + 1, size + held
                if enough():
                    break
    finally:
        os.close(directory)
    return count, size


def _kept(directory: int) -> Iterator[tuple[int, str, int]]:
    """(last use in nanoseconds, name, bytes) of each kept file."""
    for name in os.listdir(directory):
        if len(name) == 64 and set(name) <= set("0123456789abcdef"):
            with contextlib.suppress(OSError):
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield status.st_mtime_ns, name, status.st_size
