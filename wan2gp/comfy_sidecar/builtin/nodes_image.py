"""The image nodes of ComfyUI's core that this engine has."""

from __future__ import annotations

import hashlib
import random
import string
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan2gp.comfy_sidecar.builtin.folders import Folders
from wan2gp.comfy_sidecar.builtin.media import Frames, of_list, png_texts
from wan2gp.comfy_sidecar.builtin.registry import RUN, Json, NodeType, Run
from wan2gp.comfy_sidecar.builtin.video_write import write_png

if TYPE_CHECKING:
    from wan2gp.comfy_sidecar.builtin.media import Pixels

MAX_SIDE = 16384
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
PIL_METHODS = {
    "nearest-exact": "NEAREST",
    "bilinear": "BILINEAR",
    "area": "BOX",
    "bicubic": "BICUBIC",
    "lanczos": "LANCZOS",
}
PREFIX_TIP = (
    "The prefix for the file to save. This may include formatting information such as %date:yyyy-MM-dd% or "
    "%Empty Latent Image.width% to include values from nodes."
)


def image_nodes(folders: Folders) -> list[NodeType]:
    listed: list[tuple[str, str, Any]] = [
        ("EmptyImage", "EmptyImage", EmptyImage()),
        ("LoadImage", "Load Image", LoadImage(folders)),
        ("SaveImage", "Save Image", SaveImage()),
        ("PreviewImage", "Preview Image", PreviewImage()),
        ("ImageScale", "Upscale Image", ImageScale()),
        ("ImageInvert", "Invert Image", ImageInvert()),
        ("ImageBatch", "Batch Images", ImageBatch()),
    ]
    return [NodeType(name, node, title, "nodes") for name, title, node in listed]


def file_digest(path: Path | None) -> str:
    """What IS_CHANGED answers for a file; new bytes under an old name run again."""
    if path is None:
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


class EmptyImage:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "generate"
    CATEGORY = "image"

    def INPUT_TYPES(self) -> Json:
        side = {"default": 512, "min": 1, "max": MAX_SIDE, "step": 1}
        color = {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "color"}
        batch = {"default": 1, "min": 1, "max": 4096}
        return {
            "required": {
                "width": ("INT", side),
                "height": ("INT", side),
                "batch_size": ("INT", batch),
                "color": ("INT", color),
            }
        }

    def generate(self, width: int, height: int, batch_size: int = 1, color: int = 0) -> tuple[Frames]:
        import numpy as np

        picture = np.empty((height, width, 3), np.uint8)
        picture[:] = (color >> 16 & 0xFF, color >> 8 & 0xFF, color & 0xFF)
        return (Frames(batch_size, width, height, lambda: repeat(picture, batch_size)),)


class LoadImage:
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"
    CATEGORY = "image"

    def __init__(self, folders: Folders) -> None:
        self._folders = folders

    def INPUT_TYPES(self) -> Json:
        return {"required": {"image": (self._folders.listed_inputs(IMAGE_SUFFIXES), {"image_upload": True})}}

    def VALIDATE_INPUTS(self, image: str) -> bool | str:
        return self._folders.resolve(image) is not None or f"Invalid image file: {image}"

    def IS_CHANGED(self, image: str) -> str:
        return file_digest(self._folders.resolve(image))

    def load_image(self, image: str) -> tuple[Frames, Any]:
        import numpy as np
        from PIL import Image, ImageOps, ImageSequence

        path = self._folders.resolve(image)
        if path is None:
            raise FileNotFoundError(f"cannot load image: {image} is gone")
        pictures: list[Pixels] = []
        mask: Any = np.zeros((1, 64, 64), np.float32)
        with Image.open(path) as opened:
            size = opened.size
            for page in ImageSequence.Iterator(opened):
                upright = ImageOps.exif_transpose(page)
                size = upright.size if not pictures else size
                if upright.size != size:
                    continue
                pictures.append(np.asarray(upright.convert("RGB")))
                if "A" in upright.getbands():
                    mask = 1.0 - np.asarray(upright.getchannel("A"), np.float32)[None] / 255.0
        return of_list(pictures, *size), mask


class SaveImage:
    RETURN_TYPES: tuple[str, ...] = ()
    FUNCTION = "save_images"
    CATEGORY = "image"
    OUTPUT_NODE = True
    DESCRIPTION = "Saves the input images to your ComfyUI output directory."
    kind = "output"

    def INPUT_TYPES(self) -> Json:
        images = {"tooltip": "The images to save."}
        prefix = {"default": "ComfyUI", "tooltip": PREFIX_TIP}
        return {
            "required": {"images": ("IMAGE", images), "filename_prefix": ("STRING", prefix)},
            "hidden": _hidden(),
        }

    def save_images(
        self,
        images: Frames,
        run: Run,
        filename_prefix: str = "ComfyUI",
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> Json:
        place = run.folders.place(self.prefixed(filename_prefix), self.kind, images.width, images.height)
        texts = png_texts(prompt, extra_pnginfo) if run.metadata else {}
        counter = place.next_counter("_.*")
        entries = []
        for index, picture in enumerate(images.read()):
            run.check()
            name = f"{place.name.replace('%batch_num%', str(index))}_{counter + index:05}_.png"
            write_png(place.folder / name, picture, texts)
            entries.append(place.entry(name))
        return {"ui": {"images": entries}}

    def prefixed(self, prefix: str) -> str:
        return prefix


class PreviewImage(SaveImage):
    DESCRIPTION = "Saves the input images to your ComfyUI output directory."
    kind = "temp"

    def INPUT_TYPES(self) -> Json:
        return {"required": {"images": ("IMAGE",)}, "hidden": _hidden()}

    def prefixed(self, prefix: str) -> str:
        return f"{prefix}_temp_{''.join(random.choices(string.ascii_lowercase, k=5))}"


def _hidden() -> Json:
    return {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "run": RUN}


class ImageScale:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"
    CATEGORY = "image/upscaling"

    def INPUT_TYPES(self) -> Json:
        side = {"default": 512, "min": 0, "max": MAX_SIDE, "step": 1}
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (METHODS,),
                "width": ("INT", side),
                "height": ("INT", side),
                "crop": (["disabled", "center"],),
            }
        }

    def upscale(self, image: Frames, upscale_method: str, width: int, height: int, crop: str) -> tuple[Frames]:
        """A side of 0 follows the other; both 0 leave the image as it is."""
        if width == 0 and height == 0:
            return (image,)
        width = width or max(1, round(image.width * height / image.height))
        height = height or max(1, round(image.height * width / image.width))
        return (resized(image, width, height, upscale_method, center=crop == "center"),)


def resized(image: Frames, width: int, height: int, method: str, *, center: bool) -> Frames:
    """`center` keeps the proportions and cuts what is too much at both ends."""

    def change(picture: Pixels) -> Pixels:
        import numpy as np
        from PIL import Image, ImageOps

        resampling = Image.Resampling[PIL_METHODS[method]]
        pil = Image.fromarray(picture)
        if center:
            return np.asarray(ImageOps.fit(pil, (width, height), resampling))
        return np.asarray(pil.resize((width, height), resampling))

    return image.mapped(change, width, height)


class ImageInvert:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "invert"
    CATEGORY = "image"

    def INPUT_TYPES(self) -> Json:
        return {"required": {"image": ("IMAGE",)}}

    def invert(self, image: Frames) -> tuple[Frames]:
        return (image.mapped(lambda picture: 255 - picture, image.width, image.height),)


class ImageBatch:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "batch"
    CATEGORY = "image"

    def INPUT_TYPES(self) -> Json:
        return {"required": {"image1": ("IMAGE",), "image2": ("IMAGE",)}}

    def batch(self, image1: Frames, image2: Frames) -> tuple[Frames]:
        """The second takes the size of the first."""
        if (image1.width, image1.height) != (image2.width, image2.height):
            image2 = resized(image2, image1.width, image1.height, "bilinear", center=True)
        return (image1.followed_by(image2),)
