"""Wants to be more than it is. A dangerous call gets arguments that the kernel refuses once it would allow it."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.calls import call
from tests.hostile.tries import Refused, Tries, checked, libc

NEW_USER, NEW_MOUNT, NEW_NET, NEW_PID = 0x10000000, 0x00020000, 0x40000000, 0x20000000
IN_REACH = (14, 22, 9, 2, 8)
"""EFAULT, EINVAL, EBADF, ENOENT, ENOEXEC: the kernel would have done it, had it been given anything to do."""


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    tries("capabilities", capabilities)
    tries("new privileges", new_privileges)
    tries("file mode mask", mask)
    for name, flags in (("user", NEW_USER), ("mount", NEW_MOUNT), ("network", NEW_NET), ("pid", NEW_PID)):
        tries(f"a {name} namespace", lambda flags=flags: in_child(lambda: call("unshare", flags)))
        tries(f"a {name} namespace by clone", lambda flags=flags: cloned(flags))
    tries("clone3", lambda: reached(lambda: call("clone3", None, 0)))
    for name, arguments in WITH_NOTHING.items():
        tries(name, lambda name=name, arguments=arguments: reached(lambda: call(name, *arguments)))
    for number in (0, 1, 65534):
        tries(f"to be user {number}", lambda number=number: in_child(lambda: become(number)))
    tries("another root", lambda: in_child(lambda: checked(libc.chroot(b"/"), "chroot")))
    tries("the namespaces of process 1", lambda: in_child(entered))
    tries("sudo", lambda: by_program("sudo", "-n", "true"))


def capabilities() -> str:
    """Of any set, also the one that limits what an exec may give."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {name: int(value, 16) for name, _, value in (line.partition(":") for line in lines) if name[:3] == "Cap"}
    if not any(found.values()):
        raise PermissionError(1, "none")
    return str({name: hex(value) for name, value in found.items() if value})


def new_privileges() -> str:
    if "NoNewPrivs:\t1" in Path("/proc/self/status").read_text():
        raise PermissionError(1, "none")
    return "may gain"


def mask() -> str:
    if "Umask:\t0077" in Path("/proc/self/status").read_text():
        raise PermissionError(1, "0077")
    return "wide"


def reached(act: Any) -> str:
    try:
        act()
    except OSError as error:
        if error.errno in IN_REACH:
            return f"reached: {os.strerror(error.errno or 0)}"
        raise
    return "done"


def in_child(act: Any) -> str:
    """In a process of its own, which ends at once: what worked changes nobody else."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(abs(code), os.strerror(abs(code)))
    return "done"


def cloned(flags: int) -> str:
    pid = call("clone", flags | 17, 0, 0, 0, 0)  # SIGCHLD at its end
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "done"


def become(number: int) -> None:
    if os.getuid() == number:
        raise PermissionError(1, "already so")
    os.setresuid(number, number, number)


def entered() -> None:
    descriptor = os.open("/proc/1/ns/mnt", os.O_RDONLY)
    call("setns", descriptor, 0)


def by_program(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise Refused("not installed") from None
    if done.returncode:
        raise Refused(f"exit status {done.returncode}")
    return "done"


NOWHERE = ctypes.create_string_buffer(b"/nowhere-at-all")
WITH_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "mount": (None, NOWHERE, None, 4096, None),
    "umount2": (NOWHERE, 0),
    "pivot_root": (NOWHERE, NOWHERE),
    "swapon": (NOWHERE, 0),
    "open_tree": (-1, NOWHERE, 0),
    "fsopen": (None, 0),
    "move_mount": (-1, NOWHERE, -1, NOWHERE, 0),
    "mount_setattr": (-1, NOWHERE, 0, None, 0),
    "init_module": (None, 0, None),
    "finit_module": (-1, None, 0),
    "kexec_load": (0, 1, None, 0),
    "bpf": (0, None, 0),
    "perf_event_open": (None, 0, -1, -1, 0),
    "userfaultfd": (1 << 20,),
    "io_uring_setup": (0, None),
    "keyctl": (0, -3, 0),
    "add_key": (None, None, None, 0, 0),
    "request_key": (None, None, None, 0),
    "open_by_handle_at": (-1, None, 0),
    "quotactl": (0x80000700, NOWHERE, 0, None),
    "acct": (NOWHERE,),
    "syslog": (3, None, 0),
}
