"""Two nodes for a real ComfyUI: one that expands into a subgraph, one that saves under the key `3d`."""

from __future__ import annotations

import os
import struct
from typing import Any, ClassVar

import folder_paths  # type: ignore[import-not-found]
from comfy_execution.graph_utils import GraphBuilder  # type: ignore[import-not-found]

_GLTF = b'{"asset":{"version":"2.0"}} '
SMALLEST_GLB = b"glTF" + struct.pack("<III4s", 2, 20 + len(_GLTF), len(_GLTF), b"JSON") + _GLTF


class Expand:
    """Makes a picture, and a node that saves it."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("IMAGE",)
    FUNCTION = "go"
    CATEGORY = "test"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"nonce": ("INT", {"default": 0}), "prefix": ("STRING", {"default": "exp"})}}

    def go(self, nonce: int, prefix: str) -> dict[str, Any]:
        graph = GraphBuilder()
        image = graph.node("EmptyImage", width=64, height=64, batch_size=1, color=nonce)
        graph.node("SaveImage", images=image.out(0), filename_prefix=prefix)
        return {"result": (image.out(0),), "expand": graph.finalize()}


class Save3D:
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("INT",)
    FUNCTION = "go"
    CATEGORY = "test"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"filename_prefix": ("STRING", {"default": "mesh/ComfyUI"}), "nonce": ("INT", {})}}

    def go(self, filename_prefix: str, nonce: int) -> dict[str, Any]:
        root = folder_paths.get_output_directory()
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, root)
        file = f"{name}_{counter:05}_.glb"
        with open(os.path.join(folder, file), "wb") as opened:
            opened.write(SMALLEST_GLB)
        return {"ui": {"3d": [{"filename": file, "subfolder": subfolder, "type": "output"}]}, "result": (nonce,)}


NODE_CLASS_MAPPINGS = {"TestExpand": Expand, "TestSave3D": Save3D}
