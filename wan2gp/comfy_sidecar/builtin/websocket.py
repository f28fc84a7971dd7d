"""The websockets: who is connected, and one queue through which every message goes, in order.

As in the real server there is one sender for all: a client that does not read holds up the others.
The worker calls `send` from its thread; everything else here runs in the event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, WSMsgType, web

PREVIEW_IMAGE, PREVIEW_IMAGE_WITH_METADATA = 1, 4
JPEG = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Message:
    event: str
    data: Any
    sid: object
    """None: to every client. Whatever a prompt called its client_id: no client has an id that is no string."""


@dataclass(frozen=True)
class Preview:
    """A JPEG of what a node has made so far. `node` says whose it is, None where the client is not told."""

    jpeg: bytes
    node: dict[str, Any] | None
    sid: object

    def encoded(self) -> bytes:
        """The binary message: the event's number, then what it announces, big-endian."""
        if self.node is None:
            return struct.pack(">II", PREVIEW_IMAGE, JPEG) + self.jpeg
        metadata = json.dumps({**self.node, "image_type": "image/jpeg"}).encode()
        return struct.pack(">II", PREVIEW_IMAGE_WITH_METADATA, len(metadata)) + metadata + self.jpeg


@dataclass
class Hub:
    """`client_id` and `last_node` belong to the prompt that runs; the worker thread writes them."""

    remaining: Callable[[], int]
    features: dict[str, Any]
    loop: asyncio.AbstractEventLoop
    client_id: Any = None
    last_node: str | None = None
    _sockets: dict[str, web.WebSocketResponse] = field(default_factory=dict)
    _wants_metadata: set[str] = field(default_factory=set)
    _outbox: asyncio.Queue[Message | Preview] = field(default_factory=asyncio.Queue)

    def send(self, event: str, data: Any, sid: object = None) -> None:
        """From any thread."""
        self._put(Message(event, data, sid))

    def send_preview(self, jpeg: bytes, node: dict[str, Any] | None, sid: object) -> None:
        """From any thread."""
        self._put(Preview(jpeg, node, sid))

    def is_told_of_nodes(self, sid: object) -> bool:
        """Whether this client asked for previews that say whose they are."""
        return isinstance(sid, str) and sid in self._wants_metadata

    def _put(self, message: Message | Preview) -> None:
        """A message after the loop closed has nobody to go to."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._outbox.put_nowait, message)

    def queue_updated(self) -> None:
        self.send("status", self._status())

    def _status(self) -> dict[str, Any]:
        return {"status": {"exec_info": {"queue_remaining": self.remaining()}}}

    async def publish_forever(self) -> None:
        """Raises TypeError for data that is no JSON: that ends the server, as it ends the real one."""
        while True:
            message = await self._outbox.get()
            if isinstance(message, Preview):
                await self._deliver(message.sid, message.encoded())
            else:
                await self._deliver(message.sid, json.dumps({"type": message.event, "data": message.data}))

    async def _deliver(self, sid: object, data: str | bytes) -> None:
        for socket in self._receivers(sid):
            try:
                await (socket.send_str(data) if isinstance(data, str) else socket.send_bytes(data))
            except (ClientError, ConnectionError) as error:
                log.warning("send error: %s", error)

    def _receivers(self, sid: object) -> list[web.WebSocketResponse]:
        if sid is None:
            return list(self._sockets.values())
        return [self._sockets[sid]] if isinstance(sid, str) and sid in self._sockets else []

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """GET /ws. The clean-up takes the id out whoever holds it by then, as the real one does."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sid = request.rel_url.query.get("clientId", "") or uuid.uuid4().hex
        self._sockets[sid] = socket
        try:
            self.send("status", {**self._status(), "sid": sid}, sid)
            if self.client_id == sid and self.last_node is not None:
                self.send("executing", {"node": self.last_node}, sid)
            await self._read(socket, sid)
        finally:
            self._sockets.pop(sid, None)
            self._wants_metadata.discard(sid)
        return socket

    async def _read(self, socket: web.WebSocketResponse, sid: str) -> None:
        """Feature flags count in the first JSON object only; what comes before and is none is passed over."""
        first = True
        async for message in socket:
            if message.type is WSMsgType.ERROR:
                log.warning("ws connection closed with exception %s", socket.exception())
            elif message.type is WSMsgType.TEXT:
                first = self._heard(message.data, sid, first)

    def _heard(self, text: str, sid: str, first: bool) -> bool:
        """Returns whether the next text is still the first."""
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            log.warning("invalid JSON from a websocket client: %s", text[:80])
            return first
        if not isinstance(data, dict):
            return first
        if first and data.get("type") == "feature_flags":
            flags = data.get("data")
            if isinstance(flags, dict) and flags.get("supports_preview_metadata") is True:
                self._wants_metadata.add(sid)
            self.send("feature_flags", self.features, sid)
        return False
