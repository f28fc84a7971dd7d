"""Puts its own where others would run or trust it, and spoils what is there: `prey["folders"]`, by name."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Tries

NAME = "planted-by-a-vice"


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    (place / "mine").write_text("import this")
    for label, folder in prey["folders"].items():
        for name, act in NEW.items():
            tries(f"{label}, {name}", lambda act=act, folder=folder: act(Path(folder) / NAME, place))
    for label, path in prey.get("spoilt", {}).items():
        for name, act in OLD.items():
            tries(f"{label}, {name}", lambda act=act, path=path: act(Path(path), place))


def undone(path: Path) -> str:
    (path.rmdir if path.is_dir() and not path.is_symlink() else path.unlink)()
    return path.name


def written(path: Path, place: Path) -> str:
    path.write_text("import this")
    return undone(path)


def folder(path: Path, place: Path) -> str:
    path.mkdir()
    return undone(path)


def link(path: Path, place: Path) -> str:
    path.symlink_to("/nowhere")
    return undone(path)


def second_name(path: Path, place: Path) -> str:
    os.link(place / "mine", path)
    return undone(path)


def put_there(path: Path, place: Path) -> str:
    (place / "moving").write_text("import this")
    (place / "moving").rename(path)
    return undone(path)


def pipe(path: Path, place: Path) -> str:
    os.mkfifo(path)
    return undone(path)


def device(path: Path, place: Path) -> str:
    """A second way to what /dev/null is."""
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    return undone(path)


def listening(path: Path, place: Path) -> str:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
    return undone(path)


def appended(path: Path, place: Path) -> int:
    """Opened for it: what is there stays as it is."""
    with path.open("ab") as file:
        return file.fileno()


def emptied(path: Path, place: Path) -> int:
    """Opened in a way that would, had it been larger than nothing."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.close(descriptor)
    return descriptor


def removed(path: Path, place: Path) -> str:
    """And put back."""
    data = path.read_bytes() if os.access(path, os.R_OK) else b""
    path.unlink()
    path.write_bytes(data)
    return "removed"


def replaced(path: Path, place: Path) -> str:
    """By an exchange, twice."""
    (here := place / "other").write_text("mine")
    path.rename(place / "taken")
    (place / "taken").rename(path)
    here.unlink()
    return "replaced"


NEW = {
    "a file": written,
    "a folder": folder,
    "a link": link,
    "a hard link": second_name,
    "a file moved": put_there,
    "a pipe": pipe,
    "a device": device,
    "a socket": listening,
}
OLD = {"appended": appended, "opened to write": emptied, "removed": removed, "replaced": replaced}
