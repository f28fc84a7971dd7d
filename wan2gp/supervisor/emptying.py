"""What a dead handler leaves: its temporary files, shared memory that nobody holds, and all that it wrote beyond its
limit, or its next process would be over the limit from the start.

Directories are set aside at once, by a rename, and removed by and by: millions of files may be in them, nested as deep
as they could.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from wan2gp.processes import running_as

GONE = ".gone-"
"""What was set aside is beside the handlers' directories, under names that no handler has."""
SHARED_MEMORY = Path("/dev/shm")
MOST_AT_ONCE = 10_000
"""Files of shared memory that are removed after one death, lest the loop hang over millions."""
MUCH = 64
"""So many times :data:`BREATH` entries are removed in passing, or so many directories: a fraction of a second."""
BREATH = 256
"""After so many entries others get their turn."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def set_aside(directory: Path, parent: Path) -> None:
    """Put it out of the way, into ``parent``; that it is not there is as good. Raises :class:`OSError`."""
    with contextlib.suppress(FileNotFoundError):
        directory.rename(parent / f"{GONE}{secrets.token_hex(8)}")


def set_tmp_aside(home: Path) -> None:
    """The temporary files in a handler's directory, if there are any; a disk that refuses it costs nothing else. What
    is no directory, a link say, is removed where it is."""
    tmp = home / "tmp"
    with contextlib.suppress(OSError):
        if tmp.is_symlink() or not tmp.is_dir():
            tmp.unlink()
        elif os.listdir(tmp):
            set_aside(tmp, home.parent)


def free_shared_memory(uid: int, place: Path = SHARED_MEMORY) -> int:
    """Remove the files of a user who has no process any more; they are memory. Returns how many.

    While one runs, of another worker on this machine say, nobody knows whose they are, and they stay.
    """
    found = list(itertools.islice(_files_of(uid, place), MOST_AT_ONCE))
    if not found or running_as(uid):
        return 0
    for path in found:
        with contextlib.suppress(OSError):
            os.unlink(path)
    return len(found)


def _files_of(uid: int, place: Path) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_uid == uid and not entry.is_dir(follow_symlinks=False):
                    yield entry.path


class _Much(Exception):
    """It is more than is removed in passing."""


def discard(directory: Path, aside: Path) -> None:
    """Remove it, for somebody who has other things to do: what is large, or resists, goes into ``aside`` to be removed
    later. That it is not there is as good; what cannot even be moved stays."""
    turns = iter(range(MUCH))

    def breathe() -> None:
        if next(turns, None) is None:
            raise _Much

    try:
        remove(directory, breathe)
    except FileNotFoundError:
        return
    except (OSError, _Much):
        with contextlib.suppress(OSError):
            if directory.is_symlink() or not directory.is_dir():
                directory.unlink()
            else:
                directory.rename(aside / f"{GONE}{secrets.token_hex(8)}")


def remove_set_aside(parent: Path, breathe: Callable[[], None]) -> None:
    """Remove what was set aside in ``parent``, also in an earlier life. What cannot be removed stays."""
    for directory in parent.glob(f"{GONE}*"):
        with contextlib.suppress(OSError):
            remove(directory, breathe)


def remove(directory: Path, breathe: Callable[[], None]) -> None:
    """Remove a directory that nobody uses any more, with all that is in it. Follows no link. Raises :class:`OSError`.

    It goes down and up again by one open directory at a time, so no depth needs a long path or many descriptors.
    """
    here = _opened(directory, None)
    way: list[tuple[str, os.stat_result]] = []
    """How it came here: each name, and the directory that it is in."""
    left = [_emptied(here, breathe)]
    """Of each directory on the way and of this one, the directories in it that are still to be removed."""
    try:
        while left[-1] or way:
            if left[-1]:
                name, inner = left[-1][-1], _opened(left[-1][-1], here)
                way.append((name, os.fstat(here)))
                os.close(here)
                here = inner
                left.append(_emptied(here, breathe))
            else:
                above = _above(here, way[-1][1])
                os.close(here)
                here = above
                left.pop()
                os.rmdir(way.pop()[0], dir_fd=here)
                left[-1].pop()
    finally:
        os.close(here)
    directory.rmdir()


def _opened(name: str | Path, folder: int | None) -> int:
    """Its owner may have closed it, which keeps root from nothing."""
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except PermissionError:
        if os.geteuid() == 0:  # something else is wrong; and this follows links
            raise
        os.chmod(name, 0o700, dir_fd=folder)
        return os.open(name, _FOLDER, dir_fd=folder)


def _above(here: int, known: os.stat_result) -> int:
    """Where we came from, unless somebody has moved this directory meanwhile."""
    above = os.open("..", _FOLDER, dir_fd=here)
    if not os.path.samestat(os.fstat(above), known):
        os.close(above)
        raise OSError(errno.ESTALE, "a directory was moved while it was removed")
    return above


def _emptied(folder: int, breathe: Callable[[], None]) -> list[str]:
    """Remove all but directories, whose names are returned."""
    os.fchmod(folder, 0o700)
    found = []
    for number, name in enumerate(os.listdir(folder)):
        if number % BREATH == 0:
            breathe()
        try:
            os.unlink(name, dir_fd=folder)
        except IsADirectoryError:
            found.append(name)
    return found
