"""A TCP link to Postgres that can go bad: it freezes without closing, refuses, crawls, swallows notifications as a
pooler does, or holds one call, or its answer, in the very moment in which it passes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Tap:
    """The next call of ``wan2gp_<verb>…`` stops here: before it is made or, with ``answer``, once the server has done
    it and has said so in an answer with these bytes, before anybody hears of that."""

    def __init__(self, verb: str, answer: bytes | None) -> None:
        self.answer = answer
        self.caught = threading.Event()
        self.free = threading.Event()
        self._text = f"wan2gp_{verb}".encode()

    def waits_for(self, statement: bytes) -> bool:
        return not self.caught.is_set() and not self.free.is_set() and self._text in statement

    def hold(self) -> None:
        self.caught.set()
        self.free.wait()


class FaultyLink:
    """Listens on loopback, forwards to the server behind ``url``; ``self.url`` leads through it."""

    def __init__(self, url: str, *, swallow: bool = False) -> None:
        self._target = conninfo_to_dict(url)
        self._swallow = swallow
        self.answers_per_s: float | None = None
        """How many bytes of answers pass in a second, on each connection; None: as many as come."""
        self._open = threading.Event()
        self._open.set()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._taps: list[Tap] = []
        # Holds the port while nobody listens on it; without a listener the kernel refuses.
        self._guard = socket.socket()
        self._guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._guard.bind(("127.0.0.1", 0))
        self._port: int = self._guard.getsockname()[1]
        self._listener: socket.socket | None = None
        more: dict[str, Any] = {"host": "127.0.0.1", "port": self._port}
        self.url = make_conninfo(url, sslmode="disable", gssencmode="disable", **more)

    def __enter__(self) -> FaultyLink:
        self.mend()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.set()
        self.cut()
        self._guard.close()
        for thread in self._threads:
            thread.join(10)

    def freeze(self) -> None:
        """From now on nothing passes in either direction, and nobody is told."""
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    def cut(self) -> None:
        """All connections break, with the calls that are held in them; new ones are refused."""
        listener, self._listener = self._listener, None
        sockets, self._sockets = self._sockets, []
        for one in [*([listener] if listener else []), *sockets]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        taps, self._taps = self._taps, []
        for tap in taps:
            tap.free.set()

    def mend(self) -> None:
        """It accepts connections again."""
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=128, reuse_port=True)
        self._spawn(self._accept, self._listener)

    def tap(self, verb: str, *, answer: bytes | None = None) -> Tap:
        """Hold the next call of a verb, until the link is cut."""
        self._taps.append(Tap(verb, answer))
        return self._taps[-1]

    def _spawn(self, target: Any, *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = self._connect()
            except OSError:
                client.close()
                continue
            self._sockets += [client, server]
            talk = _Talk(self._held)
            self._spawn(self._copy, talk.calls(client), client, server)
            self._spawn(self._copy, talk.answers(server, self._swallow), server, client, True)

    def _held(self, statement: bytes) -> Tap | None:
        return next((tap for tap in list(self._taps) if tap.waits_for(statement)), None)

    def _connect(self) -> socket.socket:
        host, port = str(self._target["host"]), int(self._target.get("port") or 5432)
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(f"{host}/.s.PGSQL.{port}")
        except OSError:
            server.close()
            raise
        return server

    def _copy(
        self, passing: Iterator[bytes], source: socket.socket, sink: socket.socket, answers: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            for chunk in passing:
                if self.answers_per_s is not None and answers:
                    time.sleep(len(chunk) / self.answers_per_s)
                self._open.wait()
                sink.sendall(chunk)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class _Talk:
    """One connection: which statement each call is, though it was prepared long ago, and whose answer is held."""

    def __init__(self, held: Callable[[bytes], Tap | None]) -> None:
        self._held = held
        self._prepared: dict[bytes, bytes] = {}
        self._tap: Tap | None = None

    def calls(self, client: socket.socket) -> Iterator[bytes]:
        """What the client sends, up to each point where it waits for answers, since it sends so much in one write: no
        link freezes between the last two messages of a call and keeps its transaction open. The first message alone
        has no type."""
        buffer, begun, call = b"", False, b""
        while chunk := client.recv(65536):
            buffer += chunk
            while len(buffer) >= 4 + begun and len(buffer) >= (
                size := begun + int.from_bytes(buffer[begun : begun + 4], "big")
            ):
                message, buffer = buffer[:size], buffer[size:]
                tap = self._held(self._statement(message)) if begun else None
                call, whole, begun = call + message, not begun or message[:1] not in b"PBDEC", True
                if tap is not None:
                    self._tap = tap
                if tap is not None and tap.answer is None:
                    tap.hold()
                if whole:
                    yield call
                    call = b""

    def _statement(self, message: bytes) -> bytes:
        """The text of the statement that a message executes; empty when it executes none."""
        kind, body = message[:1], message[5:]
        if kind == b"P":
            name, text = body.split(b"\0")[:2]
            self._prepared[name] = text
        if kind == b"B":
            return self._prepared.get(body.split(b"\0")[1], b"")
        return body if kind == b"Q" else b""

    def answers(self, server: socket.socket, swallow: bool) -> Iterator[bytes]:
        for chunk in _messages(server) if swallow else iter(lambda: server.recv(65536), b""):
            tap = self._tap
            if tap is not None and tap.answer is not None and tap.answer in chunk:
                tap.hold()
            yield chunk


def _messages(source: socket.socket) -> Iterator[bytes]:
    """The server's messages (a type byte, a length) without its NotificationResponses."""
    buffer = b""
    while chunk := source.recv(65536):
        buffer += chunk
        while len(buffer) >= 5 and len(buffer) >= (size := 1 + int.from_bytes(buffer[1:5], "big")):
            message, buffer = buffer[:size], buffer[size:]
            if message[:1] != b"A":
                yield message
