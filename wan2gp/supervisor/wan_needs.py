"""What Wan2GP needs of this machine: its checkout and interpreter to read, and weights and LoRAs wherever they lie.

No network: whatever is downloaded comes through the courier. Nothing to write outside of the handler's own place, in
which the engine gets a root of its own.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from wan2gp.config import Config
from wan2gp.sandbox.path_lists import directories_of
from wan2gp.supervisor.needs import Needs

STORES = ("ckpts", "loras")
"""Directories of weights and LoRAs that the engine has by default."""
OWN_CONFIG = "wgp_config.json"
"""What the operator has told the engine of others."""
VENVS = ("venv", ".venv", "env")


def wan_needs(config: Config) -> Needs:
    """For the handler ``wan`` and the engine below it. Without a checkout: nothing. Looks at no disk."""
    if not config.wan2gp_path:
        return Needs()
    checkout = Path(config.wan2gp_path).expanduser().absolute()
    python = config.wan2gp_python
    pythons = [os.path.abspath(shutil.which(python) or python)] if python else []
    return Needs(
        # The store is written to by the courier, so no link in it is followed.
        read=(str(checkout), *config.input_allow_paths, str(config.models_directory())),
        models=tuple(str(checkout / name) for name in STORES),
        path_lists=(str(checkout / OWN_CONFIG),),
        # A checkout whose parts lie on another disk: `ckpts` on a network volume, say.
        links={str(checkout): 0},
        interpreters=(*pythons, *(f"{checkout}/{name}/bin/python" for name in VENVS)),
    )


def weights_places(checkout: Path) -> list[str]:
    """Directories of weights and LoRAs: the engine's usual ones, and those that the operator has told it. Looks at the
    disk."""
    usual = [str(checkout / name) for name in STORES]
    return list(dict.fromkeys([*usual, *directories_of(str(checkout / OWN_CONFIG))]))
