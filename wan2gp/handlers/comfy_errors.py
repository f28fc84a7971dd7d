"""ComfyUI's refusals, errors and deaths in sentences with a code. Never the values of inputs: they are the user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wan2gp.comfy_sidecar.outputs import NodeError
from wan2gp.comfy_sidecar.workflow import Graph, describe_node
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.classify import classify_text

SHOWN_ERRORS = 6
OOM_ADVICE = "use smaller or fewer frames, a smaller model, or a larger GPU"
NOT_JSON = "is not JSON serializable"


def refused(
    graph: Graph, error: Mapping[str, Any], node_errors: Mapping[str, Any], failed_imports: Sequence[str] = ()
) -> TaskFailure:
    """``comfy.validation``, naming each node and field. The top of the answer is empty when the fault is upstream.

    ``failed_imports``: the server's lines about custom nodes that it runs without.
    """
    parts = [part for node_id, found in node_errors.items() for part in _node_parts(graph, str(node_id), found)]
    if not parts:
        parts = [_top_level(error, failed_imports)]
    more = f" (and {len(parts) - SHOWN_ERRORS} more)" if len(parts) > SHOWN_ERRORS else ""
    return TaskFailure(
        "comfy.validation",
        "ComfyUI refused the graph: " + "; ".join(parts[:SHOWN_ERRORS]) + more,
        detail={"nodes": sorted(str(node_id) for node_id in node_errors)},
    )


def _node_parts(graph: Graph, node_id: str, found: Any) -> list[str]:
    errors = found.get("errors") if isinstance(found, dict) else None
    name = describe_node(graph, node_id)
    parts = []
    for error in errors if isinstance(errors, list) else ():
        if isinstance(error, dict):
            message, details = str(error.get("message", "")).strip(), str(error.get("details", "")).strip()
            parts.append(f"{name}: {message}" + (f": {details[:200]}" if details else ""))
    return parts or [f"{name}: no reason given"]


def _top_level(error: Mapping[str, Any], failed_imports: Sequence[str]) -> str:
    message = str(error.get("message") or "no reason given")
    details = str(error.get("details") or "").strip()
    if error.get("type") == "prompt_no_outputs":
        return f"{message}: add an output node, such as SaveImage or VHS_VideoCombine"
    if "does not exist" in message:
        hint = f"; it started without {', '.join(failed_imports[:3])}" if failed_imports else ""
        return f"{message} ({details}): is its custom node installed?{hint}"
    if not details:
        return f"{message}: its nodes may be linked in a circle"
    return f"{message} ({details[:300]})"


def node_failed(graph: Graph, error: NodeError) -> TaskFailure:
    """A node raised: ``comfy.node_failed``, or what the error means for the worker."""
    what = f"{describe_node(graph, error.node_id)} raised {error.exception}: {error.message}"
    detail = {
        "node_id": error.node_id,
        "class_type": error.class_type,
        "exception": error.exception,
        "traceback": list(error.traceback),
    }
    meaning = classify_text(f"{error.exception}: {error.message}")
    if meaning == "engine.out_of_memory":
        return TaskFailure("comfy.out_of_memory", f"{what}; {OOM_ADVICE}", retryable=False, detail=detail)
    if meaning is not None:
        return TaskFailure(meaning, what, detail=detail)
    return TaskFailure("comfy.node_failed", what, detail=detail)


def exited(obituary: str, lines: Sequence[str]) -> TaskFailure:
    """The process died under the prompt."""
    if any(NOT_JSON in line for line in lines[-40:]):
        return unreadable_result("the server ended over it")
    return TaskFailure("comfy.exited", f"ComfyUI died during the run: {obituary}")


def unreadable_result(reason: str) -> TaskFailure:
    """A node put something in its ``ui`` that cannot be sent. Another attempt would end the same."""
    return TaskFailure("comfy.node_failed", f"a node of the graph shows a value that is not JSON ({reason})")


def swallowed_out_of_memory(lines: Sequence[str]) -> str | None:
    """The line in a server's output that says so, when a run ended without a file and without an error."""
    return next((line for line in reversed(lines) if classify_text(line) == "engine.out_of_memory"), None)
