"""The files by which a supervisor is found: the data directory's lock, run.json and token, and the sockets' directory.

The order matters. The lock is taken before anything is bound, because binding a live ``ipc://`` path again silently
steals it; `wan2gp-ctl` looks at the lock first, because connecting to a path without a listener succeeds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from wan2gp.config import Config, ConfigError

SOCKET_PATH_MAX_BYTES = 107
"""Longest path of a unix socket on Linux, without the closing zero."""

LOCK_NAME = "supervisor.lock"
TOKEN_NAME = "control.token"
RUN_NAME = "run.json"

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The disk has no space, or none for this user."""

_PROBE_S = 0.25
"""A probe by `wan2gp-ctl` holds a lock for microseconds; a start that meets one must not take it for a supervisor."""


class RunDirError(ConfigError):
    """The directory of the sockets cannot be used."""

    def __init__(self, problem: str) -> None:
        super().__init__([problem])


class DataDirError(ConfigError):
    """The data directory cannot be made or written."""

    def __init__(self, problem: str) -> None:
        super().__init__([problem])


class DataDirBusy(Exception):
    """Another supervisor has the data directory. ``pid`` is its process id, where it is known."""

    def __init__(self, data_dir: Path, pid: int | None) -> None:
        holder = f"the process {pid}" if pid else "another process"
        super().__init__(
            f"the data directory {data_dir} is in use by {holder}: stop that supervisor, or give another --data-dir"
        )
        self.data_dir = data_dir
        self.pid = pid


class LockFile:
    """An exclusive ``flock`` on a file that names its holder; the kernel drops it with the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, path: Path, mode: int = 0o644) -> LockFile | None:
        """The lock, or None when somebody else holds it. Raises ``OSError`` when the file cannot be opened."""
        # 0644: whoever may look at the directory may ask who has it. Close-on-exec: no child keeps the lock alive.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        if not _flock(descriptor, fcntl.LOCK_EX, _PROBE_S):
            os.close(descriptor)
            return None
        if not _is_at(path, descriptor):
            # Its holder removed the file between our opening and its letting go: that lock would guard nothing.
            os.close(descriptor)
            return cls.take(path, mode)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return cls(path, descriptor)

    def release(self) -> None:
        """Let go; the file stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class DataDirLock:
    """The right to be the supervisor of a data directory."""

    def __init__(self, lock: LockFile) -> None:
        self._lock = lock

    @classmethod
    def take(cls, data_dir: Path) -> DataDirLock:
        """Make the directory where needed and lock it. Raises :class:`DataDirBusy` or :class:`DataDirError`, and
        :class:`OSError` as it is when the disk is full, which is no mistake in the configuration."""
        path = data_dir / LOCK_NAME
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            lock = LockFile.take(path)
        except OSError as error:
            if error.errno in FULL:
                raise
            raise DataDirError(f"cannot use the data directory {data_dir}: {error.strerror}") from error
        if lock is None:
            raise DataDirBusy(data_dir, _pid_in(path))
        return cls(lock)

    def release(self) -> None:
        """Give the data directory back."""
        self._lock.release()


@dataclass(frozen=True)
class Holder:
    """The supervisor that has a data directory; ``pid`` is None for the moment before it wrote it down."""

    pid: int | None


def holder_of(data_dir: Path) -> Holder | None:
    """Who supervises ``data_dir`` now, or None. Raises :class:`DataDirError` when that cannot be seen."""
    path = data_dir / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataDirError(f"cannot look at {path}: {error.strerror}") from error
    try:
        free = _flock(descriptor, fcntl.LOCK_SH, 0.0)
        return None if free else Holder(_pid_in(path))
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class RunDir:
    """The private directory of the sockets, and our lock on it (two data directories may name the same one)."""

    path: Path
    lock: LockFile
    group: int | None = None
    """Whose members may pass through it."""

    @classmethod
    def prepare(cls, config: Config, group: int | None = None) -> RunDir:
        """Make or check the directory, 0700 and ours alone; members of ``group`` may pass through it to what is open to
        them there. Raises :class:`RunDirError`."""
        path = config.run_directory()
        for name in ("router", "control"):
            _check_length(path / name)
        try:
            _make_private(path, config.sandbox_uid_base)
            lock = LockFile.take(path / "lock", 0o600)
            if lock is not None:
                _let_pass(path, group)
        except OSError as error:
            raise RunDirError(f"cannot use the run directory {path}: {error.strerror}; {_REMEDY}") from error
        if lock is None:
            raise RunDirError(f"the run directory {path} is in use by another supervisor: {_REMEDY}")
        return cls(path, lock, group)

    @property
    def router(self) -> str:
        """Endpoint for the children."""
        return f"ipc://{self.path}/router"

    @property
    def control(self) -> str:
        """Endpoint for `wan2gp-ctl`."""
        return control_endpoint(self.path)

    def remove(self) -> None:
        """Take the sockets, the lock and the directory away; what somebody else put there stays."""
        for name in ("router", "control", "lock"):
            (self.path / name).unlink(missing_ok=True)
        self.lock.release()
        with suppress(OSError):  # not empty, or a directory that the operator mounted
            self.path.rmdir()


class RunInfo(msgspec.Struct, frozen=True):
    """The contents of ``run.json``: who supervises this data directory, and where its sockets are."""

    pid: int
    start_ticks: int
    """Start of that process in clock ticks since boot: with the pid it names one process for good."""
    run_dir: str
    worker: str
    started_at: str
    """ISO 8601, UTC."""
    version: str
    database: str
    """embedded, postgres, supabase or edge."""


def control_endpoint(run_dir: Path | str) -> str:
    """Endpoint of the control socket in a run directory."""
    return f"ipc://{run_dir}/control"


def write_run(data_dir: Path, info: RunInfo) -> None:
    """Replace ``run.json`` whole: a reader sees the old or the new one."""
    _replace(data_dir / RUN_NAME, msgspec.json.format(msgspec.json.encode(info)) + b"\n", 0o644)


def read_run(data_dir: Path) -> RunInfo | None:
    """``run.json``, or None when there is none or it is not one of ours."""
    try:
        return msgspec.json.decode((data_dir / RUN_NAME).read_bytes(), type=RunInfo)
    except (OSError, msgspec.DecodeError):
        return None


def remove_run(data_dir: Path) -> None:
    """Forget the run: it ended in order."""
    (data_dir / RUN_NAME).unlink(missing_ok=True)
    (data_dir / TOKEN_NAME).unlink(missing_ok=True)


def create_token(data_dir: Path) -> str:
    """A fresh token of 256 bits in a file that only its owner can read; each life of a supervisor has its own."""
    token = secrets.token_hex(32)
    _replace(data_dir / TOKEN_NAME, token.encode(), 0o600)
    return token


def read_token(data_dir: Path) -> str:
    """The running supervisor's token. Raises ``OSError``: not there, or not ours to read."""
    return (data_dir / TOKEN_NAME).read_text().strip()


_REMEDY = "set WAN2GP_RUN_DIR to a directory of your own with a short path"


def _check_length(socket_path: Path) -> None:
    size = len(os.fsencode(socket_path))
    if size > SOCKET_PATH_MAX_BYTES:
        raise RunDirError(
            f"the socket path {socket_path} has {size} bytes, Linux allows {SOCKET_PATH_MAX_BYTES}: {_REMEDY}"
        )


def _make_private(path: Path, group: int) -> None:
    """``group``: the one that an earlier life may have let pass."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    # lstat: in a shared temp folder somebody else may have put a link or a directory of theirs under our name.
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) or not stat.S_ISDIR(found.st_mode):
        raise RunDirError(f"the run directory {path} is not a directory but a link or a file: remove it, or {_REMEDY}")
    if found.st_uid != os.geteuid():
        raise RunDirError(f"the run directory {path} belongs to the user id {found.st_uid}: {_REMEDY}")
    if found.st_mode & 0o077 and not (found.st_mode & 0o077 == 0o010 and group and found.st_gid == group):
        # Never mended by ourselves: a mistaken WAN2GP_RUN_DIR=/tmp would lock everybody else out of it.
        raise RunDirError(f"the run directory {path} is open to others: chmod 700 it, or {_REMEDY}")


def _let_pass(path: Path, group: int | None) -> None:
    os.chown(path, -1, os.getegid() if group is None else group)
    path.chmod(0o700 if group is None else 0o710)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _flock(descriptor: int, operation: int, patience_s: float) -> bool:
    """True when locked; tries for ``patience_s`` seconds, in which a passing probe ends."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)


def _pid_in(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _replace(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
