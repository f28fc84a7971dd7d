"""Passes off as its result what is not its own: `prey["how"]`, of the file `prey["loot"]`, whose content it knows."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Loot, Tries


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    target = Path(prey["loot"])
    tries(prey["how"], lambda: WAYS[prey["how"]](target, place))
    names = {"behind a folder": f"folder/{target.name}", "climbing": os.path.relpath(target, place)}
    path = names.get(prey["how"], str(target) if prey["how"] == "absolute" else "loot.png")
    tries.loot.append(Loot(path, int(prey["bytes"]), prey["sha256"]))


def device(target: Path, place: Path) -> None:
    os.mknod(place / "loot.png", 0o20600, os.makedev(1, 5))


def in_a_socket(target: Path, place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(place / "loot.png"))


def sparse(target: Path, place: Path) -> None:
    """Of a size that no disk has."""
    with (place / "loot.png").open("wb") as file:
        file.truncate(1 << 34)


WAYS = {
    "link": lambda target, place: (place / "loot.png").symlink_to(target),
    "chain of links": lambda target, place: (
        (place / "further").symlink_to(target),
        (place / "loot.png").symlink_to("further"),
    ),
    "hard link": lambda target, place: os.link(target, place / "loot.png"),
    "behind a folder": lambda target, place: (place / "folder").symlink_to(target.parent),
    "moved": lambda target, place: target.rename(place / "loot.png"),
    "copied": lambda target, place: (place / "loot.png").write_bytes(target.read_bytes()),
    "climbing": lambda target, place: None,
    "absolute": lambda target, place: None,
    "pipe": lambda target, place: os.mkfifo(place / "loot.png"),
    "device": device,
    "socket": in_a_socket,
    "sparse": sparse,
}
