"""Models of the engine's once more, without a plan that is part of them: for rows that bring a plan of their own.

`phase_config` says which phases there are, and which LoRAs each has. Those that are built into a model would come on
top of them, twice as strong where both name the same, and phases that are locked would stay as they are. The engine
lists what stands in its directory for finetunes, and takes a model's name for the files of it: so a twin costs a few
lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SUFFIX = "__plain"
PLAN = ("loras", "loras_multipliers", "lock_guidance_phases")
FILES = ("URLs", "URLs2")
FOLDERS = ("defaults", "finetunes")
FILE_CHARS = 1 << 20


def plain_twins(checkout: Path) -> dict[str, dict[str, Any]]:
    """By name, as the engine's finetune files have them: of each model of the checkout that has a plan built in."""
    found: dict[str, dict[str, Any]] = {}
    for name, definition in _definitions(checkout):
        found.pop(name + SUFFIX, None)  # a finetune may take a model's place
        if any(definition["model"].get(key) for key in PLAN):
            found[name + SUFFIX] = _twin(name, definition)
    return found


def _twin(name: str, definition: Mapping[str, Any]) -> dict[str, Any]:
    model = {key: value for key, value in definition["model"].items() if key not in PLAN}
    model |= {key: name for key in FILES if key in model}
    label = f"{model.get('name', name)}, without its plan"
    return {**definition, "model": {**model, "name": label, "visible": False}}


def _definitions(checkout: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for folder in FOLDERS:
        for path in sorted((checkout / folder).glob("*.json")):
            try:
                with path.open(encoding="utf-8") as file:
                    found = json.loads(file.read(FILE_CHARS))
            except (OSError, ValueError, RecursionError):  # the engine itself says what it thinks of such a file
                continue
            if isinstance(found, dict) and isinstance(found.get("model"), dict):
                yield path.stem, found
