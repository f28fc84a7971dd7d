"""The vices as a node of ComfyUI: `vice` says which one, `prey` is JSON. For `--extra-nodes`, and for a real one."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any, ClassVar

from tests.hostile.tries import Tries


def outputs() -> Path:
    """Where this server was told to put what it makes."""
    words = sys.argv
    for number, word in enumerate(words):
        if word.startswith("--output-directory"):
            return Path(word.partition("=")[2] or words[number + 1])
    raise LookupError("no --output-directory")


class Hostile:
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("INT",)
    FUNCTION = "go"
    CATEGORY = "hostile"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        nonce = ("INT", {"default": 0, "min": 0, "max": 1 << 53})
        return {"required": {"vice": ("STRING", {"default": ""}), "prey": ("STRING", {"default": ""}), "nonce": nonce}}

    def go(self, vice: str, prey: str, nonce: int) -> dict[str, Any]:
        tries = Tries()
        (place := outputs() / f"hostile-{nonce}").mkdir(exist_ok=True)  # there when the task is tried once more
        importlib.import_module(f"tests.hostile.{vice}").attempt(tries, json.loads(prey), place)
        shown = [{"filename": loot.path, "subfolder": place.name, "type": "output"} for loot in tries.loot]
        return {"ui": {"text": [json.dumps(tries.saw)], "images": shown}, "result": (nonce,)}


NODE_CLASS_MAPPINGS = {"TestHostile": Hostile}
