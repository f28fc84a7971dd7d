"""The websocket: how far a prompt is, and a hint that it ended. Never the truth; all is well without it.

One connection serves a whole life of a server, under a client id of its own: a second connection under the same id
would make both deaf. The thread does nothing but read, since one client that does not stops the messages to all.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import websocket

from wan2gp.comfy_sidecar.process import monotonic

CONNECT_S = 2.0
JOIN_S = 2.0
LARGEST_TEXT = 32 * 1024 * 1024
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
"""The server sends no heartbeat; the kernel finds a link that died."""


@dataclass(frozen=True)
class Snapshot:
    """How far a prompt is: ``fraction`` 0..1 over its nodes, the node that runs, and its sampler's steps."""

    fraction: float = 0.0
    node_id: str | None = None
    step: int | None = None
    steps: int | None = None


class PromptProgress:
    """Follows one prompt's messages. Fed by the reader's thread, read by another; knows no socket."""

    def __init__(self, prompt_id: str, node_ids: set[str]) -> None:
        self.prompt_id = prompt_id
        self.changed = threading.Event()
        """Set at the prompt's end, or when the connection broke: look at the truth now."""
        self.last_message_s: float | None = None
        self._nodes = node_ids
        self._parts: dict[str, float] = {}
        self._now = Snapshot()

    def snapshot(self) -> Snapshot:
        return self._now

    def apply(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take one message.

        Without a prompt id come ``status``, what monitors among the custom nodes send for ever (it is no progress),
        and, after a reconnection, one ``executing``: only ours can be meant by that.
        """
        if data.get("prompt_id", self.prompt_id if kind == "executing" else None) != self.prompt_id:
            return
        self.last_message_s = monotonic()
        if kind == "execution_cached":
            self._parts.update(dict.fromkeys(_texts(data.get("nodes")), 1.0))
        elif kind == "executing":
            self._executing(data)
        elif kind == "progress":
            self._step(data)
        elif kind == "progress_state":
            self._state(data)
        elif kind == "executed":
            self._parts[_display(data)] = 1.0
        self._update()

    def _executing(self, data: Mapping[str, Any]) -> None:
        if data.get("node") is None:
            if "prompt_id" in data:
                self.changed.set()
            return
        if self._now.node_id is not None and self._now.node_id != _display(data):
            self._parts[self._now.node_id] = 1.0
        self._now = Snapshot(self._now.fraction, _display(data))

    def _step(self, data: Mapping[str, Any]) -> None:
        value, most = data.get("value"), data.get("max")
        if isinstance(value, (int, float)) and isinstance(most, (int, float)) and most > 0:
            node_id = str(data.get("node"))
            if node_id in self._nodes:
                self._parts[node_id] = min(1.0, value / most)
            self._now = Snapshot(self._now.fraction, self._now.node_id, int(value), int(most))

    def _state(self, data: Mapping[str, Any]) -> None:
        nodes = data.get("nodes")
        for state in nodes.values() if isinstance(nodes, dict) else ():
            # Nodes that a subgraph made count through the node that stands in the prompt.
            if isinstance(state, dict) and state.get("real_node_id", state.get("node_id")) == state.get("node_id"):
                value, most = state.get("value"), state.get("max")
                if state.get("state") == "finished":
                    self._parts[str(state.get("node_id"))] = 1.0
                elif isinstance(value, (int, float)) and isinstance(most, (int, float)) and most > 0:
                    self._parts[str(state.get("node_id"))] = min(1.0, value / most)

    def _update(self) -> None:
        done = sum(part for node_id, part in self._parts.items() if node_id in self._nodes)
        fraction = done / max(1, len(self._nodes))
        now = self._now
        self._now = Snapshot(max(now.fraction, min(1.0, fraction)), now.node_id, now.step, now.steps)


class EventStream:
    """A connection and its reader. Start with :meth:`connect`; after it broke, :meth:`connect` again."""

    def __init__(self, base_url: str) -> None:
        self.client_id = uuid.uuid4().hex
        scheme, _, rest = base_url.partition("://")
        self._url = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/ws?clientId={self.client_id}"
        self._socket: websocket.WebSocket | None = None
        self._thread: threading.Thread | None = None
        self._progress: PromptProgress | None = None

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def follow(self, progress: PromptProgress | None) -> None:
        """From now on messages go to ``progress``."""
        self._progress = progress

    def connect(self) -> bool:
        """True when connected. The old connection is closed first: two under one id make both deaf."""
        self.close()
        try:
            self._socket = websocket.create_connection(
                self._url, timeout=CONNECT_S, sockopt=KEEPALIVE, suppress_origin=True, skip_utf8_validation=True
            )
        except (websocket.WebSocketException, OSError):
            self._socket = None
            return False
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._read, args=(self._socket,), name="comfy-events", daemon=True)
        self._thread.start()
        return True

    def close(self) -> None:
        """End the reader and the connection. Safe to call again."""
        if self._socket is not None and self._socket.sock is not None:
            with contextlib.suppress(OSError):  # wakes the reader; the peer may be gone already
                self._socket.sock.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join(JOIN_S)
        if self._socket is not None:
            self._socket.shutdown()  # type: ignore[no-untyped-call]
        self._socket = self._thread = None

    def _read(self, connection: websocket.WebSocket) -> None:
        try:
            while True:
                opcode, payload = connection.recv_data()
                if opcode == websocket.ABNF.OPCODE_TEXT:
                    self._take(payload)
                elif opcode == websocket.ABNF.OPCODE_CLOSE:
                    return
        except (websocket.WebSocketException, OSError):
            return  # the link broke: the poll goes on without it
        finally:
            if (progress := self._progress) is not None:
                progress.changed.set()

    def _take(self, payload: bytes) -> None:
        progress = self._progress
        if progress is None or len(payload) > LARGEST_TEXT:
            return
        with contextlib.suppress(ValueError, RecursionError):  # a node may send what it likes; it is only a hint
            message = json.loads(payload)
            if isinstance(message, dict) and isinstance(message.get("data"), dict):
                progress.apply(str(message.get("type")), message["data"])


def _display(data: Mapping[str, Any]) -> str:
    """The node of the prompt behind a node of a subgraph."""
    return str(data.get("display_node") or data.get("node"))


def _texts(value: Any) -> list[str]:
    return [str(part) for part in value] if isinstance(value, list) else []
