"""Reads what is not its own: `prey["files"]` gives files by name; every way to one is tried. Those of `prey["system"]`
are only read, on ways that would leave them as they are."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.calls import call
from tests.hostile.tries import Tries, checked, libc

HANDLE_BYTES = 128
AT_FDCWD, MS_BIND, MNT_DETACH = -100, 4096, 2


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    for label, path in prey["files"].items():
        for name, act in WAYS.items():
            tries(f"{label}, {name}", lambda act=act, path=path: act(Path(path), place))
    for label, path in prey.get("system", {}).items():
        for act in GENTLE:
            tries(f"{label}, {act.__name__}", lambda act=act, path=path: act(Path(path), place))


def opened(path: Path, place: Path) -> bytes:
    return path.read_bytes()[:20]


def listed(path: Path, place: Path) -> list[str]:
    return os.listdir(path.parent)


def behind_link(path: Path, place: Path) -> bytes:
    (link := fresh(place)).symlink_to(path)
    return link.read_bytes()[:20]


def hard_linked(path: Path, place: Path) -> bytes:
    """A second name, where reading is allowed."""
    os.link(path, link := fresh(place))
    return link.read_bytes()[:20]


def moved(path: Path, place: Path) -> bytes:
    """Taken away, and put back: nobody misses it when it worked."""
    path.rename(here := fresh(place))
    try:
        return here.read_bytes()[:20]
    finally:
        here.rename(path)


def around(path: Path, place: Path) -> bytes:
    return Path(f"/proc/self/root/{path}").read_bytes()[:20]


def climbing(path: Path, place: Path) -> bytes:
    return (place / ("../" * 40) / str(path).lstrip("/")).read_bytes()[:20]


def by_path_only(path: Path, place: Path) -> bytes:
    """O_PATH asks for no right; the file is then opened again by its descriptor."""
    descriptor = os.open(path, os.O_PATH)
    try:
        return Path(f"/proc/self/fd/{descriptor}").read_bytes()[:20]
    finally:
        os.close(descriptor)


def by_handle(path: Path, place: Path) -> bytes:
    """The file system's own number of it, opened through a directory that is allowed."""
    handle = ctypes.create_string_buffer(HANDLE_BYTES.to_bytes(4, "little") + bytes(4 + HANDLE_BYTES))
    mount = ctypes.create_string_buffer(4)
    call("name_to_handle_at", AT_FDCWD, os.fsencode(path), handle, mount, 0)
    root = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        descriptor = call("open_by_handle_at", root, handle, os.O_RDONLY)
        with open(descriptor, "rb") as file:
            return file.read(20)
    finally:
        os.close(root)


def by_child(path: Path, place: Path) -> bytes:
    """By a program that it starts."""
    done = subprocess.run(["cat", str(path)], capture_output=True, env={"PATH": os.environ["PATH"], "LC_ALL": "C"})
    if done.returncode:
        raise PermissionError(13, done.stderr.decode())
    return done.stdout[:20]


def bound(path: Path, place: Path) -> bytes:
    (here := fresh(place)).touch()
    call("mount", os.fsencode(path), os.fsencode(here), None, MS_BIND, None)
    try:
        return here.read_bytes()[:20]
    finally:
        call("umount2", os.fsencode(here), MNT_DETACH)


def copied_by_kernel(path: Path, place: Path) -> bytes:
    shutil.copyfile(path, here := fresh(place))
    return here.read_bytes()[:20]


def truncated(path: Path, place: Path) -> int:
    """To the size that it has."""
    return checked(libc.truncate(os.fsencode(path), ctypes.c_long(path.stat().st_size)))


def fresh(place: Path) -> Path:
    number = 0
    while os.path.lexists(place / f"prey{number}"):
        number += 1
    return place / f"prey{number}"


WAYS = {
    "opened": opened,
    "listed": listed,
    "behind a link": behind_link,
    "hard link": hard_linked,
    "moved here": moved,
    "through /proc/self/root": around,
    "climbing": climbing,
    "O_PATH": by_path_only,
    "by handle": by_handle,
    "by a child": by_child,
    "bind mount": bound,
    "copied": copied_by_kernel,
    "truncated": truncated,
}
GENTLE = (opened, behind_link, around, climbing, by_path_only, by_handle, by_child, copied_by_kernel)
