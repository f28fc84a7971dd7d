"""Which files a graph may name: those of its own task, and what lies in folders that the operator allows.

Loaders are no fence. ComfyUI joins a name to its input folder without a look at it, so that ``/etc/x`` and ``../x``
lead out of it; VideoHelperSuite takes a quotation mark off first, and fetches what looks like a web address. A value
may be wrapped (``{"__value__": "/etc/x"}``), be one of a list, or come through a link from a node that makes it up.
Sources: ``folder_paths.py`` and ``execution.py`` of ComfyUI, ``videohelpersuite/utils.py``.

Inputs of other classes are judged by the shape of their names (``name_shapes``), and lightly.

What a custom node reads on its own account is not seen here: that is for the sandbox to stop.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wan2gp.comfy_sidecar.catalogue import NodeClass
from wan2gp.comfy_sidecar.errors import BadTarget
from wan2gp.comfy_sidecar.graph_shape import Graph, describe_node
from wan2gp.comfy_sidecar.name_shapes import RUNS_FOLDER, fault_of_shape, words_of

PATH_LOADERS: Mapping[str, frozenset[str]] = {
    "VHS_LoadVideoPath": frozenset({"video"}),
    "VHS_LoadVideoFFmpegPath": frozenset({"video"}),
    "VHS_LoadImagePath": frozenset({"image"}),
    "VHS_LoadImagesPath": frozenset({"directory"}),
    "VHS_LoadAudio": frozenset({"audio_file"}),
}
"""Classes that take a path of the machine, and their inputs that do."""
NAME_LOADERS: Mapping[str, frozenset[str]] = {
    "LoadImage": frozenset({"image"}),
    "LoadImageMask": frozenset({"image"}),
    "LoadImageOutput": frozenset({"image"}),
    "LoadImageSetNode": frozenset({"images"}),
    "LoadImageSetFromFolderNode": frozenset({"folder"}),
    "LoadImageTextSetFromFolderNode": frozenset({"folder"}),
    "LoadLatent": frozenset({"latent"}),
    "LoadVideo": frozenset({"file"}),
    "LoadAudio": frozenset({"audio"}),
    "RecordAudio": frozenset({"audio"}),
    "Load3D": frozenset({"model_file", "image"}),
    "Load3DAnimation": frozenset({"model_file", "image"}),
    "WebcamCapture": frozenset({"image"}),
    "VHS_LoadVideo": frozenset({"video"}),
    "VHS_LoadVideoFFmpeg": frozenset({"video"}),
    "VHS_LoadImages": frozenset({"directory"}),
    "VHS_LoadAudioUpload": frozenset({"audio"}),
}
"""Classes that take a name in the input folder."""
FILE_FIELDS = frozenset({"video", "image", "audio", "file", "audio_file", "directory", "mask"})
"""Inputs of loaders of any pack that name a file or folder."""
GUARDED_FIELDS = FILE_FIELDS | {
    *("latent", "images", "folder", "model_file", "path", "file_path", "filepath", "filename", "file_name", "dir"),
    *("image_path", "video_path", "audio_path", "folder_path", "directory_path", "input_path", "input_dir"),
}
"""More of them: not likely enough to put a file there unasked, likely enough to look at."""
PATH_MARK = "vhs_path_extensions"
"""How VideoHelperSuite, and who follows it, says that an input is a path of the machine."""
RELATIVE_ROOT = "input"
SHOWN_CHARS = 100
_URL = re.compile(r"https?:", re.IGNORECASE)
_ELSEWHERE = re.compile(
    r"[a-z][a-z0-9+.-]*://|(async|cache|concatf?|crypto|data|fd|file|lavfi|md5|pipe|subfile|tcp|tee|udp|unix)[:,]",
    re.IGNORECASE,
)
"""What FFmpeg takes for a protocol and not for a name."""
_ANNOTATIONS = ("[input]", "[output]", "[temp]")
GIVE = "give the file by `inputs` or video_url"


@dataclass(frozen=True)
class Allowed:
    """Where names may lead besides the input folder. Nowhere, unless told."""

    paths: tuple[str, ...] = ()
    """Absolute directories of the machine that ComfyUI runs on, with what is below them."""
    relative: bool = False
    """``input/x`` as a path: on a server of somebody else's its input folder is below its working directory."""

    def path(self, name: str) -> bool:
        """Whether ``name`` is an absolute path inside, links followed."""
        return (
            name.startswith("/")
            and "\0" not in name
            and any(_inside(os.path.realpath(name), top) for top in self.paths)
        )


Declared = Callable[[str], Mapping[str, bool]]
"""``declared(class_type)``: more of its inputs that name files; True: by a path of the machine."""


def declared_files(known: NodeClass | None) -> dict[str, bool]:
    """What a class itself says of its inputs: those that name files; True: by a path of the machine."""
    found = {}
    for name, spec in (known.inputs if known is not None else {}).items():
        if PATH_MARK in spec.options and name != "filename_prefix":
            found[name] = True
        elif spec.uploads:
            found[name] = False
    return found


def _nothing(class_type: str) -> Mapping[str, bool]:
    return {}


def refuse_outside_names(graph: Graph, allowed: Allowed | None = None, declared: Declared = _nothing) -> None:
    """Raises :class:`BadTarget` for the first name that leads to what is not the task's. Empty names are none yet."""
    allowed = allowed or Allowed()
    for node_id, node in graph.items():
        known = _file_fields(node["class_type"], declared)
        for field, value in sorted(node["inputs"].items()):
            why = _fault(value, known[field], allowed) if field in known else None
            if why is None and known.get(field) is None:
                why = _fault_by_shape(value, words_of(field), allowed)
            if why is not None:
                shown = repr(value)
                shown = shown if len(shown) <= SHOWN_CHARS else f"{shown[:SHOWN_CHARS]}…"
                raise BadTarget(f"{describe_node(graph, node_id)}: {_plain(field)} {shown} {why}")


def _plain(field: str) -> str:
    return field[:SHOWN_CHARS] if field.isprintable() else repr(field[:SHOWN_CHARS])


def _file_fields(class_type: str, declared: Declared) -> dict[str, bool | None]:
    """The inputs to look at; True: a path of the machine, False: a name, None: as good as can be told."""
    loads = "load" in class_type.casefold()
    found: dict[str, bool | None] = dict.fromkeys(GUARDED_FIELDS if loads else (), None)
    found.update(declared(class_type))
    found.update(dict.fromkeys(NAME_LOADERS.get(class_type, ()), False))
    found.update(dict.fromkeys(PATH_LOADERS.get(class_type, ()), True))
    return found


def _fault(value: Any, wants_path: bool | None, allowed: Allowed) -> str | None:
    if isinstance(value, list) and _is_link(value):
        if wants_path is None:  # the picture itself, more likely than its name
            return None
        return f"comes from another node, so that nobody can tell which file it will be: {GIVE}"
    for name in names_in(value):
        if (why := _fault_of_name(name, wants_path, allowed)) is not None:
            return why
    return None


def _fault_by_shape(value: Any, words: frozenset[str], allowed: Allowed) -> str | None:
    """Of an input that names a file as far as its own name tells."""
    if not words or (isinstance(value, list) and _is_link(value)):
        return None
    for name in map(bare, names_in(value)):
        if not allowed.path(name) and (why := fault_of_shape(name, words)) is not None:
            return f"{why}: name it relative to its own folder, or {GIVE}"
    return None


def _is_link(value: list[Any]) -> bool:
    return len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], (int, float))


def names_in(value: Any) -> Iterator[str]:
    """Every string in a value, however wrapped."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from names_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from names_in(part)


def _fault_of_name(text: str, wants_path: bool | None, allowed: Allowed) -> str | None:
    name = bare(text)
    if not name:
        return None
    if any(character < " " for character in name):
        return f"holds a control character: {GIVE}"
    if _URL.match(name):
        # Fetched by the node itself, it would pass by what guards downloads; as a name it is a folder `http:`.
        return None if wants_path is None else f"is a web address, which no name may be here: {GIVE}"
    if allowed.path(name) and not name.endswith(_ANNOTATIONS):
        return None
    if leads_out(name):
        return f"leads out of ComfyUI's input folder: {GIVE}"
    if wants_path:
        head, _, name = name.partition("/")
        if not (allowed.relative and head == RELATIVE_ROOT):
            return f"leads out of ComfyUI's input folder, since it is a path on the worker: {GIVE}"
    return _fault_inside(name)


def _fault_inside(name: str) -> str | None:
    plain = name.rstrip()
    if plain.endswith(_ANNOTATIONS[1:]):
        return f"leads out of ComfyUI's input folder, to what other tasks may have made: {GIVE}"
    cut = plain[: -len(_ANNOTATIONS[0]) - 1] if plain.endswith(_ANNOTATIONS[0]) else plain
    return f"belongs to another task: {GIVE}" if RUNS_FOLDER in (_first(plain), _first(cut)) else None


def _first(name: str) -> str:
    """The folder, or the name if there is none."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return parts[0] if parts else ""


def bare(text: str) -> str:
    """Without the blanks and quotation marks that loaders take off."""
    while (less := text.strip().strip("\"'")) != text:
        text = less
    return text


def leads_out(text: str) -> bool:
    """True for an absolute name, one that climbs, and one that means a protocol."""
    name = bare(text)
    if _ELSEWHERE.match(name):
        return True
    # ComfyUI cuts an annotation off by its length, with the character before it, whichever that is.
    for ending in _ANNOTATIONS:
        if name.endswith(ending) and _climbs(name[: -len(ending) - 1]):
            return True
    return _climbs(name)


def _climbs(name: str) -> bool:
    plain = name.replace("\\", "/")
    return plain.startswith(("/", "~")) or ".." in plain.split("/")


def _inside(real: str, top: str) -> bool:
    top = os.path.realpath(top)
    return real == top or real.startswith(top.rstrip("/") + "/")
