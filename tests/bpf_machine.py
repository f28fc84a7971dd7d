"""Runs a seccomp filter as the kernel does, for the machines that this one is not. Source: linux/filter.h."""

from __future__ import annotations

import struct

ALLOWED = 0x7FFF0000
INSTRUCTION = struct.Struct("HBBI")


def verdict(program: bytes, architecture: int, number: int, *arguments: int) -> int | None:
    """The `errno` that the call fails with, or None when it is let through."""
    given = [*arguments, *[0] * 6][:6]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *given)
    code = list(INSTRUCTION.iter_unpack(program))
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        if operation == 0x20:  # load a word
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x06:
            return None if value == ALLOWED else value & 0xFFFF
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[operation]
            at += if_true if holds else if_false
