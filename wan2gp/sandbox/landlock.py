"""Landlock: which paths and TCP ports a process and all below it may use, and whom they may signal.

Source: ``linux/landlock.h`` and Documentation/userspace-api/landlock.rst. What is handled depends on the kernel's ABI
(1: Linux 5.13, 2: 5.19 renames between directories, 3: 6.2 truncation, 4: 6.7 TCP, 5: 6.10 ioctl of devices, 6: 6.12
scopes). What is not handled is not restricted, by any rule.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable

from wan2gp.sandbox.kernel import LANDLOCK_ADD_RULE, LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF, syscall

_ASK_VERSION = 1
_PATH_BENEATH, _NET_PORT = 1, 2

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE = 1 << 4, 1 << 5
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1 << 0, 1 << 1

READ = EXECUTE | READ_FILE | READ_DIR
WRITE = (
    READ
    | (WRITE_FILE | TRUNCATE | REFER | REMOVE_DIR | REMOVE_FILE)
    | (MAKE_DIR | MAKE_REG | MAKE_SYM | MAKE_SOCK | MAKE_FIFO)
)
"""Device nodes are made nowhere."""
DEVICE = READ_FILE | WRITE_FILE | READ_DIR | TRUNCATE | IOCTL_DEV
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""What a rule for something that is no directory may grant; the kernel refuses a rule that says more."""

TCP_SINCE, SCOPE_SINCE, TRUNCATE_SINCE, MOVES_SINCE = 4, 6, 3, 2
"""The ABI that brought each. Before the last no rule can allow to move or link a file into another directory."""


class _Attributes(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("access", ctypes.c_uint64), ("parent", ctypes.c_int32)]


class _NetPort(ctypes.Structure):
    _fields_ = [("access", ctypes.c_uint64), ("port", ctypes.c_uint64)]


def abi() -> int:
    """The kernel's version of Landlock. Raises :class:`OSError`: ENOSYS when it was built without, EOPNOTSUPP when it
    was started without (``lsm=``), EPERM when a container's filter forbids to ask."""
    return syscall(LANDLOCK_CREATE_RULESET, None, 0, _ASK_VERSION)


def file_rights(version: int) -> int:
    """All rights on files that this ABI knows."""
    bits = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    return (1 << bits) - 1


class Ruleset:
    """What will be allowed. Made before the fork, by whoever can still open the paths; enforced in the child.

    Raises :class:`OSError` when the kernel takes no ruleset.
    """

    def __init__(self, version: int, *, tcp: bool) -> None:
        self._files = file_rights(version)
        net = BIND_TCP | CONNECT_TCP if tcp and version >= TCP_SINCE else 0
        scoped = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL if version >= SCOPE_SINCE else 0
        attributes = _Attributes(self._files, net, scoped)
        self._descriptor = syscall(LANDLOCK_CREATE_RULESET, ctypes.byref(attributes), _size(version), 0)
        self.refused: list[str] = []
        """Paths that the kernel takes no rule for, in a sentence each."""

    def allow(self, paths: Iterable[str], rights: int, *, follow: bool = True) -> list[str]:
        """Grant ``rights`` on each path, and below it when it is a directory. Those that there are not, or that are
        closed to us, are left out. So are, unless ``follow``, those that are or pass a link: they are returned."""
        return [path for path in paths if not self._allow(path, rights, follow)]

    def _allow(self, path: str, rights: int, follow: bool) -> bool:
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
        except (OSError, ValueError):
            return True
        try:
            # Asked of what is open, so that nobody can lay a link between the look and the rule. openat2(2) would
            # refuse it at once, but containers' filters do not know it.
            mode = os.fstat(opened).st_mode
            if not follow and (stat.S_ISLNK(mode) or os.readlink(f"/proc/self/fd/{opened}") != path):
                return False
            if not stat.S_ISDIR(mode):
                rights &= _OF_FILES
            rule = _PathBeneath(rights & self._files, opened)
            syscall(LANDLOCK_ADD_RULE, self._descriptor, _PATH_BENEATH, ctypes.byref(rule), 0)
        except OSError as error:  # EBADFD: of a file system that no path leads to, as name spaces' files are
            self.refused.append(f"{path} is not granted: {error.strerror}")
        finally:
            os.close(opened)
        return True

    def allow_ports(self, ports: Iterable[int]) -> None:
        """Let these TCP ports be bound and connected to, at any address."""
        for port in ports:
            rule = _NetPort(BIND_TCP | CONNECT_TCP, port)
            syscall(LANDLOCK_ADD_RULE, self._descriptor, _NET_PORT, ctypes.byref(rule), 0)

    def enforce(self) -> None:
        """From now on, for this thread and all that it starts. Needs no_new_privs. Raises :class:`OSError`."""
        syscall(LANDLOCK_RESTRICT_SELF, self._descriptor, 0)

    def close(self) -> None:
        os.close(self._descriptor)


def _size(version: int) -> int:
    """How many bytes of the attributes this kernel knows."""
    return 8 * (1 + (version >= TCP_SINCE) + (version >= SCOPE_SINCE))
