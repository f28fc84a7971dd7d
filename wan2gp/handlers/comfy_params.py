"""A comfy task's ``params``, checked before anything is started or downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from wan2gp.comfy_sidecar.errors import BadTarget, BadWorkflow
from wan2gp.comfy_sidecar.workflow import Graph, Target, find_target, parse_workflow, refuse_outside_names
from wan2gp.handlers.api import TaskFailure


@dataclass(frozen=True)
class ComfyRequest:
    """What the row asks for. ``graph`` is this run's own copy; ``target`` is there when ``video_url`` is."""

    graph: Graph
    video_url: str | None
    target: Target | None
    warnings: tuple[str, ...] = ()


def read_params(params: Any) -> ComfyRequest:
    """Raises :class:`TaskFailure` with ``comfy.bad_workflow``, ``input.bad_params`` or ``input.bad_url``."""
    if not isinstance(params, dict):
        raise TaskFailure("input.bad_params", "`params` must be an object with a `workflow`")
    try:
        graph = parse_workflow(params.get("workflow"))
    except BadWorkflow as error:
        raise TaskFailure("comfy.bad_workflow", str(error)) from error
    url = _video_url(params.get("video_url"))
    node_id, field = _node_id(params.get("video_node_id")), _field(params.get("video_input_field"))
    warnings = ("video_node_id is given without video_url: ignored",) if node_id is not None and url is None else ()
    try:
        target = find_target(graph, node_id, field) if url is not None else None
        refuse_outside_names(graph, target)
    except BadTarget as error:
        raise TaskFailure("input.bad_params", str(error)) from error
    return ComfyRequest(graph, url, target, warnings)


def _video_url(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TaskFailure("input.bad_url", "`video_url` must be a string: give an http or https URL")
    try:
        parts = urlsplit(value.strip())
    except ValueError as error:
        raise TaskFailure("input.bad_url", f"`video_url` is malformed: {error}") from error
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise TaskFailure("input.bad_url", "`video_url` is no http or https URL")
    return value


def _node_id(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TaskFailure("input.bad_params", "`video_node_id` must be the id of a node, a string or a whole number")
    return str(value)


def _field(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise TaskFailure("input.bad_params", "`video_input_field` must be the name of an input, a string")
    return value


@dataclass(frozen=True)
class ComfySettings:
    """The ``comfy_…`` settings of the worker; times in seconds, 0: no limit."""

    path: str = "/workspace/ComfyUI"
    port: int = 8188
    python: str = ""
    args: str = ""
    url: str = ""
    start_timeout_s: float = 600.0
    run_timeout_s: float = 0.0
    stuck_s: float = 1800.0
    idle_stop_s: float = 0.0
    unresponsive_s: float = 120.0
    cancel_grace_s: float = 5.0
    memory_bytes: int = 0
    """What the server may hold between two tasks; 0: a share of the machine's memory."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> ComfySettings:
        """From a handler's settings; keys that are not fields belong to others."""
        known = {name: settings[name] for name in cls.__dataclass_fields__ if settings.get(name) is not None}
        return cls(**known)
