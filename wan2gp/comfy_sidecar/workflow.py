"""Graphs in ComfyUI's API format: the changes one run needs, which are made in place. Pure: nothing is sent."""

from __future__ import annotations

import difflib
import json
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wan2gp.comfy_sidecar.errors import BadTarget
from wan2gp.comfy_sidecar.graph_shape import Graph as Graph
from wan2gp.comfy_sidecar.graph_shape import Json as Json
from wan2gp.comfy_sidecar.graph_shape import parse_workflow as parse_workflow

VIDEO_FIELDS = {
    "VHS_LoadVideo": "video",
    "VHS_LoadVideoFFmpeg": "video",
    "VHS_LoadVideoPath": "video",
    "VHS_LoadVideoFFmpegPath": "video",
    "LoadVideo": "file",
}
"""The classes known to load a video, and the input that names the file."""
PATH_CLASSES = frozenset({"VHS_LoadVideoPath", "VHS_LoadVideoFFmpegPath"})
"""These take a path of the machine and not a name in the input folder."""
FILE_FIELDS = frozenset({"video", "image", "audio", "file", "audio_file", "directory", "mask"})
"""Inputs of loaders that name a file or folder."""
PREFIX_FIELD = "filename_prefix"
DEFAULT_PREFIX = "output"


def title(graph: Graph, node_id: str) -> str:
    """What a person calls a node: its title if it has one, else its class."""
    node = graph.get(node_id, {})
    meta = node.get("_meta")
    given = meta.get("title") if isinstance(meta, dict) else None
    return str(given or node.get("class_type") or node_id)


def describe_node(graph: Graph, node_id: str) -> str:
    """``node 2 (VHS_VideoCombine "My title")``."""
    class_type = graph.get(node_id, {}).get("class_type", "unknown")
    name = title(graph, node_id)
    return f"node {node_id} ({class_type})" if name == class_type else f'node {node_id} ({class_type} "{name}")'


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
        raise BadTarget(f"video_node_id {node_id!r} is not in the workflow{_close(node_id, graph)}")
    node = graph[node_id]
    known = VIDEO_FIELDS.get(node["class_type"])
    if field is None:
        field = "video" if "video" in node["inputs"] or known is None else known
    if field not in node["inputs"] and field != known:
        raise BadTarget(f"{describe_node(graph, node_id)} has no input {field!r}{_close(field, node['inputs'])}")
    return Target(node_id, field, node["class_type"] in PATH_CLASSES)


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


def _close(wanted: str, present: Mapping[str, Any]) -> str:
    matches = difflib.get_close_matches(wanted, list(present), n=3, cutoff=0.5) or list(present)[:5]
    return f"; there is {', '.join(repr(match) for match in matches)}" if matches else ""


def refuse_outside_names(graph: Graph, target: Target | None) -> None:
    """VideoHelperSuite opens any path of the machine: a name must stay in the input folder.

    The target's value is not looked at, it will be replaced. Raises :class:`BadTarget`.
    """
    for node_id, node in graph.items():
        if "Load" not in node["class_type"]:
            continue
        for field in FILE_FIELDS & node["inputs"].keys():
            value = node["inputs"][field]
            ours = target is not None and (target.node_id, target.field) == (node_id, field)
            if not ours and isinstance(value, str) and leads_out(value):
                raise BadTarget(
                    f"{describe_node(graph, node_id)}: {field} {value!r} leads out of ComfyUI's input folder: "
                    "give the file by video_url"
                )


def leads_out(name: str) -> bool:
    """True for an absolute name and for one that climbs; web addresses are neither."""
    plain = name.strip().replace("\\", "/")
    return plain.startswith(("/", "~")) or ".." in plain.split("/")


# --- the outputs ---------------------------------------------------------------------------------------------------


def rewrite_prefixes(graph: Graph, folder: str) -> list[str]:
    """Every node's own ``filename_prefix`` goes below ``folder``; returns the nodes whose prefix is a link."""
    linked = []
    for node_id, node in graph.items():
        value = node["inputs"].get(PREFIX_FIELD)
        if isinstance(value, str):
            node["inputs"][PREFIX_FIELD] = prefixed(folder, value)
        elif isinstance(value, list):
            linked.append(node_id)
    return linked


def prefixed(folder: str, prefix: str = DEFAULT_PREFIX) -> str:
    """``folder/prefix``; parts that would climb out are left out."""
    parts = [part for part in prefix.split("/") if part not in ("", ".", "..")]
    return posixpath.join(folder, *(parts or [DEFAULT_PREFIX]))


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
