"""Leaves memory behind that no process holds: it is still there when its maker is dead."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.calls import call
from tests.hostile.tries import Tries

IPC_CREAT, KIB = 0o1000, 1024


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    key = int(prey["key"])
    tries("System V memory", lambda: call("shmget", key, 64 * KIB, IPC_CREAT | 0o666))
    tries("System V queue", lambda: call("msgget", key, IPC_CREAT | 0o666))
    tries("System V semaphores", lambda: call("semget", key, 1, IPC_CREAT | 0o666))
    tries("POSIX queue", lambda: call("mq_open", f"vice-{key}".encode(), 0o102, 0o600, None))
    tries("a file of /dev/shm", lambda: Path(f"/dev/shm/vice-{key}").write_bytes(b"\1" * KIB))
