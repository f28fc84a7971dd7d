"""ComfyUI's errors and deaths in sentences with a code. Never the values of inputs: they are the user's."""

from __future__ import annotations

from collections.abc import Sequence

from wan2gp.comfy_sidecar.outputs import NodeError
from wan2gp.comfy_sidecar.workflow import Graph, describe_node
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.classify import classify_text

OOM_ADVICE = "use smaller or fewer frames, a smaller model, or a larger GPU"
TO_BROWSER = "SaveImageWebsocket"
NOT_JSON = "is not JSON serializable"


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


def why_nothing(graph: Graph) -> str:
    """What is known of a graph that makes no file, as the end of a sentence."""
    found = [describe_node(graph, node_id) for node_id, node in graph.items() if node["class_type"] == TO_BROWSER]
    return f": {found[0]} sends its pictures to a browser and keeps none, use SaveImage" if found else ""
