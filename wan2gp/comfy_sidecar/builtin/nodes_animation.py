"""The nodes of ComfyUI's core that save moving pictures: WebP, PNG and WebM. Their key is `images`, with `animated`."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan2gp.comfy_sidecar.builtin.folders import SavePlace
from wan2gp.comfy_sidecar.builtin.formats import Recipe
from wan2gp.comfy_sidecar.builtin.media import Frames, png_texts
from wan2gp.comfy_sidecar.builtin.registry import RUN, Json, NodeType, Run
from wan2gp.comfy_sidecar.builtin.video_write import encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from PIL import Image

METHODS = {"default": 4, "fastest": 0, "slowest": 6}
EXIF_MODEL, EXIF_MAKE = 0x0110, 0x010F
CODECS = {
    "vp9": ("libvpx-vp9", "yuv420p", {"b": "0"}),
    "av1": ("libsvtav1", "yuv420p10le", {"preset": "6"}),
}
CRF_TIP = "Higher crf means lower quality with a smaller file size, lower crf means higher quality higher filesize."
FPS: Json = {"min": 0.01, "max": 1000.0, "step": 0.01}


def animation_nodes() -> list[NodeType]:
    images, video = "comfy_extras.nodes_images", "comfy_extras.nodes_video"
    return [
        NodeType("SaveAnimatedWEBP", SaveAnimatedWEBP(), "SaveAnimatedWEBP", images),
        NodeType("SaveAnimatedPNG", SaveAnimatedPNG(), "SaveAnimatedPNG", images),
        NodeType("SaveWEBM", SaveWEBM(), None, video, has_schema=True),
    ]


class _Save:
    RETURN_TYPES: tuple[str, ...] = ()
    FUNCTION = "save"
    CATEGORY = "image/animation"
    OUTPUT_NODE = True
    suffix = ""

    def place(self, images: Frames, prefix: str, run: Run) -> tuple[SavePlace, str]:
        """Where to, and the file's name."""
        place = run.folders.place(prefix, "output", images.width, images.height)
        return place, f"{place.name}_{place.next_counter('_.*'):05}_.{self.suffix}"


class SaveAnimatedWEBP(_Save):
    suffix = "webp"

    def INPUT_TYPES(self) -> Json:
        return _declared(
            fps=("FLOAT", {"default": 6.0, **FPS}),
            lossless=("BOOLEAN", {"default": True}),
            quality=("INT", {"default": 80, "min": 0, "max": 100}),
            method=(list(METHODS),),
        )

    def save(
        self,
        images: Frames,
        filename_prefix: str,
        fps: float,
        lossless: bool,
        quality: int,
        method: str,
        run: Run,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> Json:
        place, name = self.place(images, filename_prefix, run)
        pictures = _pictures(images, run)
        first = next(pictures)
        exif = first.getexif()
        if run.metadata:
            if prompt is not None:
                exif[EXIF_MODEL] = f"prompt:{json.dumps(prompt)}"
            for index, (key, text) in enumerate((extra_pnginfo or {}).items()):
                exif[EXIF_MAKE - index] = f"{key}:{json.dumps(text)}"
        how = {"lossless": lossless, "quality": quality, "method": METHODS[method], "exif": exif}
        _animate(place.folder / name, first, pictures, fps, how)
        return {"ui": {"images": [place.entry(name)], "animated": (images.count != 1,)}}


class SaveAnimatedPNG(_Save):
    suffix = "png"

    def INPUT_TYPES(self) -> Json:
        level = {"default": 4, "min": 0, "max": 9}
        return _declared(fps=("FLOAT", {"default": 6.0, **FPS}), compress_level=("INT", level))

    def save(
        self,
        images: Frames,
        filename_prefix: str,
        fps: float,
        compress_level: int,
        run: Run,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> Json:
        from PIL.PngImagePlugin import PngInfo

        place, name = self.place(images, filename_prefix, run)
        info = PngInfo()
        for key, text in (png_texts(prompt, extra_pnginfo) if run.metadata else {}).items():
            info.add(b"comf", key.encode() + b"\0" + json.dumps(text).encode(), after_idat=True)
        pictures = _pictures(images, run)
        how = {"pnginfo": info, "compress_level": compress_level}
        # Pillow goes over them twice, first for their modes.
        _animate(place.folder / name, next(pictures), list(pictures), fps, how)
        return {"ui": {"images": [place.entry(name)], "animated": (True,)}}


class SaveWEBM(_Save):
    CATEGORY = "image/video"
    EXPERIMENTAL = True
    suffix = "webm"

    def INPUT_TYPES(self) -> Json:
        crf = {"tooltip": CRF_TIP, "default": 32.0, "min": 0, "max": 63.0, "step": 1}
        return {
            "required": {
                "images": ("IMAGE", {}),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "multiline": False}),
                "codec": ("COMBO", {"multiselect": False, "options": list(CODECS)}),
                "fps": ("FLOAT", {"default": 24.0, **FPS}),
                "crf": ("FLOAT", crf),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "run": RUN},
        }

    def save(
        self,
        images: Frames,
        filename_prefix: str,
        codec: str,
        fps: float,
        crf: float,
        run: Run,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> Json:
        place, name = self.place(images, filename_prefix, run)
        encoder, pixels, options = CODECS[codec]
        recipe = Recipe("webm", encoder, pixels, options={**options, "crf": f"{crf:g}"}, colours=None)
        texts = png_texts(prompt, extra_pnginfo) if run.metadata else {}
        rate = Fraction(round(fps * 1000), 1000)
        encode(place.folder / name, images.read(), rate, recipe, texts=texts, written=run.check)
        return {"ui": {"images": [place.entry(name)], "animated": (True,)}}


def _declared(**more: Any) -> Json:
    prefix = ("STRING", {"default": "ComfyUI"})
    hidden = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "run": RUN}
    return {"required": {"images": ("IMAGE",), "filename_prefix": prefix, **more}, "hidden": hidden}


def _pictures(images: Frames, run: Run) -> Iterator[Image.Image]:
    from PIL import Image

    for picture in images.read():
        run.check()
        yield Image.fromarray(picture)


def _animate(path: Path, first: Image.Image, rest: Iterable[Image.Image], fps: float, how: Json) -> None:
    first.save(path, save_all=True, append_images=rest, duration=int(1000.0 / fps), **how)
