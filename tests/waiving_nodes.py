"""Classes whose own VALIDATE_INPUTS replaces the checks of some inputs, for `--extra-nodes`."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


class Waives:
    """Takes any width and any choice, whatever it declares; but no height of 13."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "run", (), True

    @classmethod
    def INPUT_TYPES(cls) -> Json:
        return {
            "required": {
                "width": ("INT", {"default": 1, "min": 1, "max": 10}),
                "height": ("INT", {"default": 1, "min": 1, "max": 20}),
                "choice": (["a", "b"],),
                "depth": ("INT", {"default": 1, "min": 1, "max": 10}),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, width: Any, height: Any, choice: Any) -> bool | str:
        return "thirteen is no height" if height == 13 else True

    def run(self, **given: Any) -> Json:
        return {"ui": {"text": [str(sorted(given.items()))]}, "result": ()}


NODE_CLASS_MAPPINGS = {"Waives": Waives}
