"""A node that leaves processes behind and then, when it is run for the first time, never ends. For `--extra-nodes`."""

from __future__ import annotations

import time
from typing import Any

from tests.builtin_faults import nodes
from tests.litter import leave


class Litter(nodes.Fault):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return nodes.inputs(note=("STRING", {"default": ""}))

    def go(self, note: str, run: Any, nonce: int, after: Any = None) -> tuple[int]:
        if leave(note):
            time.sleep(600)
        return (nonce,)


NODE_CLASS_MAPPINGS = {**nodes.NODE_CLASS_MAPPINGS, "FaultLitter": Litter}
