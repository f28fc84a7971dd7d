"""Leaves memory behind that no process holds and that outlives its maker: under the key `prey["key"]`. It is taken away
again where it could be made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.hostile.calls import call
from tests.hostile.tries import Tries

IPC_CREAT, IPC_RMID, KIB = 0o1000, 0, 1024


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    key = int(prey["key"])
    for name, act in WAYS.items():
        tries(name, lambda act=act: act(key))


def memory(key: int) -> str:
    return undone("shmctl", call("shmget", key, 64 * KIB, IPC_CREAT | 0o600))


def messages(key: int) -> str:
    return undone("msgctl", call("msgget", key, IPC_CREAT | 0o600))


def semaphores(key: int) -> str:
    found = call("semget", key, 1, IPC_CREAT | 0o600)
    call("semctl", found, 0, IPC_RMID)
    return "made"


def posix_messages(key: int) -> str:
    name = f"vice-{key}".encode()
    os.close(call("mq_open", name, os.O_CREAT | os.O_RDWR, 0o600, None))
    call("mq_unlink", name)
    return "made"


def undone(how: str, found: int) -> str:
    call(how, found, IPC_RMID, None)
    return "made"


WAYS: Mapping[str, Callable[[int], str]] = {
    "System V memory": memory,
    "System V messages": messages,
    "System V semaphores": semaphores,
    "POSIX messages": posix_messages,
}
