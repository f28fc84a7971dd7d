"""What the websocket says about the nodes of the running prompt, and the flag that interrupts it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from wan2gp.comfy_sidecar.builtin.folders import Folders
from wan2gp.comfy_sidecar.builtin.registry import Json
from wan2gp.comfy_sidecar.builtin.websocket import Hub


class Interrupted(Exception):
    """Someone asked for the end of this prompt; raised where a node looks."""


class InterruptFlag:
    def __init__(self) -> None:
        self._set = threading.Event()

    def set(self) -> None:
        self._set.set()

    def clear(self) -> None:
        self._set.clear()

    def check(self) -> None:
        if self._set.is_set():
            self._set.clear()
            raise Interrupted


@dataclass
class Progress:
    """One prompt's nodes. Every change is sent, to all clients when the prompt has no client_id."""

    hub: Hub
    prompt_id: str
    nodes: dict[str, Json] = field(default_factory=dict)

    def start(self, node_id: str) -> None:
        self._change(node_id, 0.0, 1.0, "running")

    def update(self, node_id: str, value: int, maximum: int) -> None:
        self._change(node_id, value, maximum, "running")
        data = {"value": value, "max": maximum, "prompt_id": self.prompt_id, "node": node_id}
        self.hub.send("progress", data, self.hub.client_id)

    def finish(self, node_id: str) -> None:
        maximum = self.nodes[node_id]["max"] if node_id in self.nodes else 1
        self._change(node_id, maximum, maximum, "finished")

    def _change(self, node_id: str, value: float, maximum: float, state: str) -> None:
        self.nodes[node_id] = {
            "value": value,
            "max": maximum,
            "state": state,
            "node_id": node_id,
            "prompt_id": self.prompt_id,
            "display_node_id": node_id,
            "parent_node_id": None,
            "real_node_id": node_id,
        }
        self.hub.send("progress_state", {"prompt_id": self.prompt_id, "nodes": dict(self.nodes)}, self.hub.client_id)


@dataclass(frozen=True)
class NodeRun:
    """The `Run` one node gets."""

    folders: Folders
    metadata: bool
    node_id: str
    reporter: Progress
    interrupt: InterruptFlag

    def progress(self, value: int, maximum: int) -> None:
        self.interrupt.check()
        self.reporter.update(self.node_id, value, maximum)

    def check(self) -> None:
        self.interrupt.check()
