"""Where Wan2GP keeps RIFE and its weights, found without importing anything of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wan2gp.wan_sidecar.errors import NotInstalled

CONFIG = "wgp_config.json"
CHECKPOINTS = ("ckpts", ".")
"""Where the engine looks when its configuration says nothing."""
FILES = (("v4", "rife4.26.pkl", "RIFE v4.26"), ("v3", "flownet.pkl", "RIFE HDv3"))
"""Version, file, what it is called; the better first."""
HUB = "https://huggingface.co/DeepBeepMeep/Wan2.1"


@dataclass(frozen=True)
class RifeModel:
    """A model that is there. ``root``: Wan2GP's checkout."""

    root: Path
    weights: Path
    version: str
    """``v4`` or ``v3``."""
    name: str
    """For people."""


class WeightsMissing(NotInstalled):
    """RIFE is there, and has no weights. ``model``: the one that is best, with the place where they go."""

    def __init__(self, model: RifeModel) -> None:
        super().__init__(f"RIFE's weights are missing: put {model.weights.name} of {HUB} into {model.weights.parent}")
        self.model = model


def find_rife(checkout: str, stores: Sequence[str] = ()) -> RifeModel:
    """``stores``: directories of weights that are looked at first. Raises :class:`NotInstalled`, which
    may be :class:`WeightsMissing`, naming what is missing and where it goes."""
    if not checkout:
        raise NotInstalled("WAN2GP_PATH is not set, and RIFE is a part of Wan2GP")
    root = Path(checkout).expanduser().absolute()
    if not (root / "postprocessing" / "rife").is_dir():
        raise NotInstalled(f"there is no Wan2GP with RIFE at {root} (WAN2GP_PATH)")
    own = checkpoints(root)
    places = [*map(Path, stores), *own]
    for version, file, name in FILES:
        for place in places:
            if (place / file).is_file():
                return RifeModel(root, place / file, version, name)
    version, file, name = FILES[0]
    raise WeightsMissing(RifeModel(root, own[0] / file, version, name))


def checkpoints(root: Path) -> list[Path]:
    """The engine's directories of weights, as its configuration has them; a spoilt one counts as none."""
    try:
        named = json.loads((root / CONFIG).read_text())["checkpoints_paths"]
    except (OSError, ValueError, KeyError, TypeError):
        named = CHECKPOINTS
    listed = named if isinstance(named, (list, tuple)) else ()
    found = [root / Path(name.strip()).expanduser() for name in listed if isinstance(name, str) and name.strip()]
    return found or [root / name for name in CHECKPOINTS]
