"""A private root for the engine, which writes into the directory it lives in.

Its code is copied, as a link would lead its writes back into the checkout, and as it refuses a ``wgp.py`` that lies
elsewhere. What is large or is none of its code is linked. Weights and LoRAs are looked for where the operator has them,
and never written there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan2gp.wan_sidecar.checkout import VENVS, Checkout
from wan2gp.wan_sidecar.settings import config_file, own_places

CODE = (
    *("defaults", "finetunes", "icons", "models", "plugins", "postprocessing", "preprocessing", "profiles"),
    *("scripts", "shared"),
)
"""Directories that are copied; others are linked."""
OURS = ("ckpts", "loras", "settings", "outputs", "wgp_config.json")
"""What the engine writes to: of these the private root has its own."""
LEFT_OUT = (*VENVS, "__pycache__", "startup.lock", "queue.zip", "error_queue.zip", "loras_url_cache_v2.json")
LARGE_BYTES = 16 << 20
"""A larger file is linked."""
MANY_LORAS = 20_000
STAMP = ".laid"
FINETUNE = "finetunes"
LAYOUT = "1"
"""Changes when what is laid here does."""


@dataclass(frozen=True)
class Stores:
    """Directories of the operator's and ours, absolute."""

    models: Path | None = None
    """Weights, in the layout of the engine's own ``ckpts``; looked at first."""
    loras: Path | None = None


def lay_root(
    checkout: Checkout,
    home: Path,
    stores: Stores,
    options: Mapping[str, Any],
    finetunes: Mapping[str, Mapping[str, Any]],
) -> Path:
    """The root, made or brought up to date, while no engine runs in it. Raises OSError.

    A file that the engine keeps from one start to the next would change what it does with the same task: its settings
    are made anew each time, and only fetched weights stay.
    """
    home.mkdir(parents=True, exist_ok=True)
    root = home / "root"
    stamp = _stamp(checkout)
    if not _is_laid(root, stamp):
        _lay(checkout.path, home, root, stamp)
    for name in ("settings", "loras", "outputs"):
        _emptied(root / name)
    _lay_finetunes(checkout.path, root, finetunes)
    _lay_loras(checkout.path, root, stores)
    weights = home / "ckpts"
    weights.mkdir(exist_ok=True)
    found = config_file(checkout.path, weights, stores.models, options)
    (root / "wgp_config.json").write_text(json.dumps(found, indent=1))
    return root


def _stamp(checkout: Checkout) -> str:
    """Of the names, sizes and times of all that is copied: also an edited file counts."""
    digest = hashlib.sha256(f"{LAYOUT} {checkout.path} {checkout.version} {checkout.commit}".encode())
    for path in _copied(checkout.path):
        status = path.stat()
        digest.update(f"\0{path}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _copied(checkout: Path) -> Iterator[Path]:
    """All files that are the engine's code, in a fixed order."""
    for entry in sorted(checkout.iterdir()):
        if entry.name in (*OURS, *LEFT_OUT) or entry.name.startswith("."):
            continue
        if entry.is_file():
            yield entry
        elif entry.name in CODE:
            for folder, folders, files in os.walk(entry):
                folders[:] = sorted(name for name in folders if name not in LEFT_OUT)
                yield from (Path(folder, name) for name in sorted(files) if Path(folder, name).is_file())


def _is_laid(root: Path, stamp: str) -> bool:
    try:
        return (root / STAMP).read_text() == stamp
    except OSError:
        return False


def _lay(checkout: Path, home: Path, root: Path, stamp: str) -> None:
    """Beside the old one, which it replaces when it is whole: the stamp comes last."""
    new = home / "root.new"
    _removed(new)
    new.mkdir()
    for source in _copied(checkout):
        target = new / source.relative_to(checkout)
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(source, target)
    for entry in checkout.iterdir():
        known = entry.name in (*CODE, *OURS, *LEFT_OUT) or entry.name.startswith(".")
        if entry.is_dir() and not known:
            (new / entry.name).symlink_to(os.path.realpath(entry))
    (new / STAMP).write_text(stamp)
    _removed(root)
    os.rename(new, root)


def _copy(source: Path, target: Path) -> None:
    if source.stat().st_size > LARGE_BYTES:
        target.symlink_to(os.path.realpath(source))
    else:
        shutil.copy(source, target)


def _removed(place: Path) -> None:
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)


def _emptied(place: Path) -> None:
    _removed(place)
    place.mkdir()


def _lay_finetunes(checkout: Path, root: Path, finetunes: Mapping[str, Mapping[str, Any]]) -> None:
    """The operator's and ours, and none that an earlier start had left."""
    place, theirs = root / FINETUNE, checkout / FINETUNE
    _emptied(place)
    if theirs.is_dir():
        for file in theirs.glob("*.json"):
            shutil.copyfile(file, place / file.name)
    for name, definition in finetunes.items():
        (place / f"{name}.json").write_text(json.dumps(definition))


def _lay_loras(checkout: Path, root: Path, stores: Stores) -> None:
    """Links to the operator's LoRAs in directories of our own: the engine moves LoRAs about when it starts."""
    places = [*own_places(checkout).loras, *([stores.loras] if stores.loras is not None else [])]
    count = 0
    for place in places:
        for folder, files in _folders(place):
            below = root / "loras" / os.path.relpath(folder, place)
            below.mkdir(parents=True, exist_ok=True)
            count += len(files)
            if count > MANY_LORAS:  # it was never meant to be a directory of LoRAs
                return
            for name in files:
                if not os.path.lexists(below / name):
                    (below / name).symlink_to(os.path.realpath(Path(folder, name)))


def _folders(place: Path) -> Iterator[tuple[str, list[str]]]:
    """All directories with their files, also those that links lead to, each once: links may lead back."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(place, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield folder, files
