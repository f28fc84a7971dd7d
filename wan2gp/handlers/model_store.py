"""The files of models on this disk: LoRAs and weights, each once, for all tasks and all workers that share the place.

Below a shelf's directory each file lies where its URL says. ``.store`` holds what we know of those that we fetched: a
record each, a draft of what is under way, and locks (flock(2), which the kernel drops with their process). What has no
record was put there by hand: it is used, and never counted, changed or removed.

The order that makes a crash harmless: the draft is synced, its record written, then it is renamed into its place. A
file in use is locked, shared, by whoever uses it; it is removed only under the exclusive lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec

from wan2gp.brake import Brake
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.input_cache import SPARE_DISK, Validators, file_digest
from wan2gp.handlers.model_checks import damage, fsync_folder

STORE = ".store"
LOST_S = 3600.0
"""A record that has been half written for so long is nobody's any more."""
POLL_S = 0.1
"""Between two tries to get a lock that another process holds: flock has no time-out."""
_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # NFS locks exclusively only what may be written
_BOOT = Path("/proc/sys/kernel/random/boot_id")
S = TypeVar("S", bound=msgspec.Struct)


class Record(msgspec.Struct, frozen=True):
    """A file that we fetched. The record's own date is that of its last use."""

    place: str
    """Below the shelf."""
    bytes: int
    sha256: str
    mtime_ns: int
    inode: int


class Draft(msgspec.Struct, frozen=True):
    """What is known of a download that is not finished, for whoever goes on with it."""

    place: str
    total: int | None = None
    """Bytes of the whole file, where its server says."""
    validators: Validators = Validators()
    sha256: str | None = None
    """Of the whole file, where its server says."""
    boot: str = ""
    """The life of this machine in which it was begun: a crash of it may leave holes."""


@dataclass(frozen=True)
class Found:
    """A whole file on the shelf."""

    path: Path
    bytes: int
    ours: bool
    """We fetched it."""


class Shelf:
    """One directory of the store. Any thread may use it, and any process."""

    def __init__(self, root: Path, *, budget: int, max_bytes: int, option: str) -> None:
        """``budget``: bytes of all files that we fetched. ``max_bytes``: of one. ``option``: the name of the budget's
        setting, for messages."""
        self.root = root
        self.max_bytes = max_bytes
        self._budget = budget
        self._option = option
        self._store = root / STORE

    def open(self) -> None:
        """Make it where it is missing. Raises :class:`OSError`."""
        self._store.mkdir(parents=True, exist_ok=True, mode=0o755)
        for lost in self._store.glob("*.new"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - lost.stat().st_mtime > LOST_S:
                    lost.unlink()

    # --- locks ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def alone(self, place: PurePosixPath, brake: Brake, waiting: Callable[[int], None]) -> Iterator[None]:
        """Nobody else fetches, checks or removes this file meanwhile. ``waiting`` hears how many bytes another has got.
        Raises what the brake was pulled with."""
        with self._locked(self._named(place, "lock"), brake, lambda: waiting(self._part_bytes(place))):
            yield

    @contextlib.contextmanager
    def _locked(self, path: Path, brake: Brake, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        pulled = threading.Event()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            with brake.stops(pulled.set):
                brake.check()
                while not lock(descriptor, fcntl.LOCK_EX):
                    waiting()
                    pulled.wait(POLL_S)
                    brake.check()
            yield
        finally:
            os.close(descriptor)  # and with it the lock

    # --- what is there; alone with the file ------------------------------------------------------------------------

    def find(self, place: PurePosixPath, *, doubt: bool = False) -> Found | None:
        """The file, if it is whole. One of ours that is not is removed; of one that is not ours a TaskFailure says so.

        ``doubt``: look at every byte; else only where size or date have changed.
        """
        path, record = self.root / place, self._read(self._named(place, "json"), Record)
        try:
            found = path.lstat()
            fault = damage(path, place.name) if path.is_file() and not path.is_symlink() else "is no plain file"
        except FileNotFoundError:
            return None
        if record is not None and fault is None and not self._same(path, record, found, doubt):
            if found.st_ino == record.inode:
                fault = "is not what was fetched"
            else:
                record = None  # somebody has put another one into its place
                self._named(place, "json").unlink(missing_ok=True)
        if fault is None:
            self.used(place)
            self.discard(place)  # of a process that was killed in between
            return Found(path, found.st_size, record is not None)
        if record is None:
            raise TaskFailure(
                "input.corrupt",
                f"{path} {fault}; it was put there by hand: replace it, or remove it so that it is fetched",
                retryable=False,
            )
        self.remove(place)
        return None

    def _same(self, path: Path, record: Record, found: os.stat_result, doubt: bool) -> bool:
        """Whether it still is what was fetched."""
        if found.st_size != record.bytes:
            return False
        untouched = (found.st_mtime_ns, found.st_ino) == (record.mtime_ns, record.inode)
        if untouched and not doubt:
            return True
        if file_digest(path) != record.sha256:
            return False
        if not untouched:  # a copy of the whole store, say
            kept = msgspec.structs.replace(record, mtime_ns=found.st_mtime_ns, inode=found.st_ino)
            self._write(self._named(PurePosixPath(record.place), "json"), kept)
        return True

    def used(self, place: PurePosixPath) -> None:
        """It goes last from now on."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._named(place, "json"))

    def remove(self, place: PurePosixPath) -> None:
        """A file of ours, and what we know of it. Whoever has it open keeps it."""
        (self.root / place).unlink(missing_ok=True)
        self._named(place, "json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self.root / place).parent.rmdir()

    # --- what is under way; alone with the file ----------------------------------------------------------------------

    def part(self, place: PurePosixPath) -> Path:
        """The file that is not finished."""
        return self._named(place, "part")

    def draft(self, place: PurePosixPath) -> Draft | None:
        """What an earlier download has left, if it can be gone on with."""
        draft = self._read(self._named(place, "draft"), Draft)
        if draft is None or not self._part_bytes(place) or (draft.boot != boot_id() and draft.sha256 is None):
            self.discard(place)
            return None
        return draft

    def discard(self, place: PurePosixPath) -> None:
        """Begin anew."""
        self.part(place).unlink(missing_ok=True)
        self._named(place, "draft").unlink(missing_ok=True)

    def begin(self, draft: Draft, brake: Brake) -> None:
        """Note what is known of the download, which counts with its full size from now on, and make room for it.
        Raises TaskFailure when there is none."""
        place = PurePosixPath(draft.place)
        with self._locked(self._store / "budget.lock", brake):
            self._make_room(place, max(draft.total or 0, self._part_bytes(place)))
            self._write(self._named(place, "draft"), draft)

    def keep(self, place: PurePosixPath, sha256: str) -> Found:
        """Its part is whole: put it into its place."""
        part, path = self.part(place), self.root / place
        descriptor = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, 0o644)  # for the engine, which may be of another user
            os.fsync(descriptor)
            found = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        self._enter(path.parent)
        record = Record(str(place), found.st_size, sha256, found.st_mtime_ns, found.st_ino)
        self._write(self._named(place, "json"), record)
        os.rename(part, path)
        fsync_folder(path.parent)
        self._named(place, "draft").unlink(missing_ok=True)
        return Found(path, found.st_size, True)

    def _enter(self, folder: Path) -> None:
        """Make it, passable for the engine's user whatever the umask."""
        for level in reversed([folder, *folder.parents[: len(folder.relative_to(self.root).parts) - 1]]):
            with contextlib.suppress(FileExistsError):
                level.mkdir()
                level.chmod(0o755)

    # --- the budget; alone with the shelf ---------------------------------------------------------------------------

    def _make_room(self, place: PurePosixPath, coming: int) -> None:
        if coming > self._budget:
            raise TaskFailure(
                "input.too_large",
                f"{place.name} has {coming} bytes, and all such files together may have {self._budget} "
                f"({self._option})",
            )
        held = list(self._held(place))
        written = self._part_bytes(place)
        taken = sum(one.bytes for one in held)
        free = shutil.disk_usage(self.root).free - sum(one.bytes - one.written for one in held)
        for one in sorted(held, key=lambda one: one.used_ns):
            if taken + coming <= self._budget and free - (coming - written) >= SPARE_DISK:
                return
            if self._evict(one):
                taken, free = taken - one.bytes, free + one.bytes
        if taken + coming > self._budget:
            raise TaskFailure(
                "worker.disk_full",
                f"no room for {place.name}: of {self._budget} bytes ({self._option}) {taken} are in use now",
            )
        if free - (coming - written) < SPARE_DISK:
            raise TaskFailure(
                "worker.disk_full",
                f"no room for {place.name}, {coming} bytes: {max(0, free) // 1024**2} MiB are free on the disk",
            )

    def _held(self, but: PurePosixPath) -> Iterator[_Held]:
        """All that we have fetched and are fetching, but one."""
        for path in self._store.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.suffix == ".json" and (record := self._read(path, Record)) and record.place != str(but):
                    size = (self.root / record.place).lstat().st_size
                    yield _Held(PurePosixPath(record.place), size, size, path.stat().st_mtime_ns, False)
                elif path.suffix == ".draft" and (draft := self._read(path, Draft)) and draft.place != str(but):
                    place = PurePosixPath(draft.place)
                    written = self._part_bytes(place)
                    yield _Held(place, max(draft.total or 0, written), written, path.stat().st_mtime_ns, True)

    def _evict(self, one: _Held) -> bool:
        """False: somebody uses it, or fetches it now."""
        place = one.place
        guarded = self._named(place, "lock") if one.unfinished else self.root / place
        try:
            descriptor = os.open(guarded, _FILE)
        except OSError:
            return False
        try:
            if not lock(descriptor, fcntl.LOCK_EX):
                return False
            if one.unfinished:
                self.discard(place)
            else:
                self.remove(place)
            return True
        finally:
            os.close(descriptor)

    # --- files -------------------------------------------------------------------------------------------------------

    def _named(self, place: PurePosixPath, what: str) -> Path:
        return self._store / f"{hashlib.sha256(str(place).encode()).hexdigest()[:32]}.{what}"

    def _part_bytes(self, place: PurePosixPath) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self.part(place).lstat().st_size
        return 0

    def _read(self, path: Path, kind: type[S]) -> S | None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode(path.read_bytes(), type=kind)
        return None

    def _write(self, path: Path, content: msgspec.Struct) -> None:
        new = path.with_name(f"{secrets.token_hex(8)}.new")
        try:
            new.write_bytes(msgspec.json.encode(content))
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Held:
    place: PurePosixPath
    bytes: int
    """That it counts for."""
    written: int
    used_ns: int
    unfinished: bool


def lock(descriptor: int, kind: int) -> bool:
    """Whether it is ours now: ``fcntl.LOCK_EX`` or ``LOCK_SH``. Raises TaskFailure where there are no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):
            raise
        raise TaskFailure(
            "input.unplaced",
            f"files cannot be locked where the models are ({error.strerror}): set wan.models_dir to a disk with locks",
            retryable=False,
        ) from error


def boot_id() -> str:
    """Of this life of the machine; empty where it does not say."""
    with contextlib.suppress(OSError):
        return _BOOT.read_text().strip()
    return ""
