"""What a process is before any path or port: its user, its capabilities, its limits.

Source: prctl(2), capabilities(7), credentials(7), setrlimit(2), proc_pid_oom_score_adj(5).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
from collections.abc import Callable

from wan2gp.profile import Profile
from wan2gp.sandbox.kernel import failure, libc, prctl

PR_SET_NO_NEW_PRIVS = 38
PR_CAPBSET_READ, PR_CAPBSET_DROP = 23, 24
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_OOM_SCORE_ADJ = 500
"""When memory runs out the kernel ends a handler before the supervisor and the database."""

_Words = ctypes.c_uint32 * 6
"""Effective, permitted and inheritable of capabilities 0 to 31, then the same of the others."""


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def set_limits(profile: Profile) -> None:
    """Open files, file size and core dumps. Limits that are lower already stay. Raises :class:`OSError`,
    :class:`ValueError`."""
    os.umask(0o077)
    _limit(resource.RLIMIT_NOFILE, profile.open_files)
    _limit(resource.RLIMIT_FSIZE, profile.file_bytes)
    _limit(resource.RLIMIT_CORE, 0)


def limit_processes(profile: Profile) -> None:
    """Of this user id, whoever started them. Raises :class:`OSError`, :class:`ValueError`."""
    _limit(resource.RLIMIT_NPROC, profile.processes)


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def die_first() -> None:
    """Be the kernel's first choice when memory runs out; a value that is higher already stays."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+") as file:
        if int(file.read()) < _OOM_SCORE_ADJ:
            file.seek(0)
            file.write(str(_OOM_SCORE_ADJ))


def become(uid: int, gid: int, groups: tuple[int, ...]) -> None:
    """Take another user's id, for good. Raises :class:`OSError`, also when the kernel said yes and did not do it."""
    steps: tuple[tuple[Callable[..., None], tuple[object, ...]], ...] = (
        (os.setgroups, (groups,)),
        (os.setresgid, (gid, gid, gid)),
        (os.setresuid, (uid, uid, uid)),
    )
    for call, arguments in steps:
        try:
            call(*arguments)
        except OSError as error:
            raise OSError(error.errno, f"{call.__name__} to {uid}: {error.strerror}") from None
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise OSError(errno.EINVAL, f"the kernel did not take the user id {uid}")


def no_new_privileges() -> None:
    """Set-user-ID programs and file capabilities give nothing any more. Raises :class:`OSError`."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def shrink_bounds() -> None:
    """Take every capability out of the bounding set, as far as that is allowed: a process that may not do it has none
    that no_new_privs would not keep it from getting back."""
    with contextlib.suppress(OSError):
        capability = 0
        while prctl(PR_CAPBSET_READ, capability) >= 0:  # EINVAL behind the last one
            prctl(PR_CAPBSET_DROP, capability)
            capability += 1


def drop_capabilities() -> None:
    """Give up all, also as uid 0. Raises :class:`OSError`."""
    with contextlib.suppress(OSError):  # a kernel without ambient ones
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    if libc.capset(ctypes.byref(header), _Words()) != 0:
        raise failure("capset")
