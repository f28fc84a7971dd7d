"""What the handler ``media`` needs of this machine, and whether it can serve: RIFE is a part of Wan2GP."""

from __future__ import annotations

import json
from pathlib import Path

from wan2gp.config import Config
from wan2gp.media_sources import RIFE_URL
from wan2gp.model_places import FOLDERS, WEIGHTS, place_of
from wan2gp.supervisor.needs import Needs
from wan2gp.supervisor.wan_needs import wan_needs

RIFE = Path("postprocessing", "rife")
"""In the checkout."""
CONFIG, CHECKPOINTS = "wgp_config.json", ("ckpts", ".")
FILES = ("rife4.26.pkl", "flownet.pkl")


def media_needs(config: Config) -> Needs:
    """What Wan2GP's own handler reads; without a Wan2GP, the files that rows may name."""
    if config.wan2gp_path:
        return wan_needs(config)
    return Needs(read=config.input_allow_paths)


def rife_store(config: Config) -> str:
    """Where the courier keeps RIFE's weights."""
    return str((config.models_directory() / FOLDERS[WEIGHTS] / place_of(WEIGHTS, RIFE_URL)).parent)


def media_unable(config: Config) -> str | None:
    """Only where the operator wants RIFE alone; else rows that ask for ffmpeg are served, and others told."""
    if config.wan_interpolation != "rife":
        return None
    if not config.wan2gp_path:
        return "no RIFE on this worker (wan.interpolation=rife): set WAN2GP_PATH to Wan2GP's checkout"
    checkout = Path(config.wan2gp_path).expanduser().absolute()
    if not (checkout / RIFE).is_dir():
        return f"no RIFE at {checkout} (WAN2GP_PATH, wan.interpolation=rife): it holds no {RIFE}"
    places = [*_checkpoints(checkout), Path(rife_store(config)), config.models_directory()]
    if config.wan_download or any((place / name).is_file() for place in places for name in FILES):
        return None
    return f"no weights of RIFE (wan.interpolation=rife, wan.download=false): put {FILES[0]} into {checkout / 'ckpts'}"


def _checkpoints(checkout: Path) -> list[Path]:
    """Where the engine looks for weights, as the operator has told it; a spoilt word counts as none."""
    try:
        named = json.loads((checkout / CONFIG).read_text())["checkpoints_paths"]
    except (OSError, ValueError, KeyError, TypeError):
        named = CHECKPOINTS
    listed = named if isinstance(named, (list, tuple)) else CHECKPOINTS
    return [checkout / Path(name).expanduser() for name in listed if isinstance(name, str)]
