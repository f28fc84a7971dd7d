"""What can go wrong with a ComfyUI, from the point of view of one who drives it. Knows nothing of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class SidecarError(Exception):
    """Base of everything this package raises on purpose."""


class NotInstalled(SidecarError):
    """There is no ``main.py`` where ComfyUI should be."""


class StartFailed(SidecarError):
    """The process ended, or could not be made, before it answered; the message ends in its last lines."""


class NotReady(SidecarError):
    """The process lives and does not answer, and the time is up."""


class StartAbandoned(SidecarError):
    """Whoever waited for the start no longer wants to."""


class Unreachable(SidecarError):
    """No answer: refused, reset or timed out. Whether a request was acted on is unknown."""


class ApiError(SidecarError):
    """An answer that the API does not promise: a 5xx, or something that is not the expected JSON."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class PromptRefused(SidecarError):
    """HTTP 400 on POST /prompt. ``error`` and ``node_errors`` are the answer's, empty when it had none."""

    def __init__(self, error: Mapping[str, Any], node_errors: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message") or "ComfyUI refused the graph"))
        self.error = dict(error)
        self.node_errors = dict(node_errors)


class BadWorkflow(SidecarError):
    """The value is not a graph in ComfyUI's API format; the message says what it is instead.

    ``problems``: one JSON object for each node that is none.
    """

    def __init__(self, message: str, problems: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.problems = [dict(problem) for problem in problems]


class BadTarget(SidecarError):
    """The graph has no such node or field to put the input in, or a name that leads out of the input folder."""


class BadOutput(SidecarError):
    """History names a file that is not there, or that lies outside the server's own directories."""
