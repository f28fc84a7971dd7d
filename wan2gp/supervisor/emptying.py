"""What a handler wrote beyond its limit goes, or its next process would be over the limit from the start.

It is set aside at once, by a rename, and removed by and by: it may be millions of files, nested as deep as they could.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

GONE = ".gone-"
"""What was set aside is beside the handlers' directories, under names that no handler has."""
BREATH = 256
"""After so many entries others get their turn."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def set_aside(directory: Path) -> None:
    """Put it out of the way; that it is not there is as good. Raises :class:`OSError`."""
    with contextlib.suppress(FileNotFoundError):
        directory.rename(directory.with_name(f"{GONE}{secrets.token_hex(8)}"))


def remove_set_aside(parent: Path, breathe: Callable[[], None]) -> None:
    """Remove what was set aside in ``parent``, also in an earlier life. What cannot be removed stays."""
    for directory in parent.glob(f"{GONE}*"):
        with contextlib.suppress(OSError):
            remove(directory, breathe)


def remove(directory: Path, breathe: Callable[[], None]) -> None:
    """Remove a directory that nobody uses any more, with all that is in it. Follows no link. Raises :class:`OSError`.

    What is below is brought up before it is removed, so no depth needs a long path or many descriptors.
    """
    root = os.open(directory, _FOLDER)
    try:
        os.fchmod(root, 0o700)
        brought = 0
        while names := os.listdir(root):
            for number, name in enumerate(names):
                if number % BREATH == 0:
                    breathe()
                if not _unlinked(name, root):
                    brought = _bring_up(name, root, brought)
    finally:
        os.close(root)
    directory.rmdir()


def _bring_up(name: str, root: int, brought: int) -> int:
    """Empty one directory into the root, and remove it. Returns how many were brought up so far."""
    inner = os.open(name, _FOLDER, dir_fd=root)
    try:
        os.fchmod(inner, 0o700)
        for below in os.listdir(inner):
            if not _unlinked(below, inner):
                brought += 1
                if os.geteuid() != 0:  # who is root needs no leave to change its ".."; and this follows links
                    os.chmod(below, 0o700, dir_fd=inner)
                os.rename(below, f"{GONE}{secrets.token_hex(4)}-{brought}", src_dir_fd=inner, dst_dir_fd=root)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=root)
    return brought


def _unlinked(name: str, folder: int) -> bool:
    """False for a directory."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        return False
    return True
