"""The websocket: what a server says while a prompt runs, and a hint of its end. Never the truth; all is well without.

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
from typing import Any

import websocket

from wan2gp.comfy_sidecar.prompt_progress import PromptProgress

CONNECT_S = 2.0
JOIN_S = 2.0
LARGEST_TEXT = 32 * 1024 * 1024
FEATURES = json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
"""Said first on a connection: previews then come with the prompt that they are of."""
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
"""The server sends no heartbeat; the kernel finds a link that died."""


class EventStream:
    """A connection and its reader. Start with :meth:`connect`; after it broke, :meth:`connect` again."""

    def __init__(self, base_url: str) -> None:
        self.client_id = uuid.uuid4().hex
        scheme, _, rest = base_url.partition("://")
        self._url = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/ws?clientId={self.client_id}"
        self._socket: websocket.WebSocket | None = None
        self._thread: threading.Thread | None = None
        self._progress: PromptProgress | None = None
        self.delivers = False
        """Whether more than a greeting came on this connection while somebody followed it."""

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
            self._socket.send(FEATURES)
        except (websocket.WebSocketException, OSError):
            self.close()
            return False
        self._socket.settimeout(None)
        self.delivers = False
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
                elif opcode == websocket.ABNF.OPCODE_BINARY and (progress := self._progress) is not None:
                    self.delivers = True
                    progress.apply_binary(payload)
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
                kind, data = str(message.get("type")), message["data"]
                self.delivers = self.delivers or not _is_greeting(kind, data)
                progress.apply(kind, data)


def _is_greeting(kind: str, data: Mapping[str, Any]) -> bool:
    """What a server says to each new connection by itself: it comes also where nothing else would."""
    return kind == "feature_flags" or (kind == "status" and "sid" in data)
