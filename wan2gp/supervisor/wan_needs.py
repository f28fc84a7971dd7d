"""What Wan2GP needs of this machine: its checkout and interpreter to read, and weights and LoRAs wherever they lie.

No network: whatever is downloaded comes through the courier. Nothing to write outside of the handler's own place, in
which the engine gets a root of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wan2gp.config import Config
from wan2gp.supervisor.grants import around, interpreter_reads, own_places
from wan2gp.supervisor.needs import Needs

WEIGHTS = "ckpts"
LORAS = "loras"
OWN_CONFIG = "wgp_config.json"
CONFIG_BYTES = 1 << 20
VENVS = ("venv", ".venv", "env")


def wan_needs(config: Config) -> Needs:
    """For the handler ``wan`` and the engine below it. Without a checkout: nothing."""
    if not config.wan2gp_path:
        return Needs()
    checkout = Path(config.wan2gp_path).expanduser().absolute()
    closed = own_places(config)
    places = [*weights_places(checkout), str(config.models_directory())]
    read = [grant for place in (*_reads(config, checkout), *places) for grant in around(place, closed)]
    # The store is written to by the courier: a link that lay there would open what it leads to.
    return Needs(read=tuple(dict.fromkeys(read)), models=tuple(weights_places(checkout)))


def _reads(config: Config, checkout: Path) -> Iterator[str]:
    yield str(checkout)
    yield from config.input_allow_paths
    if config.wan2gp_python:
        yield from interpreter_reads(config.wan2gp_python)
    for name in VENVS:
        if os.path.exists(f"{checkout}/{name}/bin/python"):
            yield from interpreter_reads(f"{checkout}/{name}/bin/python")
    # A checkout whose parts lie on another disk: `ckpts` on a network volume, say.
    with contextlib.suppress(OSError), os.scandir(checkout) as entries:
        yield from [os.path.realpath(entry.path) for entry in entries if entry.is_symlink()]


def weights_places(checkout: Path) -> list[str]:
    """Directories of weights and LoRAs: the engine's usual ones, and those that the operator has told it."""
    found = _own_config(checkout)
    given = found.get("checkpoints_paths")
    names = [WEIGHTS, LORAS, *(given if isinstance(given, list) else ()), found.get("loras_root")]
    # The checkout itself is one by default, and granted already.
    places = [checkout / Path(name.strip()).expanduser() for name in names if isinstance(name, str) and name.strip()]
    return list(dict.fromkeys(str(place) for place in places if place != checkout))


def _own_config(checkout: Path) -> dict[str, Any]:
    try:
        with (checkout / OWN_CONFIG).open("rb") as file:
            found = json.loads(file.read(CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
