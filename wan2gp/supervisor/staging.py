"""From a handler's work directory into the spool: every file is distrusted and checked.

A handler may be hostile: its artifact may be a link, a device, a name with ``..``, a file that is not what it said.
Files are first taken into the spool (no component is followed as a link), then checked there by size and sha256. Its
maker may be alive and have one open yet: then the spool gets a copy, so that what was checked is what is shown.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import signal
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from wan2gp.protocol import Artifact
from wan2gp.supervisor.spool import Ending

CHUNK_BYTES = 1024 * 1024
NAME_MAX_BYTES = 180
SUFFIX_MAX_BYTES = 20
HOLLOW_BYTES, HOLLOW_TIMES = 16 * 1024 * 1024, 16
"""A larger file that has so many times its blocks is holes: terabytes of zeros, which cost nobody but their reader."""
_ACCESS_LISTS = frozenset({"system.posix_acl_access", "system.nfs4_acl", "system.cifs_acl", "system.richacl"})
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HANDLERS_FAULT = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO, errno.EACCES, errno.EPERM}
)
"""What the place that a handler named can do wrong; any other error is the disk's."""
_DISKS_FAULT = frozenset({errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE})
"""Why a file that was taken may not open, without being at fault itself."""


class Refused(Exception):
    """An artifact is not a regular file of the promised content inside the task's directory."""


def places(ending: Ending, folder: Path) -> list[Path]:
    """Where each artifact of ``ending`` is in its folder of the spool, once it was taken."""
    return [folder / f"{number}-{safe_name(made.name)}" for number, made in enumerate(ending.artifacts)]


def take(ending: Ending, artifact: Artifact, path: Path) -> None:
    """Move an artifact to ``path`` unless it is there already. Raises :class:`Refused`, and :class:`OSError` for the
    disk's faults."""
    if not os.path.lexists(path):
        _take(Path(ending.work_dir), artifact.path, path)


def check(path: Path, artifact: Artifact, mode: int) -> None:
    """Raise :class:`Refused` unless ``path`` is the file that its handler promised; it gets ``mode`` and is flushed."""
    try:
        descriptor = os.open(path, _FILE)
    except OSError as error:  # ELOOP: a link; ENXIO: a socket
        if error.errno in _DISKS_FAULT:
            raise
        raise Refused(f"{artifact.name} is not a plain file: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise Refused(f"{artifact.name} is not a plain file of its own")
        if found.st_size != artifact.bytes:
            raise Refused(f"{artifact.name} is not the file that its handler checked")
        if _is_hollow(descriptor, found):
            raise Refused(f"{artifact.name} is mostly holes: {found.st_size} bytes with little in them")
        if not _made_ours(descriptor, found, mode) or not _is_ours_alone(descriptor):
            own = _copied(descriptor, path, artifact.bytes, mode)
            os.close(descriptor)
            descriptor = own
        if os.fstat(descriptor).st_size != artifact.bytes or _digest(descriptor) != artifact.sha256:
            raise Refused(f"{artifact.name} is not the file that its handler checked")
        os.fsync(descriptor)  # the row may say Complete only of what survives a power cut
    finally:
        os.close(descriptor)


def _is_hollow(descriptor: int, found: os.stat_result) -> bool:
    """Compressing file systems have fewer blocks too, of what can be compressed; some tell of none at all."""
    if found.st_size <= HOLLOW_BYTES or found.st_blocks * 512 * HOLLOW_TIMES >= found.st_size:
        return False
    if found.st_blocks:
        return True
    try:
        os.lseek(descriptor, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == errno.ENXIO
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)
    return False


def _made_ours(descriptor: int, found: os.stat_result, mode: int) -> bool:
    """No other user may open it for writing any more, by its owner, its mode or its access list, and its bits give
    nobody another user's rights. False where the file system refuses that: then a copy is ours."""
    try:
        if found.st_uid != os.geteuid():
            os.fchown(descriptor, os.geteuid(), os.getegid())
        for name in _ACCESS_LISTS.intersection(_attributes(descriptor)):
            os.removexattr(descriptor, name)
        os.fchmod(descriptor, mode)
        now = os.fstat(descriptor)
    except OSError as error:
        if error.errno in _DISKS_FAULT:
            raise
        return False
    return now.st_uid == os.geteuid() and not stat.S_IMODE(now.st_mode) & ~mode


def _attributes(descriptor: int) -> list[str]:
    try:
        return os.listxattr(descriptor)
    except OSError:  # a file system without any
        return []


def _is_ours_alone(descriptor: int) -> bool:
    """Whether nobody has it open, or mapped, for writing: only then is there a read lease on it to be had. Where the
    file system has no leases nobody knows. Source: "Leases" in fcntl(2)."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # what is ignored, should somebody open it just now
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def _copied(descriptor: int, path: Path, size: int, mode: int) -> int:
    """A file of our own in its place, open: at most ``size`` bytes of it, and one more that shows that it has more."""
    fresh = path.with_name(f".{path.name}.part")
    fresh.unlink(missing_ok=True)
    with open(descriptor, "rb", closefd=False) as source, fresh.open("xb") as sink:
        left = size + 1
        while left and (chunk := source.read(min(CHUNK_BYTES, left))):
            left -= sink.write(chunk)
        os.fchmod(sink.fileno(), mode)
    fresh.rename(path)
    return os.open(path, _FILE)


def safe_name(name: str) -> str:
    """One harmless path component, at most 180 bytes, with its suffix kept."""
    last = re.sub(r"[^\w.\- ()\[\]+=@,]", "_", PurePosixPath(name.replace("\\", "/")).name).strip(" .") or "output"
    stem, suffix = os.path.splitext(last)
    suffix = suffix if len(suffix.encode()) <= SUFFIX_MAX_BYTES else ""
    return stem.encode()[: NAME_MAX_BYTES - len(suffix.encode())].decode(errors="ignore") + suffix


def move(source: Path, target: Path) -> None:
    """Rename, or copy durably and delete where the two are on different file systems."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        fresh = target.with_name(f".{target.name}.part")
        shutil.copyfile(source, fresh, follow_symlinks=False)
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.rename(target)
        source.unlink()


def _take(root: Path, relative: str, target: Path) -> None:
    """Move ``root/relative`` to ``target`` without following a link in any component."""
    parts = PurePosixPath(relative).parts
    if not parts or ".." in parts or PurePosixPath(relative).is_absolute() or not _speakable(relative):
        raise Refused(f"{relative!r} is not a place inside the task's directory")
    above, places_ = _anchored(root)
    try:
        folder = _open_folder(above, (*places_, *parts[:-1]))
    except OSError as error:
        raise _judged(relative, error) from error
    try:
        _carry(folder, parts[-1], target)
    except OSError as error:
        raise _judged(relative, error) from error
    finally:
        os.close(folder)


def _carry(folder: int, name: str, target: Path) -> None:
    """Rename out of an open folder; where that leads to another file system, copy and delete."""
    _check_kind(name, os.stat(name, dir_fd=folder, follow_symlinks=False))
    try:
        os.rename(name, target, src_dir_fd=folder)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    descriptor = os.open(name, _FILE, dir_fd=folder)
    try:
        found = os.fstat(descriptor)
        _check_kind(name, found)
        if _is_hollow(descriptor, found):
            raise Refused(f"{name} is mostly holes: {found.st_size} bytes with little in them")
        os.close(_copied(descriptor, target, found.st_size, 0o600))
    finally:
        os.close(descriptor)
    os.unlink(name, dir_fd=folder)


def _check_kind(name: str, found: os.stat_result) -> None:
    """Before anything is done with it: a folder would bring what is in it along, a file with another name is somebody
    else's too."""
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"{name} is not a plain file")
    if found.st_nlink != 1:
        raise Refused(f"{name} is not a plain file of its own")


def _anchored(root: Path) -> tuple[Path, tuple[str, ...]]:
    """The last folder on the way that no handler may exchange, and what is below it: a handler's, a task's, a run's."""
    known = root.parents[min(2, len(root.parents) - 1)]
    return known, root.relative_to(known).parts


def _open_folder(root: Path, parts: Sequence[str]) -> int:
    """The descriptor of a folder below ``root``; no component may be a link."""
    folder = os.open(root, _FOLDER)
    for part in parts:
        try:
            inner = os.open(part, _FOLDER, dir_fd=folder)
        finally:
            os.close(folder)
        folder = inner
    return folder


def _speakable(name: str) -> bool:
    """True when the kernel can be asked for it."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def _judged(relative: str, error: OSError) -> Exception:
    """The handler's fault, or the disk's, which may pass."""
    if error.errno in _HANDLERS_FAULT:
        return Refused(f"{relative!r} cannot be taken: {error.strerror}")
    return error


def holds(path: Path, artifact: Artifact) -> bool:
    """True when ``path`` is the very file that the artifact describes."""
    try:
        descriptor = os.open(path, _FILE)
    except OSError:
        return False
    try:
        found = os.fstat(descriptor)
        same = stat.S_ISREG(found.st_mode) and found.st_size == artifact.bytes
        return same and _digest(descriptor) == artifact.sha256
    finally:
        os.close(descriptor)


def _digest(descriptor: int) -> str:
    digest = hashlib.sha256()
    while chunk := os.read(descriptor, CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def umask() -> int:
    """The operator's umask: it decides who may read the outputs."""
    current = os.umask(0o077)
    os.umask(current)
    return current
