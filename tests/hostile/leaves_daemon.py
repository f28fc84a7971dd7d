"""Leaves a process that has cut every tie to it, and that goes on to try: it appends to its file what it could read."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Tries


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    note = place / "daemon"
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            haunt(note, prey["secret"])
        os._exit(0)
    os.wait()
    deadline = time.monotonic() + 10
    while not note.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    pid, _, word = note.read_text().partition(" ")
    tries.saw["daemon"] = pid
    tries.saw["its read"] = word


def haunt(note: Path, secret: str) -> None:
    """Deaf, without its parent's name and output, for a minute at most."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, 1024)
    try:
        word = f"got {len(Path(secret).read_bytes())}"
    except OSError as error:
        word = errno.errorcode.get(error.errno or 0, "?")
    (fresh := note.with_suffix(".new")).write_text(f"{os.getpid()} {word}")
    fresh.rename(note)
    time.sleep(60)
    os._exit(0)
