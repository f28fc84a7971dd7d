"""The engine's ``wgp_config.json``: what we set, and what of the operator's own is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIXED: Mapping[str, Any] = {
    # It must be there: the engine looks it up without asking. The command line's wins.
    "attention_mode": "sdpa",
    "transformer_types": [],
    "transformer_quantization": "int8",
    "text_encoder_quantization": "int8",
    "video_profile": 4,
    "image_profile": 4,
    "audio_profile": 3.5,
    "profile": 4,
    # Each window of a long video would be a result of its own, beside the whole.
    "keep_intermediate_sliding_windows": 0,
    "clear_file_list": 0,
    "metadata_type": "metadata",
    "image_output_codec": "png",
    "video_output_codec": "libx264_8",
    "video_container": "mp4",
    "embed_source_images": False,
    # Each of these would do something that nobody asked for: load a language model, keep a queue, look for code.
    "enhancer_enabled": 0,
    "save_queue_if_crash": 0,
    "enabled_plugins": [],
    "preload_model_policy": [],
    "notification_sound_enabled": 0,
    "compile": "",
    "loras_root": "loras",
}
SIZE_CHARS = 1 << 20


@dataclass(frozen=True)
class OwnPlaces:
    """Where the operator's own installation has its files, absolute, as far as they are directories."""

    checkpoints: tuple[Path, ...]
    loras: tuple[Path, ...]


def own_places(checkout: Path) -> OwnPlaces:
    """From the checkout's own ``wgp_config.json``, where there is one, and the places that it has without one."""
    found = _own_config(checkout)
    given = found.get("checkpoints_paths")
    names = [name for name in given if isinstance(name, str)] if isinstance(given, list) else ["ckpts", "."]
    root = found.get("loras_root")
    loras = root if isinstance(root, str) and root.strip() else "loras"
    return OwnPlaces(_directories(checkout, names), _directories(checkout, [loras]))


def config_file(checkout: Path, weights: Path, models: Path | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """``weights``: ours, where the engine puts what it gets. ``models``: a store of weights. Both come before what the
    operator has: the first directory is the one that is written to."""
    places = [weights, *([models] if models is not None else []), *own_places(checkout).checkpoints]
    return {**FIXED, **options, "checkpoints_paths": [str(place) for place in dict.fromkeys(places)]}


def _own_config(checkout: Path) -> dict[str, Any]:
    try:
        with (checkout / "wgp_config.json").open(encoding="utf-8") as file:
            found = json.loads(file.read(SIZE_CHARS))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _directories(checkout: Path, names: list[str]) -> tuple[Path, ...]:
    found = [(checkout / Path(name.strip()).expanduser()).resolve() for name in names if name.strip()]
    return tuple(place for place in dict.fromkeys(found) if place.is_dir())
