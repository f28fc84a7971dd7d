"""Becomes a program under another identity that dies with its parent. Run by file name, imports nothing of ours.

``python -I -S embedded_launch.py PARENT_PID IDENTITY check PATH...`` exits 0 when each PATH (a directory or a program)
can be entered or executed under that identity; ``... run PROGRAM ARG...`` becomes that program. IDENTITY is ``plain``,
``namespace:UID:GID`` (a user namespace in which we look like UID while all files stay ours), ``user:UID:GID``, or
``reaching:UID:GID`` (that user, to whom no file's mode is an obstacle).

The death signal is set last: any change of credentials clears it, and it fires when the *thread* that started us ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

REFUSED = 96
"""Exit code when the identity cannot be taken or a path is out of its reach; standard error says why."""
_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP = 28, 1 << 2
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> None:
    parent, identity, verb, *rest = arguments
    try:
        _become(identity)
    except OSError as error:
        sys.exit(_refuse(f"cannot take the identity {identity}: {error.strerror}"))
    if verb == "check":
        unreachable = [path for path in rest if not os.access(path, os.X_OK)]
        sys.exit(_refuse("out of reach: " + ", ".join(unreachable)) if unreachable else 0)
    os.umask(0o077)
    os.chdir("/")
    _die_with(int(parent))
    try:
        os.execv(rest[0], rest)
    except OSError as error:
        sys.exit(_refuse(f"cannot run {rest[0]}: {error.strerror}"))


def _refuse(reason: str) -> int:
    sys.stderr.write(reason + "\n")
    return REFUSED


def _become(identity: str) -> None:
    kind, *ids = identity.split(":")
    if kind in ("user", "reaching"):
        uid, gid = map(int, ids)
        if kind == "reaching":
            # Else access(2), by which initdb looks for its programs, would answer as if no right were kept.
            _check(_libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if kind == "reaching":
            _keep_only(_CAP_DAC_OVERRIDE)
    elif kind == "namespace":
        uid, gid = map(int, ids)
        _enter_namespace(uid, gid)


def _enter_namespace(uid: int, gid: int) -> None:
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(_CLONE_NEWUSER))
    _write("/proc/self/setgroups", "deny")  # the kernel wants this before an unprivileged gid_map
    _write("/proc/self/uid_map", f"{uid} {outer_uid} 1")
    _write("/proc/self/gid_map", f"{gid} {outer_gid} 1")


def _keep_only(capability: int) -> None:
    """Of all rights this one alone, also across exec: ambient, so that the programs need no mark of their own."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    one = 1 << capability
    sets = (ctypes.c_uint32 * 6)(one, one, one, 0, 0, 0)  # effective, permitted, inheritable; low words, high words
    _check(_libc.capset(header, sets))
    _check(_libc.prctl(_PR_CAP_AMBIENT, *map(ctypes.c_ulong, (_PR_CAP_AMBIENT_RAISE, capability, 0, 0))))


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _die_with(parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0)
    if os.getppid() != parent:  # it died before the signal was armed
        sys.exit(_refuse("the parent is gone"))


if __name__ == "__main__":
    main(sys.argv[1:])
