"""The video formats of VHS_VideoCombine: which encoder each takes, and what its widgets mean to that encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Widgets = dict[str, Any]


@dataclass(frozen=True)
class Colours:
    """FFmpeg's numbers for a video's colour space; `full_range`: 0 is black and 255 white."""

    matrix: int
    primaries: int
    transfer: int
    full_range: bool


BT709 = Colours(1, 1, 1, False)
"""What a player expects of a video."""
SRGB = Colours(0, 1, 13, True)
"""Pictures kept as they are."""


@dataclass(frozen=True)
class Recipe:
    """How to encode. `colours` None: not said in the file. `audio_codec` None: the format holds no sound.

    `many_files`: the suffix has a %03d in it and each picture is a file.
    """

    suffix: str
    codec: str
    pixel_format: str
    audio_codec: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    colours: Colours | None = BT709
    keeps_prompt: bool = True
    many_files: bool = False


CORE = Recipe("mp4", "libx264", "yuv420p", "aac", colours=None)
"""What ComfyUI's own SaveVideo writes."""


def recipe_of(name: str, widgets: Widgets) -> Recipe:
    """The recipe of a format with its widgets filled in. Raises ValueError for one this engine cannot write."""
    make = _RECIPES.get(name)
    if make is None:
        raise ValueError(f"cannot write {name}: this engine has no encoder for it; video/h264-mp4 always works")
    return make(widgets)


def _keeps_prompt(widgets: Widgets) -> bool:
    return str(widgets.get("save_metadata", True)) != "False"


def _with_crf(
    suffix: str, codec: str, pixel_format: str, audio: str, crf: int, **options: str
) -> Callable[[Widgets], Recipe]:
    """A format with the widgets pix_fmt, crf and save_metadata; these are its defaults."""

    def make(widgets: Widgets) -> Recipe:
        chosen = {**options, "crf": str(widgets.get("crf", crf))}
        pixels = str(widgets.get("pix_fmt", pixel_format))
        return Recipe(suffix, codec, pixels, audio, chosen, keeps_prompt=_keeps_prompt(widgets))

    return make


def _prores(widgets: Widgets) -> Recipe:
    names = {"lt": "1", "standard": "2", "hq": "3", "4444": "4", "4444xq": "5"}
    profile = str(widgets.get("profile", "hq"))
    options = {"profile": names.get(profile, profile)}
    return Recipe("mov", "prores_ks", "yuv444p10le", "pcm_s16le", options, keeps_prompt=False)


def _ffv1(widgets: Widgets) -> Recipe:
    defaults = {"level": 3, "coder": 1, "context": 1, "gop_size": 1, "slices": 16, "slicecrc": 1}
    options = {name: str(widgets.get(name, value)) for name, value in defaults.items()}
    options["g"] = options.pop("gop_size")
    pixels = str(widgets.get("pix_fmt", "rgba64le"))
    return Recipe("mkv", "ffv1", pixels, "flac", options, SRGB, _keeps_prompt(widgets))


def _pictures(pixel_format: str) -> Callable[[Widgets], Recipe]:
    recipe = Recipe("%03d.png", "png", pixel_format, colours=SRGB, keeps_prompt=False, many_files=True)
    return lambda _: recipe


_RECIPES: dict[str, Callable[[Widgets], Recipe]] = {
    "video/h264-mp4": _with_crf("mp4", "libx264", "yuv420p", "aac", 19),
    "video/h265-mp4": _with_crf(
        "mp4", "libx265", "yuv420p10le", "aac", 22, **{"x265-params": "log-level=error", "tag": "hvc1"}
    ),
    "video/webm": _with_crf(
        "webm", "libvpx-vp9", "yuv420p", "libopus", 20, **{"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
    ),
    "video/av1-webm": _with_crf("webm", "libsvtav1", "yuv420p10le", "libopus", 23),
    "video/ProRes": _prores,
    "video/ffv1-mkv": _ffv1,
    "video/8bit-png": _pictures("rgb24"),
    "video/16bit-png": _pictures("rgba64be"),
}
