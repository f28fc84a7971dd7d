"""A comfy task's ``params``, checked before anything is started or downloaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wan2gp.comfy_sidecar.errors import BadTarget, BadWorkflow
from wan2gp.comfy_sidecar.file_names import Allowed, Declared, refuse_outside_names
from wan2gp.comfy_sidecar.graph_shape import Graph, describe_node, parse_workflow, refuse_giants
from wan2gp.comfy_sidecar.workflow import Target
from wan2gp.comfy_sources import VIDEO_URL
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.comfy_fields import FieldDoc, InputFields, TaskFields, bad, check_keys, document, value
from wan2gp.handlers.comfy_inputs import Place, Wanted, apply_overrides, read_inputs
from wan2gp.handlers.media_limits import MediaLimits
from wan2gp.machine_memory import machine_memory

PROBLEMS_KEPT = 200
SOFT_SHARE, HARD_SHARE = 0.85, 0.95
"""Of the memory that the machine or container has."""


@dataclass(frozen=True)
class ComfyRequest:
    """What the row asks for. ``graph`` is this run's own copy; the files of ``inputs`` are not in it yet."""

    graph: Graph
    inputs: tuple[Wanted, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def target(self) -> Target | None:
        """Where the file of ``video_url`` goes."""
        return next((wanted.target for wanted in self.inputs if wanted.label == VIDEO_URL), None)


def read_params(params: Any, allowed: Allowed | None = None) -> ComfyRequest:
    """``allowed``: where the graph may name files.

    Raises :class:`TaskFailure`: ``comfy.bad_workflow``, ``input.bad_params``, ``.bad_url`` or ``.too_large``.
    """
    if not isinstance(params, dict):
        raise bad("`params` must be an object with a `workflow`")
    warnings = list(check_keys(params))
    with _in_words():
        graph = parse_workflow(params.get("workflow"))
    if value(TaskFields, params, "video_node_id") is not None and params.get(VIDEO_URL) is None:
        warnings.append("video_node_id is given without video_url: ignored")
    value(TaskFields, params, "video_input_field")
    if overridden := apply_overrides(graph, params):
        with _in_words():
            refuse_giants(graph, "`workflow` with its `overrides`")
    inputs = read_inputs(graph, params)
    _make_way(graph, inputs, overridden)
    check_names(graph, allowed)
    return ComfyRequest(graph, inputs, tuple(warnings))


def check_names(graph: Graph, allowed: Allowed | None, *declared: Declared) -> None:
    """Raises :class:`TaskFailure` (``input.bad_params``) for a file that is not the task's to name."""
    try:
        refuse_outside_names(graph, allowed, *declared)
    except BadTarget as error:
        raise bad(str(error)) from error


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except BadWorkflow as error:
        raise TaskFailure("comfy.bad_workflow", str(error), detail=_listed(error)) from error


def _listed(error: BadWorkflow) -> dict[str, Any]:
    return {"problems": error.problems[:PROBLEMS_KEPT]} if error.problems else {}


def _make_way(graph: Graph, inputs: tuple[Wanted, ...], overridden: set[Place]) -> None:
    """The names that stand where files will go mean nothing: they may be of a machine that is not this one."""
    for wanted in inputs:
        node_id, field = wanted.target.node_id, wanted.target.field
        if (node_id, field) in overridden:
            raise bad(f"`overrides` and `{wanted.label}` both set {field!r} of {describe_node(graph, node_id)}")
        graph[node_id]["inputs"][field] = ""


def task_documentation() -> list[FieldDoc]:
    """The parameters of a task, for its reference."""
    return document(TaskFields)


def input_documentation() -> list[FieldDoc]:
    """The fields of an entry of ``inputs``, for the same."""
    return document(InputFields)


@dataclass(frozen=True)
class ComfySettings:
    """The ``comfy_…`` settings of the worker; times in seconds, 0: no limit."""

    path: str = "/workspace/ComfyUI"
    port: int = 8188
    ports: Sequence[int] = ()
    """Those that it may use besides; none given: every port."""
    connects: bool = True
    """Whether the server may connect to others by TCP."""
    python: str = ""
    args: str = ""
    url: str = ""
    warmup_workflow: str = ""
    """Absolute path of a graph that is run once after each start; empty: none."""
    start_timeout_s: float = 600.0
    run_timeout_s: float = 0.0
    stuck_s: float = 1800.0
    idle_stop_s: float = 0.0
    unresponsive_s: float = 120.0
    cancel_grace_s: float = 5.0
    allow_paths: Sequence[str] = ()
    """Directories of which a task's `inputs` may name files by `path`."""
    input_max_bytes: int = 4 * 1024**3
    max_pixels: int = MediaLimits.max_pixels
    max_frames: int = MediaLimits.max_frames
    max_duration_s: float = MediaLimits.max_duration_s
    """What an input may have, before an engine sees it."""
    storage: bool = True
    """Whether the worker has a project whose Storage inputs may come from."""
    posters: bool = False
    """Whether videos get a poster frame."""
    memory_bytes: int = 0
    """What the server and its children may hold between two tasks; 0: a share of the machine's memory."""
    memory_hard_bytes: int = 0
    """The same during a task."""

    def media_limits(self) -> MediaLimits:
        return MediaLimits(self.max_pixels, self.max_frames, self.max_duration_s)

    def allowed(self) -> Allowed:
        """Where a graph may name files. Of another machine's directories nobody here knows where their links lead."""
        return Allowed(relative=True) if self.url else Allowed(tuple(self.allow_paths))

    def soft_limit_bytes(self) -> int:
        """Between two tasks."""
        return self.memory_bytes or int(SOFT_SHARE * machine_memory())

    def hard_limit_bytes(self) -> int:
        """During a task."""
        return self.memory_hard_bytes or int(HARD_SHARE * machine_memory())

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> ComfySettings:
        """From a handler's settings; keys that are not fields belong to others."""
        known = {name: settings[name] for name in cls.__dataclass_fields__ if settings.get(name) is not None}
        return cls(**known)
