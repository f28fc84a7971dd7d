"""Which files a generation task's ``params`` want, as data: pure functions that the supervisor and the handler share.

The supervisor may fetch them while the engine still runs the task before; both must name the same sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wan2gp.protocol import Source

LONGEST_URL = 8192
"""Characters."""
MOST_FILES = 64
"""The most files of one parameter."""
URL_STARTS = ("http://", "https://", "storage:")


@dataclass(frozen=True)
class Media:
    """A parameter that names files. ``most``: how many it may name."""

    name: str
    kind: str
    """``video``, ``image``, ``audio`` or ``any``."""
    most: int = 1
    aliases: tuple[str, ...] = ()
    text: str = ""


MEDIA: Mapping[str, Media] = {
    row.name: row
    for row in (
        Media("image_start", "image", 1, ("start_image_url",), "The first picture of the video."),
        Media("image_end", "image", 1, ("end_image_url",), "The last picture of the video."),
        Media("image_refs", "image", MOST_FILES, (), "Pictures of people, things or places that are to be seen."),
        Media("image_guide", "image", 1, (), "The picture that leads an image model."),
        Media("image_mask", "image", 1, (), "White where `image_guide` may be changed."),
        Media("video_guide", "video", 1, (), "The video that leads the model."),
        Media("video_guide2", "video", 1, (), "A second one, for the models that take it."),
        Media("video_mask", "video", 1, (), "White where `video_guide` may be changed."),
        Media("video_source", "video", 1, (), "The video that is continued; the result begins with it."),
        Media("audio_guide", "audio", 1, (), "The sound or speech that leads the model."),
        Media("audio_guide2", "audio", 1, (), "A second speaker's."),
        Media("audio_source", "audio", 1, (), "The sound that is put under the video."),
        Media("custom_guide", "any", 1, (), "A model's own guide file: a trajectory, a camera path."),
        Media(
            "image",
            "image",
            1,
            ("image_url", "style_reference_image", "subject_reference_image"),
            "The picture that the type starts from.",
        ),
        Media("mask", "image", 1, ("mask_url",), "White where the picture is to be changed."),
    )
}
"""Every parameter that names files, by its name."""
MEDIA_NAMES: Mapping[str, str] = {name: media.name for media in MEDIA.values() for name in (media.name, *media.aliases)}
"""The same by every name that a row may use."""


def named(given: Any) -> list[str]:
    """The files that the value of such a parameter names; what is malformed is left for the handler to refuse."""
    if isinstance(given, str):
        return [given] if given else []
    return [each for each in given if isinstance(each, str) and each] if isinstance(given, list) else []


def source_name(parameter: str, index: int) -> str:
    """The name of a file among the sources and in messages."""
    return parameter if MEDIA[parameter].most == 1 else f"{parameter}[{index}]"


def sources_of(params: Any) -> dict[str, Source]:
    """The URLs to download, by name. Never raises: what is wrong with ``params`` is the handler's to say."""
    return dict(_sources(params)) if isinstance(params, dict) else {}


def _sources(params: Mapping[str, Any]) -> Iterator[tuple[str, Source]]:
    for key, given in params.items():
        name = MEDIA_NAMES.get(key) if isinstance(key, str) else None
        if name is None:
            continue
        for index, file in enumerate(named(given)[: MEDIA[name].most]):
            if is_url(file):
                yield source_name(name, index), Source(file, MEDIA[name].kind)


def is_url(file: str) -> bool:
    """True for what the courier fetches: http, https, and ``storage://bucket/path``."""
    return len(file) <= LONGEST_URL and file.lstrip().lower().startswith(URL_STARTS)
