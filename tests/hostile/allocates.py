"""Takes `prey["mib"]` of memory in one of several ways, and holds it for `prey["hold_s"]`."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Tries

MIB = 1 << 20
STEP_MIB, FILE_MIB = 16, 4


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    held: list[Any] = []
    tries(prey["how"], lambda: WAYS[prey["how"]](int(prey["mib"]), held))
    time.sleep(float(prey["hold_s"]))
    for one in held:
        one.close()


def alone(mib: int, held: list[Any]) -> int:
    for _ in range(0, mib, STEP_MIB):
        held.append(touched(mmap.mmap(-1, STEP_MIB * MIB)))
    return mib


def by_children(mib: int, held: list[Any]) -> int:
    """No single process is large."""
    for _ in range(0, mib, 4 * STEP_MIB):
        if os.fork() == 0:
            mine: list[Any] = []
            alone(4 * STEP_MIB, mine)
            time.sleep(30)
            os._exit(0)
    return mib


def in_files(mib: int, held: list[Any]) -> int:
    """Of memory alone, which no process has mapped; none of them is large."""
    for _ in range(0, mib, FILE_MIB):
        held.append(one := os.fdopen(os.memfd_create("vice"), "wb", buffering=0))
        for _ in range(FILE_MIB):
            one.write(b"\1" * MIB)
    return mib


def touched(block: mmap.mmap) -> mmap.mmap:
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    return block


WAYS = {"alone": alone, "by children": by_children, "in files": in_files}
