"""Opens devices that belong to the machine or to the operator; reads and writes nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Tries

DEVICES = ("mem", "kmem", "port", "kmsg", "kvm", "fuse", "loop-control", "net/tun", "vda", "sda", "nvme0n1", "vsock")
DEVICES += ("userfaultfd", "tty0", "console", "vcs", "snapshot", "uinput", "btrfs-control")


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    for name in DEVICES:
        for mode, flags in (("read", os.O_RDONLY), ("write", os.O_WRONLY)):
            if os.path.exists(f"/dev/{name}"):
                tries(f"{name}, {mode}", lambda name=name, flags=flags: opened(f"/dev/{name}", flags))
    if "terminal" in prey:
        tries("the operator's terminal", lambda: opened(prey["terminal"], os.O_RDWR))
    for path in prey.get("kernel", ()):
        tries(path, lambda path=path: opened(path, os.O_WRONLY))


def opened(path: str, flags: int) -> str:
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    os.close(descriptor)
    return "opened"
