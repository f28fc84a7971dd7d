"""Fills the disk, in `prey["how"]` way: one file, many, a sparse one, reserved space, or the shared memory's."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Tries

MIB = 1 << 20


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN) if prey.get("deaf") else None
    mib = int(prey["mib"])
    tries(prey["how"], lambda: WAYS[prey["how"]](place, mib))
    deadline = time.monotonic() + float(prey.get("hold_s", 0))
    while time.monotonic() < deadline:
        time.sleep(0.05)


def one_file(place: Path, mib: int) -> int:
    with (place / "large").open("wb", buffering=0) as file:
        for _ in range(mib):
            file.write(b"\1" * MIB)
    return mib


def many_files(place: Path, mib: int) -> int:
    for number in range(mib):
        (place / f"part{number}").write_bytes(b"\1" * MIB)
    return mib


def sparse(place: Path, mib: int) -> int:
    with (place / "sparse").open("wb") as file:
        file.truncate(mib * MIB)
    return mib


def reserved(place: Path, mib: int) -> int:
    with (place / "reserved").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, mib * MIB)
    return mib


def in_temp(place: Path, mib: int) -> int:
    return many_files(Path(tempfile.mkdtemp()), mib)


def at_home(place: Path, mib: int) -> int:
    (home := Path.home() / "vice").mkdir(exist_ok=True)
    return many_files(home, mib)


def deleted(place: Path, mib: int) -> int:
    """Open, and without a name: no walk over directories finds it."""
    file = os.open(place / "gone", os.O_RDWR | os.O_CREAT)
    os.unlink(place / "gone")
    for _ in range(mib):
        os.write(file, b"\1" * MIB)
    KEPT.append(file)
    return mib


KEPT: list[int] = []
WAYS = {
    "one file": one_file,
    "many files": many_files,
    "sparse": sparse,
    "reserved": reserved,
    "in temp": in_temp,
    "at home": at_home,
    "deleted": deleted,
}
