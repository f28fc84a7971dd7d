"""Which files a comfy task's ``params`` want, as data: pure functions that the supervisor and the handler share.

The supervisor may fetch them while the engine still runs the task before, without importing any of the handler's code.
Both must name the same sources, so both ask here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wan2gp.protocol import Source

VIDEO_URL = "video_url"
INPUTS = "inputs"
KINDS = ("video", "image", "mask", "audio", "any")
"""What an input may be said to be; a mask is an image for whoever fetches it."""
DATA_SCHEME = "data:"
MOST_INPUTS = 256
"""The most entries of ``inputs`` in a task."""
LONGEST_URL = 8192
"""Characters."""


@dataclass(frozen=True)
class Loader:
    """A class known to load a file. ``field`` names the file; ``wants_path``: by a path of the machine."""

    field: str
    kind: str
    wants_path: bool = False


LOADERS: Mapping[str, Loader] = {
    "LoadImage": Loader("image", "image"),
    "LoadImageMask": Loader("image", "mask"),
    "LoadVideo": Loader("file", "video"),
    "LoadAudio": Loader("audio", "audio"),
    "LoadLatent": Loader("latent", "any"),
    "VHS_LoadVideo": Loader("video", "video"),
    "VHS_LoadVideoFFmpeg": Loader("video", "video"),
    "VHS_LoadVideoPath": Loader("video", "video", wants_path=True),
    "VHS_LoadVideoFFmpegPath": Loader("video", "video", wants_path=True),
    "VHS_LoadImagePath": Loader("image", "image", wants_path=True),
    "VHS_LoadAudio": Loader("audio_file", "audio", wants_path=True),
    "VHS_LoadAudioUpload": Loader("audio", "audio"),
}
FIELD_KINDS: Mapping[str, str] = {
    "video": "video",
    "image": "image",
    "mask": "mask",
    "audio": "audio",
    "audio_file": "audio",
}
"""What an unknown class's field of that name loads."""


def kind_of(class_type: str, field: str | None) -> str:
    """What the field of a class takes, one of :data:`KINDS`; ``field`` None: the one that names its file."""
    loader = LOADERS.get(class_type)
    if loader is not None and field in (None, loader.field):
        return loader.kind
    return FIELD_KINDS.get(field or "", "any")


def fetched_kind(kind: str) -> str:
    """``kind`` in the words of :class:`~wan2gp.protocol.Source`."""
    return "image" if kind == "mask" else kind


def input_label(index: int) -> str:
    """The name of an entry of ``inputs``: among the sources and in messages."""
    return f"{INPUTS}[{index}]"


def is_data(url: str) -> bool:
    """True for a ``data:`` URL: the file stands in the row, nothing is fetched."""
    return url.lstrip()[: len(DATA_SCHEME)].lower() == DATA_SCHEME


def sources_of(params: Any) -> dict[str, Source]:
    """The URLs to download, by name. Never raises: what is wrong with ``params`` is the handler's to say."""
    if not isinstance(params, dict):
        return {}
    sources = {}
    if _fetched(params.get(VIDEO_URL)):
        sources[VIDEO_URL] = Source(params[VIDEO_URL], "video")
    given = params.get(INPUTS)
    for index, entry in enumerate(given[:MOST_INPUTS] if isinstance(given, list) else ()):
        if isinstance(entry, dict) and _fetched(entry.get("url")):
            kind = fetched_kind(_kind(entry, params.get("workflow")))
            sources[input_label(index)] = Source(entry["url"], kind)
    return sources


def _fetched(url: Any) -> bool:
    return isinstance(url, str) and 0 < len(url) <= LONGEST_URL and not is_data(url)


def _kind(entry: Mapping[str, Any], workflow: Any) -> str:
    """As much as can be told without reading a graph; the handler looks again at what arrived."""
    if isinstance(entry.get("kind"), str) and entry["kind"]:
        return entry["kind"] if entry["kind"] in KINDS else "any"
    class_type, node_id = entry.get("class_type"), entry.get("node_id")
    if class_type is None and isinstance(workflow, dict) and isinstance(node_id, (str, int)):
        node = workflow.get(str(node_id))
        class_type = node.get("class_type") if isinstance(node, dict) else None
    field = entry.get("field")
    if not isinstance(class_type, str):
        return "any"
    return kind_of(class_type, field if isinstance(field, str) and field else None)
