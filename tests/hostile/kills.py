"""Sends signals to what is not its own: `prey["pids"]` gives processes by name; `prey["signal"]` is what it sends."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.calls import call
from tests.hostile.tries import Tries

SIGINFO_BYTES = 128
F_SETSIG = 10


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    number = int(prey["signal"])
    for who, pid in prey["pids"].items():
        tries(f"{who}, kill", lambda pid=pid: os.kill(pid, number))
        if os.getpgid(pid) == pid:  # else it is somebody else's group, perhaps that of the tests
            tries(f"{who}, its group", lambda pid=pid: os.killpg(pid, number))
        tries(f"{who}, tgkill", lambda pid=pid: call("tgkill", pid, pid, number))
        tries(f"{who}, rt_sigqueueinfo", lambda pid=pid: queued(pid, number))
        tries(f"{who}, by pidfd", lambda pid=pid: by_handle(pid, number))
        tries(f"{who}, as owner of a socket", lambda pid=pid: as_owner(pid, number))
    if prey.get("parent"):
        tries("my parent", lambda: os.kill(os.getppid(), number))


def queued(pid: int, number: int) -> int:
    """With the siginfo of SI_QUEUE."""
    info = number.to_bytes(4, "little") + bytes(4) + (-1).to_bytes(4, "little", signed=True)
    return call("rt_sigqueueinfo", pid, number, ctypes.create_string_buffer(info, SIGINFO_BYTES))


def by_handle(pid: int, number: int) -> None:
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, number)
    finally:
        os.close(handle)


def as_owner(pid: int, number: int) -> str:
    """The kernel sends it on our behalf when something can be read. It refuses in silence, so this only tries."""
    left, right = socket.socketpair()
    with left, right:
        fcntl.fcntl(left, fcntl.F_SETOWN, pid)
        fcntl.fcntl(left, F_SETSIG, number)
        fcntl.fcntl(left, fcntl.F_SETFL, fcntl.fcntl(left, fcntl.F_GETFL) | os.O_ASYNC)
        right.send(b"x")
    raise PermissionError(1, "nobody knows")
