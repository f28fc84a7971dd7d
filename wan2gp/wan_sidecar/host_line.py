"""JSON objects, one a line, over a socket: the engine process's end. Standard library only."""

from __future__ import annotations

import json
import select
import socket
import threading
from typing import Any

LINE_BYTES = 1 << 20
"""A longer line is a mistake of whoever sends it."""
CHUNK_BYTES = 65536


class LineClosed(Exception):
    """There is nobody at the other end any more."""


class Line:
    """Any thread may say something; one hears."""

    def __init__(self, channel: socket.socket) -> None:
        channel.setblocking(True)
        self._channel = channel
        self._saying = threading.Lock()
        self._rest = b""
        self._poller = select.poll()
        self._poller.register(channel, select.POLLIN)

    def say(self, word: str, /, **fields: Any) -> None:
        """Raises LineClosed. What is too long is replaced by a word on it: an answer must come."""
        line = json.dumps({"is": word, **fields}, ensure_ascii=True, allow_nan=False).encode() + b"\n"
        if len(line) > LINE_BYTES:
            line = json.dumps({"is": "too_long", "of": word, "bytes": len(line)}).encode() + b"\n"
        try:
            with self._saying:
                self._channel.sendall(line)
        except OSError as error:
            raise LineClosed from error

    def hear(self, timeout_s: float | None) -> dict[str, Any] | None:
        """The next request, or None after ``timeout_s`` seconds; None waits for ever. Raises LineClosed."""
        while b"\n" not in self._rest:
            if not self._poller.poll(None if timeout_s is None else timeout_s * 1000):
                return None
            try:
                chunk = self._channel.recv(CHUNK_BYTES)
            except OSError:
                chunk = b""
            if not chunk:
                raise LineClosed
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        found = json.loads(line)
        return dict(found)
