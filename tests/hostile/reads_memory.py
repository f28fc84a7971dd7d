"""Reads and writes the memory, and takes the open files, of other processes: `prey["pids"]`."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.calls import call
from tests.hostile.tries import Tries

PTRACE_SEIZE = 0x4206


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    for who, pid in prey["pids"].items():
        for name, act in WAYS.items():
            tries(f"{who} {name}", lambda act=act, pid=pid: act(pid))


def mapping(pid: int) -> int:
    """Where a private mapping begins."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if " rw-p " in line:
            return int(line.partition("-")[0], 16)
    raise ProcessLookupError


def mem(pid: int) -> int:
    """Opened for writing too: nothing is written."""
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    try:
        return len(os.pread(descriptor, 16, mapping(pid)))
    finally:
        os.close(descriptor)


def vector(address: int) -> ctypes.Array[ctypes.c_char]:
    one = address.to_bytes(8, "little") + (16).to_bytes(8, "little")
    return ctypes.create_string_buffer(one, 16)


def vm_read(pid: int) -> int:
    """The address need not be known to see whether it is allowed: a wrong one is EFAULT, which counts as got."""
    mine = ctypes.create_string_buffer(16)
    try:
        return call("process_vm_readv", pid, vector(ctypes.addressof(mine)), 1, vector(4096), 1, 0)
    except OSError as error:
        if error.errno == 14:  # EFAULT
            return 0
        raise


def vm_write(pid: int) -> int:
    """Nothing is written: there is no page at that address."""
    mine = ctypes.create_string_buffer(16)
    try:
        return call("process_vm_writev", pid, vector(ctypes.addressof(mine)), 1, vector(4096), 1, 0)
    except OSError as error:
        if error.errno == 14:
            return 0
        raise


def seize(pid: int) -> int:
    """Without stopping it, by a child whose end lets go: a process that stays traced would not end either."""
    child = os.fork()
    if child == 0:
        try:
            call("ptrace", PTRACE_SEIZE, pid, 0, 0)
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise OSError(code, os.strerror(code))
    return 0


def getfd(pid: int) -> int:
    handle = call("pidfd_open", pid, 0)
    try:
        os.close(taken := call("pidfd_getfd", handle, 0, 0))
        return taken
    finally:
        os.close(handle)


def fds(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/fd/0")


def reopened(pid: int) -> int:
    """An open file, by its name in /proc."""
    descriptor = os.open(f"/proc/{pid}/fd/0", os.O_RDONLY | os.O_NONBLOCK)
    os.close(descriptor)
    return descriptor


WAYS = {
    "mem": mem,
    "maps": mapping,
    "smaps": lambda pid: Path(f"/proc/{pid}/smaps").read_bytes()[:20],
    "process_vm_readv": vm_read,
    "process_vm_writev": vm_write,
    "ptrace": seize,
    "pidfd_getfd": getfd,
    "fd": fds,
    "reopened": reopened,
    "cwd": lambda pid: os.readlink(f"/proc/{pid}/cwd"),
    "root": lambda pid: os.listdir(f"/proc/{pid}/root/"),
    "map_files": lambda pid: os.listdir(f"/proc/{pid}/map_files"),
    "syscall": lambda pid: Path(f"/proc/{pid}/syscall").read_text()[:20],
}
