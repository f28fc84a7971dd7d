"""The node classes, ours and those of an extra file, in ComfyUI's convention, and how the API describes them.

A node may ask for the hidden input "RUN": it is given a `Run`, which ComfyUI does not have.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wan2gp.comfy_sidecar.builtin.folders import Folders

if TYPE_CHECKING:
    from wan2gp.comfy_sidecar.builtin.media import Pixels

RUN = "RUN"
log = logging.getLogger(__name__)

Json = dict[str, Any]


class Run(Protocol):
    """What a running node may use of the engine."""

    folders: Folders
    metadata: bool

    def progress(self, value: int, maximum: int, preview: Pixels | None = None) -> None:
        """Reports progress, with a picture of what is made so far; raises when the prompt was interrupted."""

    def check(self) -> None:
        """Raises when the prompt was interrupted."""


@dataclass(frozen=True)
class NodeType:
    """One class_type. `node` is an instance; it may have VALIDATE_INPUTS and IS_CHANGED, as in ComfyUI."""

    name: str
    node: Any
    display_name: str | None
    python_module: str
    has_schema: bool = False
    """Of ComfyUI's newer kind, whose description says more."""

    @property
    def is_output(self) -> bool:
        return bool(getattr(self.node, "OUTPUT_NODE", False))

    @property
    def return_types(self) -> tuple[Any, ...]:
        return tuple(self.node.RETURN_TYPES)

    @property
    def function(self) -> Callable[..., Any]:
        return getattr(self.node, self.node.FUNCTION)  # type: ignore[no-any-return]

    def inputs(self) -> dict[str, dict[str, Any]]:
        """Groups required, optional and hidden. Asked anew each time: lists of files change."""
        return self.node.INPUT_TYPES()  # type: ignore[no-any-return]

    def parameters_of(self, method: str) -> list[str]:
        function = getattr(self.node, method, None)
        return [] if function is None else list(inspect.signature(function).parameters)

    def describe(self) -> Json:
        """The entry of GET /object_info."""
        groups = {group: _public(declared) for group, declared in self.inputs().items()}
        groups = {group: declared for group, declared in groups.items() if declared or group == "required"}
        returned = list(self.return_types)
        described = {
            "input": groups,
            "input_order": {group: list(declared) for group, declared in groups.items()},
            "output": returned,
            "output_is_list": list(getattr(self.node, "OUTPUT_IS_LIST", [False] * len(returned))),
            "output_name": list(getattr(self.node, "RETURN_NAMES", returned)),
            "name": self.name,
            "display_name": self.display_name,
            "description": getattr(self.node, "DESCRIPTION", ""),
            "python_module": self.python_module,
            "category": getattr(self.node, "CATEGORY", "sd"),
            "output_node": self.is_output,
        }
        if hasattr(self.node, "OUTPUT_TOOLTIPS"):
            described["output_tooltips"] = list(self.node.OUTPUT_TOOLTIPS)
        if self.has_schema:
            described["output_tooltips"] = [None] * len(returned)
            experimental = bool(getattr(self.node, "EXPERIMENTAL", False))
            described |= {"deprecated": False, "experimental": experimental, "api_node": False}
            if "hidden" in groups:
                groups["hidden"] = {name: [kind] for name, kind in groups["hidden"].items()}
        return described


def _public(declared: dict[str, Any]) -> dict[str, Any]:
    return {name: spec for name, spec in declared.items() if spec != RUN}


Registry = dict[str, NodeType]


def build_registry(groups: Iterable[Iterable[NodeType]], extra: Path | None) -> Registry:
    """Core classes first: an extra node of the same name is left out, as in ComfyUI."""
    registry: Registry = {}
    for group in [*groups, _load_extra(extra) if extra else []]:
        for node_type in group:
            if node_type.name in registry:
                log.warning("node %s of %s would hide another: left out", node_type.name, node_type.python_module)
                continue
            registry[node_type.name] = node_type
    return registry


def _load_extra(path: Path) -> list[NodeType]:
    spec = importlib.util.spec_from_file_location(f"extra_nodes_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load extra nodes: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    titles = getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", {})
    return [
        NodeType(name, node_class(), titles.get(name, name), f"custom_nodes.{path.stem}")
        for name, node_class in module.NODE_CLASS_MAPPINGS.items()
    ]
