"""A Wan2GP with a RIFE that blends: the stand-in's root, and weights that name the fault they stand for."""

from __future__ import annotations

import contextlib
import pickle
import shutil
from pathlib import Path
from typing import Any

import psutil

TESTS = Path(__file__).parent
FILES = {"v4": "rife4.26.pkl", "v3": "flownet.pkl"}
PARTS = {
    "v4": ("block0.weight", "block1.weight", "encode.cnn0.weight"),
    "v3": ("module.block0.weight", "module.block1.weight"),
}


def make_root(path: Path, *versions: str, fault: str = "", place: str = "ckpts") -> Path:
    """A checkout at ``path`` with the weights of these versions."""
    shutil.copytree(TESTS / "rife_root", path, ignore=shutil.ignore_patterns("__pycache__"))
    (path / "shared").mkdir()
    for name in ("wgp.py", "shared/api.py"):
        shutil.copy(TESTS / "wan_root" / name, path / name)
    for version in versions:
        write_weights(path / place / FILES[version], version, fault)
    return path


def write_weights(file: Path, version: str = "v4", fault: str = "", **more: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps({**dict.fromkeys(PARTS[version], 0.0), "fault": fault, **more}))


def runs(pid: int) -> bool:
    """Whether RIFE's process of that number is there; another may have got it since."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and any("rife_host.py" in part for part in process.cmdline())
    return False
