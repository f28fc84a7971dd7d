"""Whether a directory holds a Wan2GP, and which: read, never imported."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from wan2gp.wan_sidecar.errors import NotInstalled

API = Path("shared", "api.py")
API_MARK = "class WanGPSession"
VERSION = re.compile(r"""^WanGP_version\s*=\s*["']([^"'\n]{1,40})["']""", re.MULTILINE)
COMMIT = re.compile(r"[0-9a-f]{40,64}")
READ_CHARS = 200_000
VENVS = ("venv", ".venv", "env")


@dataclass(frozen=True)
class Checkout:
    path: Path
    version: str
    """"" where it does not say."""
    commit: str
    """"" where it is no git repository."""


def look(path: Path) -> Checkout:
    """Raises NotInstalled, whose message says what is missing."""
    path = path.expanduser().absolute()
    if not path.is_dir():
        raise NotInstalled(f"there is no directory {path}")
    program = _text(path / "wgp.py")
    if not program:
        raise NotInstalled(f"{path} holds no Wan2GP: there is no wgp.py")
    if API_MARK not in _text(path / API):
        raise NotInstalled(f"the Wan2GP in {path} is too old: its {API} has no WanGPSession")
    found = VERSION.search(program)
    return Checkout(path, found[1] if found else "", _commit(path))


def interpreter(path: Path, given: str) -> str:
    """The one to run it with: the given one, or that of an environment in the checkout, or ours."""
    if given:
        return str(Path(given).expanduser())
    found = [str(path / venv / "bin" / "python") for venv in VENVS]
    return next((python for python in found if os.access(python, os.X_OK)), sys.executable)


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(READ_CHARS)
    except OSError:
        return ""


def _commit(path: Path) -> str:
    """Of what is checked out; without git, which need not be installed."""
    with contextlib.suppress(OSError):
        git = path / ".git"
        if git.is_file():  # a worktree, or a submodule
            git = (path / git.read_text().partition(":")[2].strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        if COMMIT.fullmatch(head):
            return head
        name = head.removeprefix("ref: ")
        common = git / "commondir"
        shared = (git / common.read_text().strip()).resolve() if common.is_file() else git
        loose = shared / name
        return loose.read_text().strip() if loose.is_file() else _packed(shared / "packed-refs", name)
    return ""


def _packed(file: Path, name: str) -> str:
    for line in file.read_text().splitlines():
        commit, _, ref = line.partition(" ")
        if ref == name:
            return commit
    return ""
