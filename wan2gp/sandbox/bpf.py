"""The few words of classic BPF that a seccomp filter is made of, as blocks that put together give a program.

A block always ends in a verdict, so what stands behind one is reached only by a jump over it. Source:
``linux/filter.h``, ``linux/seccomp.h``, seccomp(2).
"""

from __future__ import annotations

import struct

Block = list[tuple[int, int, int, int]]
"""Instructions: code, how many to skip when true, how many when false, operand."""

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16
_SKIP_MAX = 255
_INSTRUCTION = struct.Struct("HBBI")
INSTRUCTION_BYTES = _INSTRUCTION.size

ALLOW: Block = [(_RETURN, 0, 0, _ALLOW)]


def refuse(error: int) -> Block:
    """The call fails with this ``errno``."""
    return [(_RETURN, 0, 0, _ERRNO | error)]


def load_number() -> Block:
    """Which system call it is. No verdict: the next block looks at it."""
    return [(_LOAD, 0, 0, _NUMBER_AT)]


def load_machine() -> Block:
    """Which machine's calls it belongs to."""
    return [(_LOAD, 0, 0, _MACHINE_AT)]


def load_argument(index: int, mask: int = 0xFFFFFFFF) -> Block:
    """The low half of an argument: all that the kernel looks at in those that are an ``int``, little endian."""
    load: Block = [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index)]
    return load if mask == 0xFFFFFFFF else [*load, (_AND, 0, 0, mask)]


def when(values: tuple[int, ...], then: Block, otherwise: Block) -> Block:
    """``then`` where what was loaded is one of ``values``."""
    _fits(then)
    tests: Block = [(_EQUAL, len(values) - 1 - index, 0, value) for index, value in enumerate(values)]
    code, _, _, last = tests.pop()
    return [*tests, (code, 0, len(then), last), *then, *otherwise]


def unless(value: int, then: Block, otherwise: Block) -> Block:
    """``then`` where what was loaded is something else."""
    _fits(then)
    return [(_EQUAL, len(then), 0, value), *then, *otherwise]


def when_at_least(value: int, then: Block, otherwise: Block) -> Block:
    """``then`` where what was loaded is no less."""
    _fits(then)
    return [(_AT_LEAST, 0, len(then), value), *then, *otherwise]


def when_any_bit(bits: int, then: Block, otherwise: Block) -> Block:
    """``then`` where what was loaded has one of these bits."""
    _fits(then)
    return [(_ANY_BIT, 0, len(then), bits), *then, *otherwise]


def assemble(block: Block) -> bytes:
    """As the kernel reads it."""
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in block)


def _fits(then: Block) -> None:
    if len(then) > _SKIP_MAX:
        raise ValueError(f"a block of {len(then)} instructions cannot be jumped over")
