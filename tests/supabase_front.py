"""What stands before a project: one address, the gateway's treatment of keys, and faults on demand.

It streams both ways and keeps its port while it is down, so that a worker finds it again.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from aiohttp import web

from tests.front_gateway import Gateway, Seen, as_it_came, break_off
from tests.supabase_keys import ProjectKeys

_T = TypeVar("_T")
PATIENCE_S = 30.0


class Behind(Protocol):
    """Something that answers for a prefix of the paths; sees the whole path."""

    async def handle(self, request: web.Request) -> web.StreamResponse: ...


class Front:
    """Its thread starts with ``start`` and ends with ``close``; every public method is for the test's thread."""

    def __init__(self, keys: ProjectKeys) -> None:
        self._gateway = Gateway(keys)
        self.faults = self._gateway.faults
        self.requests = self._gateway.requests
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="supabase-front", daemon=True)
        self._runners: list[web.AppRunner] = []
        self._listener: asyncio.Server | None = None
        # Holds the port while nobody listens on it; without a listener the kernel refuses.
        self._guard = _bound(0)
        self.port: int = self._guard.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        self._run(self._open())

    def close(self) -> None:
        """Safe to repeat."""
        if self._thread.is_alive():
            self.faults.clear()
            self._run(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE_S)
        if not self._loop.is_closed():
            self._loop.close()
        self._guard.close()

    def down(self) -> None:
        """Connections break, new ones are refused."""
        self._run(self._down())

    def up(self) -> None:
        self._run(self._up())

    def serve_rest(self, address: str) -> None:
        """Where PostgREST is; ``""`` when it is not."""
        self._gateway.rest = address

    def serve(self, prefix: str, behind: Behind) -> None:
        """``behind`` answers for the paths below ``prefix``, on the front's loop."""
        self._gateway.behind[prefix] = self._run(self._open_behind(behind))

    def seen(self, path: str, method: str | None = None) -> list[Seen]:
        """The requests with ``path`` in their path or query."""
        return [one for one in list(self.requests) if path in one.path and method in (None, one.method)]

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    async def _open(self) -> None:
        await self._gateway.open()
        self._server = await self._serve(self._gateway.handle)
        await self._up()

    async def _close(self) -> None:
        await self._down()
        await self._gateway.close()
        for runner in self._runners:
            await runner.cleanup()

    async def _up(self) -> None:
        if self._listener is None:
            self._listener = await self._loop.create_server(self._server, sock=_bound(self.port), backlog=1024)

    async def _down(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await asyncio.sleep(0.005)  # what was accepted already is a connection only then
        deadline = time.monotonic() + PATIENCE_S
        while self._server.connections and time.monotonic() < deadline:
            for connection in self._server.connections:
                break_off(connection.transport)
            await asyncio.sleep(0.005)

    async def _open_behind(self, behind: Behind) -> str:
        site = web.SockSite(await self._runner(behind.handle), listener := _bound(0))
        await site.start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    async def _serve(self, handler: Any) -> web.Server[web.Request]:
        server = (await self._runner(handler)).server
        assert server is not None
        return server

    async def _runner(self, handler: Any) -> web.AppRunner:
        application = web.Application(client_max_size=2**40)
        application.router.add_route("*", "/{path:.*}", handler)
        application.on_response_prepare.append(as_it_came)
        # A client that has gone needs no answer, and what waits for it would wait for ever.
        runner = web.AppRunner(
            application, handler_cancellation=True, auto_decompress=False, access_log=None, shutdown_timeout=1.0
        )
        await runner.setup()
        self._runners.append(runner)
        return runner


def _bound(port: int) -> socket.socket:
    """Two may hold the port, since only one of them listens."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", port))
    return held
