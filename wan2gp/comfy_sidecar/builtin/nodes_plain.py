"""Nodes of ComfyUI's core whose values are neither pictures nor sound: texts and latents."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

from wan2gp.comfy_sidecar.builtin.media import png_texts
from wan2gp.comfy_sidecar.builtin.registry import RUN, Json, NodeType, Run

CHUNK_BYTES = 1 << 20


def plain_nodes() -> list[NodeType]:
    return [
        NodeType("PrimitiveString", PrimitiveString(), "String", "comfy_extras.nodes_primitive", has_schema=True),
        NodeType("PreviewAny", PreviewAny(), "Preview Any", "comfy_extras.nodes_preview_any"),
        NodeType("EmptyLatentImage", EmptyLatentImage(), "Empty Latent Image", "nodes"),
        NodeType("SaveLatent", SaveLatent(), "SaveLatent", "nodes"),
    ]


class PrimitiveString:
    RETURN_TYPES = ("STRING",)
    FUNCTION = "execute"
    CATEGORY = "utils/primitive"

    def INPUT_TYPES(self) -> Json:
        return {"required": {"value": ("STRING", {"multiline": False})}}

    def execute(self, value: str) -> tuple[str]:
        return (value,)


class PreviewAny:
    RETURN_TYPES: tuple[str, ...] = ()
    FUNCTION = "main"
    CATEGORY = "utils"
    OUTPUT_NODE = True

    def INPUT_TYPES(self) -> Json:
        return {"required": {"source": ("*", {})}}

    def main(self, source: Any = None) -> Json:
        return {"ui": {"text": (self._shown(source),)}}

    def _shown(self, source: Any) -> str:
        if source is None:
            return "None"
        if isinstance(source, (str, int, float)):
            return str(source)
        try:
            return json.dumps(source)
        except (TypeError, ValueError, RecursionError):
            return str(source)


@dataclass(frozen=True)
class Latent:
    """A LATENT of zeros; nothing here computes one."""

    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"<latent {'x'.join(map(str, self.shape))}>"


class EmptyLatentImage:
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The empty latent image batch.",)
    FUNCTION = "generate"
    CATEGORY = "latent"
    DESCRIPTION = "Create a new batch of empty latent images to be denoised via sampling."

    def INPUT_TYPES(self) -> Json:
        side = {"default": 512, "min": 16, "max": 16384, "step": 8}
        batch = {"default": 1, "min": 1, "max": 4096, "tooltip": "The number of latent images in the batch."}
        return {
            "required": {
                "width": ("INT", {**side, "tooltip": "The width of the latent images in pixels."}),
                "height": ("INT", {**side, "tooltip": "The height of the latent images in pixels."}),
                "batch_size": ("INT", batch),
            }
        }

    def generate(self, width: int, height: int, batch_size: int = 1) -> tuple[Latent]:
        return (Latent((batch_size, 4, height // 8, width // 8)),)


class SaveLatent:
    RETURN_TYPES: tuple[str, ...] = ()
    FUNCTION = "save"
    CATEGORY = "_for_testing"
    OUTPUT_NODE = True

    def INPUT_TYPES(self) -> Json:
        return {
            "required": {"samples": ("LATENT",), "filename_prefix": ("STRING", {"default": "latents/ComfyUI"})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "run": RUN},
        }

    def save(
        self,
        samples: Latent,
        run: Run,
        filename_prefix: str = "ComfyUI",
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> Json:
        """The file is a safetensors file: the length of a JSON header, the header, the numbers."""
        place = run.folders.place(filename_prefix, "output", 0, 0)
        name = f"{place.name}_{place.next_counter('_.*'):05}_.latent"
        size = 4 * math.prod(samples.shape)
        texts = png_texts(prompt, extra_pnginfo) if run.metadata else {}
        header = {
            "__metadata__": {key: json.dumps(text) for key, text in texts.items()},
            "latent_format_version_0": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
            "latent_tensor": {"dtype": "F32", "shape": list(samples.shape), "data_offsets": [0, size]},
        }
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        with (place.folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(head)) + head)
            for start in range(0, size, CHUNK_BYTES):
                run.check()
                file.write(bytes(min(CHUNK_BYTES, size - start)))
        return {"ui": {"latents": [place.entry(name)]}}
