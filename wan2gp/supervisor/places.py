"""The directories of handlers and their tasks, and the way of an input from the courier to its task.

Below the data directory: ``handlers/<name>`` is a handler's own, ``work/<name>/<task>/<lease>`` one run's. Handlers
write there, so nothing below is trusted: every component is opened without following links, and a file is looked at
only where its maker cannot exchange it any more.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from wan2gp.supervisor.emptying import discard
from wan2gp.supervisor.users import RESERVED, User

WORK, HANDLERS = "work", "handlers"
PARTS = ("home", "cache", "tmp")
"""In a handler's own directory."""
ENGINE = "engine"
"""There too, where its engine works; made by the handler."""
DEEPEST = 64
"""Directories below one another that are given to another owner; no handler of ours makes as many."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class NotHanded(Exception):
    """The courier named something that is no file of its own."""


class Places:
    """Used from the loop's thread."""

    def __init__(self, data_dir: Path, uid_base: int) -> None:
        self._data_dir = data_dir
        self._ours = range(uid_base, uid_base + RESERVED) if uid_base else range(0)
        self._errands = itertools.count(1)

    def home(self, name: str) -> Path:
        """The handler's own directory, which outlives its process."""
        return self._data_dir / HANDLERS / name

    def work(self, name: str) -> Path:
        """What holds the directories of its tasks."""
        return self._data_dir / WORK / name

    def run(self, name: str, task_id: str, lease_id: str) -> str:
        """Where one run of a task works."""
        return str(self.work(name) / task_id / lease_id[:16])

    def errand(self, courier: str, task_id: str) -> Path:
        """Where the courier puts the files of one errand: a fresh place each time, since one that was replaced may
        still write into its own."""
        return self.work(courier) / task_id / f"in-{next(self._errands)}"

    # -- making them -------------------------------------------------------------------------------------------------

    def prepare(self, name: str, user: User | None) -> None:
        """Before a handler's process starts. Raises :class:`OSError`."""
        for above in (HANDLERS, WORK):
            _make_passable(self._data_dir / above, user)
        _make_passable(self.work(name), user)
        home = self.home(name)
        with contextlib.suppress(FileExistsError):
            home.mkdir(mode=0o700)
            _give_path(home, user)
        _clear_way(home, user)
        self._give_home(home, user)

    def prepare_shelves(self, folders: Iterable[str], user: User | None) -> None:
        """Before the courier starts: where it keeps files for all tasks. What is in it may be from a life under another
        id, and files that an operator put there stay the operator's. A place that cannot be made is found to be none
        when something is to be kept: until then everything else goes on."""
        for folder in map(Path, folders):
            with contextlib.suppress(OSError):
                _make_passable(folder.parent, user)
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    folder.chmod(0o755)  # whatever the umask: engines read there
                if user is not None and os.geteuid() == 0:
                    self._give_shelf(folder, user)

    def _give_shelf(self, shelf: Path, user: User) -> None:
        for where, folders, files, folder in os.fwalk(shelf, follow_symlinks=False):
            if len(Path(where).relative_to(shelf).parts) > DEEPEST:
                folders.clear()
            if os.fstat(folder).st_uid in (user.uid, os.geteuid()) or os.fstat(folder).st_uid in self._ours:
                os.fchown(folder, user.uid, user.gid)
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(name, dir_fd=folder, follow_symlinks=False).st_uid in self._ours:
                        self._give(name, folder, user.uid, user.gid)

    def _give_home(self, home: Path, user: User | None) -> None:
        """What is in it may be from a life under another id."""
        uid, gid = (os.geteuid(), os.getegid()) if user is None else (user.uid, user.gid)
        if os.geteuid() != 0 or home.lstat().st_uid == uid:
            return
        for _, folders, files, folder in os.fwalk(home, follow_symlinks=False):
            if _depth(folder) > DEEPEST:
                folders.clear()
            for part in (*folders, *files):
                with contextlib.suppress(FileNotFoundError):
                    self._give(part, folder, uid, gid)
            os.fchown(folder, uid, gid)

    def _give(self, name: str, folder: int, uid: int, gid: int) -> None:
        """A file with a second name may be somebody else's, unless it was a handler's or ours before."""
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1 and found.st_uid not in self._ours:
            return
        os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)

    def make_run(self, work_dir: str | Path, user: User | None) -> None:
        """A run's directory, or an errand's: the last part belongs to the handler. Raises :class:`OSError`."""
        with self._folder(work_dir, user) as folder:
            _give_folder(folder, user)

    @contextlib.contextmanager
    def _folder(self, work_dir: str | Path, user: User | None, *, make: bool = True) -> Iterator[int]:
        """The open directory; those on the way are ours, and made where they are missing."""
        parts = Path(work_dir).relative_to(self._data_dir).parts
        folder = os.open(self._data_dir, _FOLDER & ~os.O_NOFOLLOW)
        try:
            for depth, part in enumerate(parts):
                mode = 0o700 if user is None or depth == len(parts) - 1 else 0o711
                inner = _entered(folder, part, mode if make else None, follow=depth == 0)
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)

    # -- from the courier to a task ----------------------------------------------------------------------------------

    def hand_over(
        self, files: Mapping[str, str], errand: Path, work_dir: str, takers: tuple[User | None, User | None]
    ) -> dict[str, str]:
        """Move what the courier has fetched into the task's directory; returns where it is now, by the same names.

        ``takers``: the courier's user and the handler's. Raises :class:`NotHanded`, and :class:`OSError`.
        """
        courier, user = takers
        target = Path(work_dir) / errand.name
        with self._folder(errand, None, make=False) as source, self._folder(work_dir, user) as run:
            if user is not None:
                _give_folder(run, user)
            os.mkdir(errand.name, 0o700, dir_fd=run)
            inner = os.open(errand.name, _FOLDER, dir_fd=run)
            try:
                if os.fstat(inner).st_uid != os.geteuid():
                    raise NotHanded(f"{target} is not the directory that was made for the inputs")
                for path in dict.fromkeys(files.values()):
                    self._move(path, errand, source, inner)
                    _hand(Path(path).name, inner, courier, user)
                _give_folder(inner, user)
            finally:
                os.close(inner)
        return {name: str(target / Path(path).name) for name, path in files.items()}

    def kept(self, path: str, shelf: Path) -> str:
        """The path of a file that stays where the courier keeps it: a plain one, really below ``shelf``. Raises
        :class:`NotHanded`."""
        try:
            parts = Path(path).relative_to(shelf).parts
        except ValueError as error:
            raise NotHanded("it names a file outside of where it keeps them") from error
        if not parts or ".." in parts or len(parts) > DEEPEST:
            raise NotHanded("it names a file outside of where it keeps them")
        folder = os.open(shelf, _FOLDER & ~os.O_NOFOLLOW)
        try:
            for part in parts[:-1]:
                inner = os.open(part, _FOLDER, dir_fd=folder)
                os.close(folder)
                folder = inner
            if not stat.S_ISREG(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode):
                raise NotHanded("it names what is no plain file")
        except OSError as error:
            raise NotHanded(f"it names a file that cannot be had: {error.strerror}") from error
        finally:
            os.close(folder)
        return path

    def _move(self, path: str, errand: Path, source: int, target: int) -> None:
        place = Path(path)
        if place.parent != errand or place.name in ("", ".", ".."):
            raise NotHanded("it names a file outside of the directory that it was given")
        try:
            os.rename(place.name, place.name, src_dir_fd=source, dst_dir_fd=target)
        except FileNotFoundError as error:
            raise NotHanded("it names a file that is not there") from error


def clear_but(folder: Path, needed: frozenset[Path], aside: Path) -> None:
    """Remove what is in ``folder`` but what is needed, and the directories that are left empty. What is large goes into
    ``aside``, to be removed later."""
    with contextlib.suppress(OSError):
        for part in list(folder.iterdir()):
            if part in needed:
                continue
            if any(part in place.parents for place in needed) and not part.is_symlink():
                clear_but(part, needed, aside)
            elif part.is_symlink() or not part.is_dir():
                part.unlink()
            else:
                discard(part, aside)


def _hand(name: str, folder: int, courier: User | None, user: User | None) -> None:
    """Let the handler read it. One that the courier keeps under another name stays the courier's, so that what it
    gives to the next task cannot be written to."""
    try:
        descriptor = os.open(name, _FILE, dir_fd=folder)
    except OSError as error:  # ELOOP: a link; ENXIO: a socket
        raise NotHanded(f"it hands over what is no plain file: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        owner, taker = _owner(courier), _owner(user)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (owner, os.geteuid()):
            raise NotHanded("it hands over what is no plain file of its own")
        if found.st_uid == taker:
            return
        if found.st_nlink == 1:
            os.fchown(descriptor, taker, -1 if user is None else user.gid)
        else:
            os.fchmod(descriptor, 0o644)
    finally:
        os.close(descriptor)


def _owner(user: User | None) -> int:
    return os.geteuid() if user is None else user.uid


def _make_passable(folder: Path, user: User | None) -> None:
    """A directory of ours on the way to a handler's."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    if user is not None:
        found = folder.stat()
        if found.st_mode & 0o111 != 0o111:
            folder.chmod(stat.S_IMODE(found.st_mode) | 0o111)


def _entered(folder: int, name: str, mode: int | None, *, follow: bool) -> int:
    """The directory ``name`` in ``folder``, open; made with ``mode`` where it is missing, unless that is None.
    ``follow``: it may be a link, since no handler can lay one there; the operator may have, to another disk."""
    made = False
    if mode is not None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=folder)
            made = True
    inner = os.open(name, _FOLDER & ~os.O_NOFOLLOW if follow else _FOLDER, dir_fd=folder)
    if made and mode is not None and os.fstat(inner).st_uid == os.geteuid():
        os.fchmod(inner, mode)  # whatever the umask
    return inner


def _clear_way(home: Path, user: User | None) -> None:
    """The parts of a handler's own directory are there, as directories: what it laid in their place, so that no later
    life of it could start, is removed."""
    folder = os.open(home, _FOLDER)
    try:
        for part in (*PARTS, ENGINE):
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode):
                    os.unlink(part, dir_fd=folder)
        for part in PARTS:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=folder)
                if user is not None:
                    os.chown(part, user.uid, user.gid, dir_fd=folder, follow_symlinks=False)
    finally:
        os.close(folder)


def _give_path(folder: Path, user: User | None) -> None:
    """A directory that was just made, where nobody else can write."""
    if user is not None:
        os.chown(folder, user.uid, user.gid, follow_symlinks=False)


def _give_folder(folder: int, user: User | None) -> None:
    os.fchmod(folder, 0o700)
    if user is not None:
        os.fchown(folder, user.uid, user.gid)


def _depth(folder: int) -> int:
    return os.readlink(f"/proc/self/fd/{folder}").count("/")
