"""A TCP link to Postgres that can go bad: it freezes without closing, or swallows notifications as a pooler does."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class FaultyLink:
    """Listens on loopback, forwards to the server behind ``url``; ``self.url`` leads through it."""

    def __init__(self, url: str, *, swallow: bool = False) -> None:
        self._target = conninfo_to_dict(url)
        self._swallow = swallow
        self._open = threading.Event()
        self._open.set()
        self._closing = False
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        more: dict[str, Any] = {"host": "127.0.0.1", "port": self._listener.getsockname()[1]}
        self.url = make_conninfo(url, sslmode="disable", gssencmode="disable", **more)

    def __enter__(self) -> FaultyLink:
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._open.set()
        for one in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(10)

    def freeze(self) -> None:
        """From now on nothing passes in either direction, and nobody is told."""
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    def drop(self) -> None:
        """Every connection breaks now; new ones pass."""
        broken, self._sockets = self._sockets, []
        for one in broken:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _spawn(self, target: Any, *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = self._connect()
            except OSError:  # nobody listens behind it now: as if this were the server
                client.close()
                continue
            self._sockets += [client, server]
            self._spawn(self._copy, client, server, False)
            self._spawn(self._copy, server, client, self._swallow)

    def _connect(self) -> socket.socket:
        host, port = str(self._target["host"]), int(self._target.get("port") or 5432)
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    def _copy(self, source: socket.socket, sink: socket.socket, swallow: bool) -> None:
        with contextlib.suppress(OSError):
            for chunk in _messages(source) if swallow else iter(lambda: source.recv(65536), b""):
                self._open.wait()
                sink.sendall(chunk)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _messages(source: socket.socket) -> Iterator[bytes]:
    """The server's messages (a type byte, a length) without its NotificationResponses."""
    buffer = b""
    while chunk := source.recv(65536):
        buffer += chunk
        while len(buffer) >= 5 and len(buffer) >= (size := 1 + int.from_bytes(buffer[1:5], "big")):
            message, buffer = buffer[:size], buffer[size:]
            if message[:1] != b"A":
                yield message
