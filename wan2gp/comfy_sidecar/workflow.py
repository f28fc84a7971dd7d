"""Graphs in ComfyUI's API format: the changes one run needs, which are made in place. Pure: nothing is sent."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wan2gp.comfy_sidecar.errors import BadTarget
from wan2gp.comfy_sidecar.file_names import PATH_LOADERS
from wan2gp.comfy_sidecar.graph_shape import Graph as Graph
from wan2gp.comfy_sidecar.graph_shape import Json as Json
from wan2gp.comfy_sidecar.graph_shape import describe_node as describe_node
from wan2gp.comfy_sidecar.graph_shape import parse_workflow as parse_workflow
from wan2gp.comfy_sidecar.graph_shape import title as title
from wan2gp.comfy_sidecar.suggest import there_is

VIDEO_FIELDS = {
    "VHS_LoadVideo": "video",
    "VHS_LoadVideoFFmpeg": "video",
    "VHS_LoadVideoPath": "video",
    "VHS_LoadVideoFFmpegPath": "video",
    "LoadVideo": "file",
}
"""The classes known to load a video, and the input that names the file."""
PREFIX_FIELD = "filename_prefix"
DEFAULT_PREFIX = "output"
MOST_PARTS, PART_BYTES = 16, 150
"""Of a prefix: folders, and the length of each name; a disk takes 255 bytes, and a number and a suffix follow."""
WRAPPED = "__value__"
"""The key under which a value stands for itself and not for a link."""


# --- the input -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """The input of a node that takes the file's name. ``wants_path``: an absolute path instead."""

    node_id: str
    field: str
    wants_path: bool


def find_target(graph: Graph, node_id: str | None, field: str | None) -> Target:
    """Where the video goes. Without ``node_id``: the only loader. Raises :class:`BadTarget`."""
    node_id = _only_loader(graph, field) if node_id is None else node_id
    if node_id not in graph:
        raise BadTarget(f"video_node_id {node_id!r} is not in the workflow{there_is(node_id, graph)}")
    node = graph[node_id]
    known = VIDEO_FIELDS.get(node["class_type"])
    if field is None:
        field = "video" if "video" in node["inputs"] or known is None else known
    if field not in node["inputs"] and field != known:
        raise BadTarget(f"{describe_node(graph, node_id)} has no input {field!r}{there_is(field, node['inputs'])}")
    return Target(node_id, field, field in PATH_LOADERS.get(node["class_type"], ()))


def _only_loader(graph: Graph, field: str | None) -> str:
    loaders = [node_id for node_id, node in graph.items() if node["class_type"] in VIDEO_FIELDS]
    wanted = field or "video"
    if not loaders:
        loaders = [node_id for node_id, node in graph.items() if isinstance(node["inputs"].get(wanted), str)]
    if len(loaders) == 1:
        return loaders[0]
    if not loaders:
        raise BadTarget("the workflow has no node that loads a video: add one, or name it with video_node_id")
    names = ", ".join(describe_node(graph, node_id) for node_id in loaders)
    raise BadTarget(f"the workflow has {len(loaders)} nodes that load a video: set video_node_id to one of {names}")


# --- the outputs ---------------------------------------------------------------------------------------------------


def rewrite_prefixes(graph: Graph, folder: str) -> list[str]:
    """Every node's own ``filename_prefix`` goes below ``folder``; returns the nodes whose prefix is a link.

    What is no string becomes one, as ComfyUI would make it later. A link cannot lead out either: ComfyUI refuses to
    save outside of its output folder.
    """
    linked = []
    for node_id, node in graph.items():
        if PREFIX_FIELD not in node["inputs"]:
            continue
        value = node["inputs"][PREFIX_FIELD]
        if isinstance(value, list):
            linked.append(node_id)
            continue
        while isinstance(value, dict):
            value = value.get(WRAPPED)
        plain = isinstance(value, (str, int, float))
        node["inputs"][PREFIX_FIELD] = prefixed(folder, str(value) if plain else DEFAULT_PREFIX)
    return linked


def prefixed(folder: str, prefix: str = DEFAULT_PREFIX) -> str:
    """``folder/prefix`` as names that a disk can hold; parts that would climb out are left out."""
    parts = [_part(part) for part in prefix.split("/") if part.strip() not in ("", ".", "..")][:MOST_PARTS]
    return posixpath.join(folder, *(parts or [DEFAULT_PREFIX]))


def _part(text: str) -> str:
    plain = "".join("_" if character < " " or character == "\x7f" else character for character in text)
    # Half a character, which JSON can hold and a disk cannot, is a question mark.
    return plain.encode("utf-8", "replace")[:PART_BYTES].decode(errors="ignore")


# --- what is missing -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filled:
    """Inputs that a node lacked and that were given their defaults."""

    node_id: str
    inputs: Json

    def sentence(self, graph: Graph) -> str:
        values = ", ".join(f"{name} = {json.dumps(value, default=str)}" for name, value in self.inputs.items())
        return f"{describe_node(graph, self.node_id)} lacked required inputs, filled with defaults: {values}"


def fill_missing(graph: Graph, folder: str, node_info: Callable[[str], Json | None]) -> list[Filled]:
    """Give required inputs that are absent the default their class declares; an output's prefix goes below ``folder``.

    ``node_info`` is ``GET /object_info/{class}``. What has no default is left to ComfyUI to refuse by name.
    """
    filled = []
    for node_id, node in graph.items():
        declared = (node_info(node["class_type"]) or {}).get("input")
        if not isinstance(declared, dict):
            continue
        missing = _defaults(declared.get("required"), node["inputs"])
        for group in ("required", "optional"):
            # Also an optional one: under its default prefix, ComfyUI's cache would name an older run's file.
            if PREFIX_FIELD in _names(declared.get(group)) and PREFIX_FIELD not in node["inputs"]:
                missing.pop(PREFIX_FIELD, None)
                node["inputs"][PREFIX_FIELD] = prefixed(folder)
                if group == "required":
                    missing[PREFIX_FIELD] = node["inputs"][PREFIX_FIELD]
        if missing:
            node["inputs"].update(missing)
            filled.append(Filled(node_id, missing))
    return filled


def _names(group: Any) -> Json:
    return group if isinstance(group, dict) else {}


def _defaults(group: Any, given: Json) -> Json:
    found = {}
    for name, spec in _names(group).items():
        if name not in given and isinstance(spec, list) and len(spec) > 1 and isinstance(spec[1], dict):
            if "default" in spec[1]:
                found[name] = spec[1]["default"]
    return found
