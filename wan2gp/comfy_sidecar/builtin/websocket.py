"""The websockets: who is connected, and one queue through which every message goes, in order.

As in the real server there is one sender for all: a client that does not read holds up the others.
The worker calls `send` from its thread; everything else here runs in the event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, WSMsgType, web

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Message:
    event: str
    data: Any
    sid: str | None
    """None: to every client."""


@dataclass
class Hub:
    """`client_id` and `last_node` belong to the prompt that runs; the worker thread writes them."""

    remaining: Callable[[], int]
    features: dict[str, Any]
    loop: asyncio.AbstractEventLoop
    client_id: Any = None
    last_node: str | None = None
    _sockets: dict[str, web.WebSocketResponse] = field(default_factory=dict)
    _outbox: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)

    def send(self, event: str, data: Any, sid: Any = None) -> None:
        """From any thread. A message after the loop closed has nobody to go to."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._outbox.put_nowait, Message(event, data, sid))

    def queue_updated(self) -> None:
        self.send("status", self._status())

    def _status(self) -> dict[str, Any]:
        return {"status": {"exec_info": {"queue_remaining": self.remaining()}}}

    async def publish_forever(self) -> None:
        """Raises TypeError for data that is no JSON: that ends the server, as it ends the real one."""
        while True:
            message = await self._outbox.get()
            text = json.dumps({"type": message.event, "data": message.data})
            for socket in self._receivers(message.sid):
                try:
                    await socket.send_str(text)
                except (ClientError, ConnectionError) as error:
                    log.warning("send error: %s", error)

    def _receivers(self, sid: Any) -> list[web.WebSocketResponse]:
        if sid is None:
            return list(self._sockets.values())
        return [self._sockets[sid]] if sid in self._sockets else []

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
        return socket

    async def _read(self, socket: web.WebSocketResponse, sid: str) -> None:
        first = True
        async for message in socket:
            if message.type is WSMsgType.ERROR:
                log.warning("ws connection closed with exception %s", socket.exception())
            elif message.type is WSMsgType.TEXT:
                if first and _is_feature_flags(message.data):
                    self.send("feature_flags", self.features, sid)
                first = False


def _is_feature_flags(text: str) -> bool:
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        log.warning("invalid JSON from a websocket client: %s", text[:80])
        return False
    return isinstance(data, dict) and data.get("type") == "feature_flags"
