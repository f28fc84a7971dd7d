"""Which files a task of the ``media`` handler wants, as data: pure functions that the supervisor and the handler share.

The supervisor may fetch them while the handler still runs the task before; both must name the same sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wan2gp.protocol import Source
from wan2gp.wan_sources import Media, is_url, named

INTERPOLATE = "rife_interpolate_images"
TYPES = (INTERPOLATE,)
"""What the handler takes."""
MOST_IMAGES = 64
RIFE_URL = "https://huggingface.co/DeepBeepMeep/Wan2.1/resolve/main/rife4.26.pkl"
"""The weights of the better of the engine's two."""

FILES: Mapping[str, Media] = {
    row.name: row
    for row in (
        Media(
            "images",
            "image",
            MOST_IMAGES,
            ("image_urls", "input_images"),
            "Two pictures, or more, in their order: the clip goes through all of them.",
        ),
        Media(
            "image_start",
            "image",
            1,
            ("start_image_url", "input_image_path1"),
            "The first picture, instead of `images`.",
        ),
        Media("image_end", "image", 1, ("end_image_url", "input_image_path2"), "The last picture, with `image_start`."),
        Media(
            "video",
            "video",
            1,
            ("video_url", "video_source"),
            "A video whose frames are put closer, or further apart, instead of pictures.",
        ),
    )
}
"""Every parameter that names files, by its name."""
FILE_NAMES: Mapping[str, str] = {name: row.name for row in FILES.values() for name in (row.name, *row.aliases)}
"""The same by every name that a row may use."""


def source_name(parameter: str, index: int) -> str:
    """The name of a file among the sources."""
    return parameter if FILES[parameter].most == 1 else f"{parameter}[{index}]"


def sources_of(params: Any) -> dict[str, Source]:
    """The URLs to download, by name. Never raises: what is wrong with ``params`` is the handler's to say."""
    return dict(_sources(params)) if isinstance(params, dict) else {}


def _sources(params: Mapping[str, Any]) -> Iterator[tuple[str, Source]]:
    for key, given in params.items():
        name = FILE_NAMES.get(key) if isinstance(key, str) else None
        for index, file in enumerate(named(given)[: FILES[name].most] if name else ()):
            if name and is_url(file):
                yield source_name(name, index), Source(file, FILES[name].kind)
