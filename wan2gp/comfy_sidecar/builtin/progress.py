"""What the websocket says about the nodes of the running prompt, and the flag that interrupts it."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wan2gp.comfy_sidecar.builtin.folders import Folders
from wan2gp.comfy_sidecar.builtin.registry import Json
from wan2gp.comfy_sidecar.builtin.websocket import Hub

if TYPE_CHECKING:
    from wan2gp.comfy_sidecar.builtin.media import Pixels

PREVIEW_SIDE = 512
"""A preview's longer side, in pixels, at most."""


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

    def update(self, node_id: str, value: int, maximum: int, jpeg: bytes | None = None) -> None:
        """A picture that says whose it is belongs to the node's state and comes before `progress`, a bare one after."""
        sid = self.hub.client_id
        known = self.hub.is_told_of_nodes(sid)
        self._change(node_id, value, maximum, "running")
        if jpeg is not None and known:
            self.hub.send_preview(jpeg, self._names(node_id), sid)
        self.hub.send("progress", {"value": value, "max": maximum, "prompt_id": self.prompt_id, "node": node_id}, sid)
        if jpeg is not None and not known:
            self.hub.send_preview(jpeg, None, sid)

    def finish(self, node_id: str) -> None:
        maximum = self.nodes[node_id]["max"] if node_id in self.nodes else 1
        self._change(node_id, maximum, maximum, "finished")

    def _change(self, node_id: str, value: float, maximum: float, state: str) -> None:
        self.nodes[node_id] = {"value": value, "max": maximum, "state": state, **self._names(node_id)}
        self.hub.send("progress_state", {"prompt_id": self.prompt_id, "nodes": dict(self.nodes)}, self.hub.client_id)

    def _names(self, node_id: str) -> Json:
        return {
            "node_id": node_id,
            "prompt_id": self.prompt_id,
            "display_node_id": node_id,
            "parent_node_id": None,
            "real_node_id": node_id,
        }


@dataclass(frozen=True)
class NodeRun:
    """The `Run` one node gets."""

    folders: Folders
    metadata: bool
    node_id: str
    reporter: Progress
    interrupt: InterruptFlag

    def progress(self, value: int, maximum: int, preview: Pixels | None = None) -> None:
        self.interrupt.check()
        self.reporter.update(self.node_id, value, maximum, None if preview is None else _jpeg(preview))

    def check(self) -> None:
        self.interrupt.check()


def _jpeg(picture: Pixels) -> bytes:
    from PIL import Image

    data = io.BytesIO()
    image = Image.fromarray(picture)
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.BILINEAR)
    image.save(data, format="JPEG", quality=95)
    return data.getvalue()
