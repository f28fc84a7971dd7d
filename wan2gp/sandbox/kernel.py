"""System calls that Python has no function for, by number, and which machine this is."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

MACHINE = os.uname().machine if sys.maxsize > 2**32 else f"a 32-bit interpreter on {os.uname().machine}"
"""``x86_64`` or ``aarch64``; on others there is no list of system calls, so no filter either."""

LANDLOCK_CREATE_RULESET = 444
LANDLOCK_ADD_RULE = 445
LANDLOCK_RESTRICT_SELF = 446
SECCOMP = {"x86_64": 317, "aarch64": 277}

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def syscall(number: int, *arguments: Any) -> int:
    """``syscall(2)``: integers, byte buffers, and references of :mod:`ctypes`. Raises :class:`OSError`."""
    given = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *given)
    if result < 0:
        raise failure(f"system call {number}")
    return result


def prctl(option: int, *values: int) -> int:
    """``prctl(2)`` with up to four arguments; the others are 0. Raises :class:`OSError`."""
    given = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    result: int = libc.prctl(option, *given)
    if result < 0:
        raise failure(f"prctl({option})")
    return result


def failure(what: str) -> OSError:
    """The error of the call that was just made."""
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
