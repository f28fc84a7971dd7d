"""Which results of nodes are kept for a later prompt.

A node's key is made of its class, its values and everything above it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from wan2gp.comfy_sidecar.builtin.registry import Json, NodeType, Registry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cached:
    """A node's results by slot; `ui` and `meta` are None when it showed nothing."""

    results: tuple[Any, ...]
    ui: Json | None
    meta: Json | None


class OutputCache:
    """`capacity` None: what the last prompt used (ComfyUI's default). 0: nothing. N: the N used last."""

    def __init__(self, capacity: int | None) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[str, Cached] = OrderedDict()
        self._keys: dict[str, str] = {}

    def begin(self, keys: dict[str, str]) -> list[str]:
        """Starts a prompt whose nodes have these keys; returns the ids already known."""
        self._keys = keys
        if self._capacity == 0:
            self._kept.clear()
        elif self._capacity is None:
            used = set(keys.values())
            for key in [key for key in self._kept if key not in used]:
                del self._kept[key]
        return [node_id for node_id, key in keys.items() if key in self._kept]

    def get(self, node_id: str) -> Cached | None:
        key = self._keys[node_id]
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, node_id: str, cached: Cached) -> None:
        """Drops the oldest beyond the capacity, but none of the running prompt: its nodes still need them."""
        self._kept[self._keys[node_id]] = cached
        if not self._capacity:
            return
        running = set(self._keys.values())
        for key in [key for key in self._kept if key not in running]:
            if len(self._kept) <= self._capacity:
                return
            del self._kept[key]

    def clear(self) -> None:
        self._kept.clear()


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def links_of(node_type: NodeType, values: Json) -> list[tuple[str, str, int]]:
    """Declared inputs that are links: (input, source node, slot)."""
    declared = node_type.inputs()
    names = [name for group in ("required", "optional") for name in declared.get(group, {})]
    return [(name, *values[name]) for name in names if is_link(values.get(name))]


class KeyMaker:
    """Keys of one prompt's nodes. IS_CHANGED is called once a node; the prompt keeps its answer."""

    def __init__(self, prompt: Json, registry: Registry) -> None:
        self._prompt = prompt
        self._registry = registry
        self._keys: dict[str, str] = {}

    def keys(self, outputs: list[str]) -> dict[str, str]:
        for output in outputs:
            self._key(output)
        return {node_id: self._keys[node_id] for node_id in self._prompt if node_id in self._keys}

    def _key(self, node_id: str) -> str:
        if node_id not in self._keys:
            self._keys[node_id] = self._make(node_id)
        return self._keys[node_id]

    def _make(self, node_id: str) -> str:
        node = self._prompt[node_id]
        node_type = self._registry[node["class_type"]]
        values = dict(node["inputs"])
        for name, source, slot in links_of(node_type, values):
            values[name] = ["link", self._key(source), slot]
        uses_id = "UNIQUE_ID" in node_type.inputs().get("hidden", {}).values()
        parts = [node["class_type"], values, self._changed(node, node_type), node_id if uses_id else None]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()

    def _changed(self, node: Json, node_type: NodeType) -> Any:
        names = node_type.parameters_of("IS_CHANGED")
        if not names:
            return None
        given = node["inputs"] if "kwargs" in names else {name: node["inputs"].get(name) for name in names}
        try:
            answer = node_type.node.IS_CHANGED(**given)
        except Exception as error:  # the node's own code; a node that cannot say has changed
            log.warning("WARNING: %s: %s", type(error).__name__, error)
            answer = float("nan")
        if answer != answer:  # NaN: never the same as before
            return uuid.uuid4().hex
        node["is_changed"] = [answer]
        return answer
