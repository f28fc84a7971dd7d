"""What ComfyUI itself says about a graph (``error`` and ``node_errors`` of POST /prompt), as problems.

At the top its answer is empty when the fault is upstream of an output, a link to nowhere is an exception with a
traceback, and a circle has no words at all: the graph tells what was meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wan2gp.comfy_sidecar.catalogue import Catalogue, InputSpec, NodeClass
from wan2gp.comfy_sidecar.preflight import Walk, check_link, links, output_nodes
from wan2gp.comfy_sidecar.preflight_problems import REASON_CHARS, Json, Kind, Problem, at, shown
from wan2gp.comfy_sidecar.preflight_sentences import (
    bad_link,
    missing_input,
    no_output_node,
    out_of_range,
    refused_by_node,
    type_mismatch,
    unknown_class,
    wrong_choice,
    wrong_type,
)
from wan2gp.comfy_sidecar.workflow import Graph

NODE_ID = re.compile(r"Node ID '#(.*)'", re.DOTALL)
TYPE_IN_MESSAGE = re.compile(r"to a (\S+) value")


def read_answer(
    graph: Graph,
    error: Mapping[str, Any],
    node_errors: Mapping[str, Any],
    catalogue: Catalogue,
    *,
    builtin: bool = False,
    failed_imports: Sequence[str] = (),
) -> list[Problem]:
    """At least one problem, whatever the answer is."""
    problems = [
        problem
        for node_id, found in node_errors.items()
        for problem in read_node(graph, str(node_id), found, catalogue)
    ]
    if problems:
        return problems
    kind, details = str(error.get("type", "")), str(error.get("details") or "")
    if kind == "prompt_no_outputs":
        return [no_output_node()]
    named = NODE_ID.fullmatch(details.strip())
    if kind == "invalid_prompt" and named and named[1] in graph:
        if "does not exist" in str(error.get("message")):
            names = catalogue.names()
            return [unknown_class(graph, named[1], names, builtin=builtin, failed=list(failed_imports))]
        return [at(Kind.REFUSED, graph, named[1], "", shown(str(error.get("message")), REASON_CHARS))]
    if kind == "prompt_outputs_failed_validation" and not details:
        return _wordless(graph, catalogue)
    return [Problem(Kind.REFUSED, _general(error))]


def _general(error: Mapping[str, Any]) -> str:
    message = shown(str(error.get("message") or "ComfyUI refused the graph and gives no reason"), REASON_CHARS)
    details = shown(str(error.get("details") or ""), REASON_CHARS)
    return f"{message}: {details}" if details and details != message else message


def _wordless(graph: Graph, catalogue: Catalogue) -> list[Problem]:
    """ComfyUI goes through a graph by recursion: it gives up on a circle, and on a very long chain, without a word."""
    walk = Walk(graph, catalogue, frozenset())
    walk.from_outputs(output_nodes(graph, catalogue))
    circles = [problem for problem in walk.problems if problem.kind is Kind.CYCLE]
    said = (
        "ComfyUI refused the graph without a reason: its nodes may be linked in a circle, or one behind the other in "
        "a chain that is too long for it; shorten the chain, or split the graph"
    )
    return circles or [Problem(Kind.REFUSED, said)]


def read_node(graph: Graph, node_id: str, found: Any, catalogue: Catalogue) -> list[Problem]:
    """What the answer holds against one node."""
    errors = found.get("errors") if isinstance(found, dict) else None
    known = catalogue.get(str(graph.get(node_id, {}).get("class_type", "")))
    problems: list[Problem] = []
    for error in errors if isinstance(errors, list) else ():
        if isinstance(error, dict):
            problems += _read_error(graph, node_id, error, catalogue, known)
    return problems or [at(Kind.REFUSED, graph, node_id, "", "ComfyUI refuses it and gives no reason")]


def _read_error(
    graph: Graph, node_id: str, error: Json, catalogue: Catalogue, known: NodeClass | None
) -> list[Problem]:
    kind = str(error.get("type", ""))
    if kind in ("exception_during_validation", "exception_during_inner_validation"):
        return _exception(graph, node_id, error, catalogue, known)
    given = error.get("extra_info")
    extra: Json = given if isinstance(given, dict) else {}
    name = str(extra.get("input_name") or str(error.get("details", "")).partition(",")[0].partition(":")[0])
    spec = (known.inputs.get(name) if known else None) or _spec_of(name, extra.get("input_config"))
    worded = WORDED.get(kind)
    if worded is not None:
        try:
            return [worded(graph, node_id, name, error, extra, spec, known, catalogue)]
        except (KeyError, TypeError, ValueError):  # an answer of a version that says it otherwise: its own words, then
            pass
    said = shown(str(error.get("message", "")).strip() or "refused", REASON_CHARS)
    details = shown(str(error.get("details", "")), REASON_CHARS)
    return [at(Kind.REFUSED, graph, node_id, name if extra.get("input_name") else "", _joined(said, details))]


def _joined(said: str, details: str) -> str:
    return f"{said}: {details}" if details else said


def _spec_of(name: str, config: Any) -> InputSpec | None:
    """The declaration that the answer brings along; absent for long lists."""
    info = {"input": {"required": {name: config}}, "output": []}
    read = NodeClass.read("", info) if isinstance(config, list) else None
    return read.inputs.get(name) if read else None


def _exception(graph: Graph, node_id: str, error: Json, catalogue: Catalogue, known: NodeClass | None) -> list[Problem]:
    """Mostly a link to nowhere. Else the class's own check raised."""
    node = graph.get(node_id, {"inputs": {}})
    found = [check_link(graph, catalogue, node_id, spec, link, graph)[0] for spec, link in links(node, known)]
    if problems := [problem for problem in found if problem is not None and problem.kind is not Kind.TYPE_MISMATCH]:
        return problems
    extra = error.get("extra_info")
    raised = str(extra.get("exception_type", "")) if isinstance(extra, dict) else ""
    reason = _joined(raised.rpartition(".")[2], shown(str(error.get("details", "")), REASON_CHARS))
    if raised.endswith("RecursionError"):
        said = "the chain of nodes before it is too long for ComfyUI: shorten it, or split the graph"
    else:
        said = f"ComfyUI cannot check it ({reason}): look at its inputs, and whether the custom node is up to date"
    return [at(Kind.REFUSED_BY_NODE, graph, node_id, "", said)]


# --- the types of errors -------------------------------------------------------------------------------------------


def _missing(
    graph: Graph, node_id: str, name: str, _e: Json, _x: Json, spec: InputSpec | None, known: NodeClass | None, _c: Any
) -> Problem:
    return missing_input(graph, node_id, name, spec, known.inputs if known else ())


def _bad_link(graph: Graph, node_id: str, name: str, _e: Json, extra: Json, *_: Any) -> Problem:
    return bad_link(graph, node_id, name, extra.get("received_value"))


def _mismatch(
    graph: Graph, node_id: str, name: str, _e: Json, extra: Json, spec: InputSpec | None, _k: Any, catalogue: Catalogue
) -> Problem:
    link = extra["linked_node"]
    source = catalogue.get(str(graph[link[0]]["class_type"]))
    wanted = spec.kind if spec is not None else str(extra["input_config"][0])
    return type_mismatch(graph, node_id, name, link, wanted, _type_name(extra["received_type"]), source)


def _type_name(kind: Any) -> str:
    return kind if isinstance(kind, str) else "a choice"


def _range(graph: Graph, node_id: str, name: str, _e: Json, extra: Json, spec: InputSpec | None, *_: Any) -> Problem:
    options = spec.options if spec is not None else {}
    limits = {key: options[key] for key in ("min", "max") if key in options}
    return out_of_range(graph, node_id, name, extra["received_value"], limits)


def _type(graph: Graph, node_id: str, name: str, error: Json, extra: Json, spec: InputSpec | None, *_: Any) -> Problem:
    said = TYPE_IN_MESSAGE.search(str(error.get("message", "")))
    kind = spec.kind if spec is not None else said[1] if said else "another type"
    return wrong_type(graph, node_id, name, kind, extra.get("received_value"))


def _choice(graph: Graph, node_id: str, name: str, _e: Json, extra: Json, spec: InputSpec | None, *_: Any) -> Problem:
    return wrong_choice(graph, node_id, name, extra["received_value"], spec or InputSpec(name, True, "COMBO", ()))


def _custom(graph: Graph, node_id: str, name: str, error: Json, _x: Json, spec: InputSpec | None, *_: Any) -> Problem:
    reason = str(error.get("details", "")).partition(" - ")[2]
    return refused_by_node(graph, node_id, name, reason, spec)


WORDED: dict[str, Callable[..., Problem]] = {
    "required_input_missing": _missing,
    "bad_linked_input": _bad_link,
    "return_type_mismatch": _mismatch,
    "value_smaller_than_min": _range,
    "value_bigger_than_max": _range,
    "invalid_input_type": _type,
    "value_not_in_list": _choice,
    "custom_validation_failed": _custom,
}
