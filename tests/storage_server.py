"""The Storage stand-in alone behind an HTTP port of the loopback, with a key of its own."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.storage_stand_in import StorageStandIn


class StorageServer:
    """Runs in a thread from :meth:`start` to :meth:`stop`."""

    def __init__(self, directory: Path) -> None:
        self.key = "sb_secret_" + secrets.token_urlsafe(24)
        self.storage = StorageStandIn(lambda token: token == self.key, directory)
        self.seen: list[tuple[str, str, int]] = []
        """(method, path, status) of every request that was answered."""
        self.headers: list[dict[str, str]] = []
        """Of every request, in order."""
        self.hangs = threading.Event()
        """While set, requests are read and not answered."""
        self.hangs_for: Callable[[web.Request], bool] = lambda request: True
        """Which of them."""
        self.hung = threading.Event()
        """Set once a request hangs."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="storage server")
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        self._run(self._open(0))

    def down(self) -> None:
        """Connections are refused from now on."""
        self._run(self._close())

    def up(self) -> None:
        """Listen again, on the same port."""
        self._run(self._open(self.port))

    def stop(self) -> None:
        self.hangs.clear()
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    async def _open(self, port: int) -> None:
        app = web.Application(client_max_size=2**31)
        app.router.add_route("*", "/{rest:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        waits = self.hangs_for(request)
        while waits and self.hangs.is_set():
            while request.content.total_bytes < (request.content_length or 0):
                await asyncio.sleep(0.005)  # till its sender has nothing more to do than to wait
            self.hung.set()
            await asyncio.sleep(0.02)
        answer = await self.storage.handle(request)
        self.seen.append((request.method, request.path, answer.status))
        return answer


@pytest.fixture
def storage_server(tmp_path: Path) -> Iterator[StorageServer]:
    server = StorageServer(tmp_path / "storage")
    server.start()
    try:
        yield server
    finally:
        server.stop()
