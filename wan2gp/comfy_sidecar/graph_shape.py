"""Reading a graph in ComfyUI's API format, and telling what was given instead. Pure.

A graph is ``{node id: {"class_type": name, "inputs": {name: value or [node id, slot]}}}``. What people give instead is
mostly the editor's own file, the body of a request, or a picture's metadata, in which the graph lies one level down.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from typing import Any

from wan2gp.comfy_sidecar.errors import BadWorkflow

Json = dict[str, Any]
Graph = dict[str, Json]

EXPORT = (
    "export it in the API format: menu Workflow > Export (API), or in older versions 'Save (API Format)', which is "
    "there once 'Enable Dev mode Options' is on in the settings"
)
WRAPPERS = ("prompt", "output", "workflow", "api_prompt")
"""Under these keys others put a graph: a request's body, the editor's own call, a row in a row."""
SHOWN_FAULTS, NAME_CHARS = 8, 60
MOST_NODES = 10_000
MOST_VALUES = 400_000
"""Of all nodes together: whatever stands in them, lists and objects included."""
DEEPEST = 64
"""Levels of lists and objects within a graph. ComfyUI walks them by recursion."""
LONGEST_NAME = 1024
"""Of a node's id, class and inputs, characters."""
NO_TEXT = "give the graph in ComfyUI's API format"


def parse_workflow(value: Any) -> Graph:
    """A copy of the graph in ``value``, an object or a JSON string. Raises :class:`BadWorkflow`."""
    if value is None:
        raise BadWorkflow(f"`workflow` is missing: {NO_TEXT}")
    if isinstance(value, str):
        value = _loads(value)
    if not isinstance(value, dict):
        raise BadWorkflow(f"`workflow` is {_kind(value)}, not an object of nodes: {EXPORT}")
    if not value:
        raise BadWorkflow("`workflow` is empty: it needs at least one output node")
    _refuse_other_formats(value)
    refuse_giants(value)
    graph: Graph = copy.deepcopy(value)
    faults = [fault for node_id, node in graph.items() if (fault := _node_fault(node_id, node)) is not None]
    if faults:
        raise _faulty(faults)
    return graph


def refuse_giants(value: Json, what: str = "`workflow`") -> None:
    """Before anything walks it by recursion, or compares its names. ``what``: its name in :class:`BadWorkflow`."""
    if len(value) > MOST_NODES:
        raise BadWorkflow(f"{what} has {len(value)} nodes, the most is {MOST_NODES}")
    level: list[Any] = [value]
    count = depth = 0
    while level:
        depth, count = depth + 1, count + len(level)
        if depth > DEEPEST:
            raise BadWorkflow(f"{what} is nested too deeply: more than {DEEPEST} levels")
        if count > MOST_VALUES:
            raise BadWorkflow(f"{what} holds more than {MOST_VALUES} values")
        if not all(_is_text(each) for each in level):
            raise BadWorkflow(f"{what} holds half a character (a lone surrogate), which no file and no row can hold")
        level = [part for each in level for part in _parts(each)]


def _is_text(value: Any) -> bool:
    """False for a string that no encoding knows; it comes from an escape in JSON."""
    if isinstance(value, dict):
        return all(map(_is_text, value))
    return not isinstance(value, str) or value.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in value)


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _faulty(faults: list[tuple[str, str]]) -> BadWorkflow:
    more = f"; and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
    said = "; ".join(sentence for _, sentence in faults[:SHOWN_FAULTS])
    problems = [{"kind": "no_node", "node_id": node_id, "message": sentence} for node_id, sentence in faults]
    return BadWorkflow(f"{said}{more}: {EXPORT}", problems)


def _loads(text: str) -> Any:
    if not text.strip():
        raise BadWorkflow(f"`workflow` is an empty string: {NO_TEXT}")
    try:
        return json.loads(text, parse_constant=_no_number)
    except ValueError as error:
        raise BadWorkflow(f"`workflow` is a string that is not JSON: {error}") from error
    except RecursionError as error:
        raise BadWorkflow("`workflow` is nested too deeply") from error


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _refuse_other_formats(value: Json) -> None:
    nodes = value.get("nodes")
    if isinstance(nodes, list) or (isinstance(value.get("links"), list) and "last_node_id" in value):
        raise BadWorkflow(f"`workflow` is in the editor's format (nodes and links): {EXPORT}")
    for key in WRAPPERS:
        inner = value.get(key)
        if isinstance(inner, dict) and "class_type" not in inner and _holds_nodes(inner):
            raise BadWorkflow(f"`workflow` has the graph one level down, under {key!r}: give what stands there")
        if key != "workflow" and isinstance(inner, str) and inner.lstrip().startswith("{"):
            raise BadWorkflow(f"`workflow` has the graph one level down, as a string under {key!r}: give that string")


def _holds_nodes(value: Json) -> bool:
    return any(isinstance(node, dict) and "class_type" in node for node in value.values())


def _node_fault(node_id: str, node: Any) -> tuple[str, str] | None:
    """What makes it no node; one without ``inputs`` is given empty ones."""
    where = f"node {_short(node_id)} of `workflow`"
    if not isinstance(node, dict):
        return node_id, f"{where} is {_kind(node)}, not an object"
    if not isinstance(node.get("class_type"), str) or not node["class_type"]:
        return node_id, f"{where} has no class_type"
    if max(len(node_id), len(node["class_type"])) > LONGEST_NAME:
        return node_id, f"{where} has an id or a class_type of more than {LONGEST_NAME} characters"
    if not isinstance(node.setdefault("inputs", {}), dict):
        return node_id, f"`inputs` of {where} is {_kind(node['inputs'])}, not an object"
    if any(len(name) > LONGEST_NAME for name in node["inputs"]):
        return node_id, f"{where} has an input whose name has more than {LONGEST_NAME} characters"
    return None


def title(graph: Graph, node_id: str) -> str:
    """What a person calls a node: its title if it has one, else its class. On one line, and short."""
    node = graph.get(node_id, {})
    meta = node.get("_meta")
    given = meta.get("title") if isinstance(meta, dict) else None
    return _short(str(given or node.get("class_type") or node_id))


def describe_node(graph: Graph, node_id: str) -> str:
    """``node 2 (VHS_VideoCombine "My title")``."""
    class_type = _short(str(graph.get(node_id, {}).get("class_type", "unknown")))
    name, shown = title(graph, node_id), _short(node_id)
    return f"node {shown} ({class_type})" if name == class_type else f'node {shown} ({class_type} "{name}")'


def _short(name: str) -> str:
    plain = " ".join("".join(sign if sign.isprintable() else " " for sign in name).split())
    return plain if len(plain) <= NAME_CHARS else f"{plain[:NAME_CHARS]}…"


def _kind(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "null" if value is None else "an object")
