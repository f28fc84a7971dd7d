"""The filter of system calls: kinds of socket that nothing else restricts, and the parts of the kernel that no engine
needs and attacks on it begin with.

It looks at numbers and plain arguments alone, never at what pointers lead to. Source: seccomp(2), and
Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from dataclasses import dataclass

from wan2gp.sandbox import bpf
from wan2gp.sandbox.bpf import ALLOW, Block, refuse, when, when_any_bit
from wan2gp.sandbox.kernel import MACHINE, SECCOMP, syscall
from wan2gp.sandbox.syscalls import NUMBERS

FORBIDDEN = (
    # Other views of the file system, which paths that Landlock knows do not cover.
    *("mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "open_tree_attr", "fsopen", "fsconfig"),
    *("fsmount", "fspick", "mount_setattr", "setns", "open_by_handle_at", "fanotify_init", "swapon", "swapoff"),
    *("quotactl", "quotactl_fd", "acct", "sysfs", "lookup_dcookie", "nfsservctl", "uselib"),
    # Other processes' memory, descriptors and pages.
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "move_pages", "migrate_pages"),
    # Memory, queues and semaphores that outlive their maker, belong to no process and have no path.
    *("shmget", "shmat", "shmctl", "msgget", "msgsnd", "msgrcv", "msgctl", "semget", "semop", "semtimedop", "semctl"),
    # Parts of the kernel with a history of holes.
    *("keyctl", "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd", "modify_ldt", "vhangup"),
    # The machine itself.
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "create_module", "reboot"),
    *("settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname", "syslog"),
    *("iopl", "ioperm"),
)
"""Fail with EPERM."""
ABSENT = ("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3")
"""Fail with ENOSYS, upon which programs take the older call: this filter cannot see what these would do."""
OWNERS_CALLS = (
    *("chown", "lchown", "fchown", "fchownat"),
    *("setxattr", "lsetxattr", "fsetxattr", "setxattrat", "removexattr", "lremovexattr", "fremovexattr"),
    *("removexattrat", "file_setattr"),
)
"""What the owner of a file may do wherever it lies, since Landlock does not see it. Under the supervisor's own user id
they do nothing and say that all went well: copies of files, archives and package managers end at any other answer.
Times are not among them: what builds and keeps caches cannot do without, and nothing here believes those of a file that
a handler may not write."""
MODE_CALLS = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2}
"""The same, by where the mode stands. That of a program which nobody else may use is let through, since linkers and
installers make programs: it closes nothing to its owner, as one without ``x`` would a directory, and opens nothing."""
SCHEDULING_CALLS = ("sched_setscheduler", "sched_setparam", "sched_setattr")
"""For whoever is named first; 0 is the caller. For others they do nothing under the supervisor's user id, as above.
``sched_setaffinity`` is not among them: threads are bound to processors by their numbers, which a filter does not know
from those of other processes (``pthread_setaffinity_np``, for OpenMP and CUDA)."""

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""``AUDIT_ARCH_*``, of ``linux/audit.h``."""
_X32 = 0x40000000
"""A third kind of call that x86_64 kernels may know, with numbers of its own."""

_NEW_NAMESPACES = 0x7E020000
"""``CLONE_NEW*`` but NEWTIME, of ``linux/sched.h``: mount, cgroup, uts, ipc, user, pid and net."""
_NEW_TIME = 0x80
"""Only ``unshare`` takes it; for ``clone`` the bit belongs to a signal's number."""
_TYPE, _STREAM, _DATAGRAM, _TCP, _UDP, _NETLINK, _NETLINK_ROUTE = 0xF, 1, 2, 6, 17, 16, 0
_FAST_OPEN = 0x20000000
"""``MSG_FASTOPEN``: connects without ``connect``."""
_TERMINAL_INPUT = (0x5412, 0x541C)
"""``TIOCSTI`` and ``TIOCLINUX``: type into the terminal that the worker was started from."""
_TRUNCATE = 0o1000
_WRITES = (1, 2)
"""``O_WRONLY`` and ``O_RDWR``."""

_PRIVATE_PROGRAM, _MODE = 0o700, 0o7777
_PROCESS, _GROUP = 0, 1
"""``PRIO_PROCESS`` and ``PRIO_PGRP``; one more in ``ioprio_set``. What else there is, is all processes of a user."""

_NOTHING = 0
"""No error at all: the call returns 0, and the kernel does nothing."""

_SET_MODE_FILTER, _SPECULATION_ALLOWED = 1, 4


@dataclass(frozen=True)
class Wishes:
    """What depends on the profile, and on what Landlock can do."""

    udp: bool = False
    """UDP sockets may be made."""
    tcp: bool = True
    """TCP sockets may be made."""
    fast_open: bool = False
    """A connection may be made by sending. Landlock does not see those, so only where all ports are open."""
    truncate: bool = True
    """Files may be truncated by name. Landlock sees it from Linux 6.2 on; before that, this is how to forbid it."""
    own_user: bool = False
    """Files and processes of the user id are the handler's own: it may change their modes, owners and priorities."""


class Unsupported(OSError):
    """There is no list of this machine's system calls."""


def program(machine: str, wishes: Wishes) -> bytes:
    """The filter. Raises :class:`Unsupported`."""
    if machine not in NUMBERS:
        raise Unsupported(errno.ENOSYS, f"no list of the system calls of {machine}")
    numbers = NUMBERS[machine]
    calls = ALLOW
    for names, verdict in _verdicts(wishes):
        known = tuple(numbers[name] for name in names if name in numbers)
        calls = when(known, verdict, calls) if known else calls
    foreign = refuse(errno.ENOSYS)
    if machine == "x86_64":
        calls = bpf.when_at_least(_X32, foreign, calls)
    native = [*bpf.load_number(), *calls]
    return bpf.assemble([*bpf.load_machine(), *bpf.unless(_ARCHITECTURES[machine], foreign, native)])


def _verdicts(wishes: Wishes) -> list[tuple[tuple[str, ...], Block]]:
    """What becomes of which calls."""
    found: list[tuple[tuple[str, ...], Block]] = [
        (FORBIDDEN, refuse(errno.EPERM)),
        (ABSENT, refuse(errno.ENOSYS)),
        (("clone",), _without_bits(0, _NEW_NAMESPACES, errno.EPERM)),
        (("unshare",), _without_bits(0, _NEW_NAMESPACES | _NEW_TIME, errno.EPERM)),
        (("ioctl",), [*bpf.load_argument(1), *when(_TERMINAL_INPUT, refuse(errno.EPERM), ALLOW)]),
        # Of another process of the same user too: a limit of no open files, say, would end the supervisor.
        (("prlimit64",), [*bpf.load_argument(0), *when((0,), ALLOW, refuse(errno.EPERM))]),
        (("socket",), _socket(wishes)),
        (("socketpair",), [*bpf.load_argument(0), *when((socket.AF_UNIX,), ALLOW, refuse(errno.EPERM))]),
    ]
    if not wishes.own_user:
        found += [(OWNERS_CALLS, refuse(_NOTHING)), *_of_its_own()]
    if not wishes.fast_open:
        found.append((("sendto", "sendmmsg"), _without_bits(3, _FAST_OPEN, errno.EPERM)))
        found.append((("sendmsg",), _without_bits(2, _FAST_OPEN, errno.EPERM)))
    return found if wishes.truncate else [*found, *_no_truncation()]


def _of_its_own() -> list[tuple[tuple[str, ...], Block]]:
    """Modes that spoil nothing, and priorities of the caller alone."""
    nothing = refuse(_NOTHING)
    found: list[tuple[tuple[str, ...], Block]] = [
        ((name,), [*bpf.load_argument(index, _MODE), *when((_PRIVATE_PROGRAM,), ALLOW, nothing)])
        for name, index in MODE_CALLS.items()
    ]
    found.append((SCHEDULING_CALLS, [*bpf.load_argument(0), *when((0,), ALLOW, nothing)]))
    for name, first in (("setpriority", 0), ("ioprio_set", 1)):
        own = [*bpf.load_argument(1), *when((0,), ALLOW, nothing)]
        kinds = (first + _PROCESS, first + _GROUP)
        found.append(((name,), [*bpf.load_argument(0), *when(kinds, own, nothing)]))
    return found


def _without_bits(index: int, bits: int, error: int) -> Block:
    return [*bpf.load_argument(index), *when_any_bit(bits, refuse(error), ALLOW)]


def _socket(wishes: Wishes) -> Block:
    """Local sockets; TCP and UDP as wished; of the kernel's own the one that tells of addresses and routes."""
    no = refuse(errno.EPERM)
    protocol = bpf.load_argument(2)
    kinds = no
    if wishes.tcp:
        kinds = when((_STREAM,), [*protocol, *when((0, _TCP), ALLOW, no)], kinds)
    if wishes.udp:
        kinds = when((_DATAGRAM,), [*protocol, *when((0, _UDP), ALLOW, no)], kinds)
    internet = [*bpf.load_argument(1, _TYPE), *kinds]
    routes = [*protocol, *when((_NETLINK_ROUTE,), ALLOW, no)]
    families = when((socket.AF_INET, socket.AF_INET6), internet, when((_NETLINK,), routes, no))
    return [*bpf.load_argument(0), *when((socket.AF_UNIX,), ALLOW, families)]


def _no_truncation() -> list[tuple[tuple[str, ...], Block]]:
    """Nothing loses its content but what was opened for writing, which Landlock has judged."""
    no = refuse(errno.EACCES)

    def judged(index: int) -> Block:
        flags = bpf.load_argument(index)
        reads = [*bpf.load_argument(index, os.O_ACCMODE), *when(_WRITES, ALLOW, no)]
        return [*flags, *when_any_bit(_TRUNCATE, reads, ALLOW)]

    return [
        (("truncate",), no),
        (("open",), judged(1)),
        (("openat",), judged(2)),
        (("openat2",), refuse(errno.ENOSYS)),  # its flags are behind a pointer
    ]


class _Program(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def enforce(filter_program: bytes) -> None:
    """From now on, for this thread and all that it starts. Needs no_new_privs. Raises :class:`OSError`."""
    given = _Program(len(filter_program) // bpf.INSTRUCTION_BYTES, filter_program)
    try:
        # As newer kernels do of themselves: without it every process under a filter pays for mitigations.
        syscall(SECCOMP[MACHINE], _SET_MODE_FILTER, _SPECULATION_ALLOWED, ctypes.byref(given))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        syscall(SECCOMP[MACHINE], _SET_MODE_FILTER, 0, ctypes.byref(given))  # before Linux 4.17
