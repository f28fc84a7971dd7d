"""A hub on the loopback: files with sizes, validators, checksums and ranges; it can be told to get each wrong."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest


def safetensors(elements: int = 256, fill: bytes = b"\x01") -> bytes:
    """A small real one, with two tensors."""
    half = elements // 2
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for index, name in enumerate(("lora.down", "lora.up")):
        header[name] = {"dtype": "F32", "shape": [half], "data_offsets": [index * half * 4, (index + 1) * half * 4]}
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + fill * (half * 8)


@dataclass
class Shown:
    """One file, and how it is served."""

    body: bytes
    etag: str | None = '"v1"'
    linked: bool = False
    """Its first answer is a redirect that tells its checksum, as the hub's is."""
    checksum: str | None = None
    """That is told instead of the true one."""
    breaks: list[int] = field(default_factory=list)
    """After so many bytes of the body the connection of the next answers is cut."""
    truncated: list[int] = field(default_factory=list)
    """The next answers announce and have only so many bytes."""
    ranges: bool = True
    plain_end: bool = False
    """No length is announced: the body ends with its connection."""
    status: int = 200
    hold: threading.Event | None = None
    """The second half of the body waits for it."""


class ModelServer(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Hub)
        self.files: dict[str, Shown] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.half_sent = threading.Event()
        self.closing = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def show(self, path: str, body: bytes, **how: Any) -> str:
        """Serve it from now on; returns its URL."""
        self.files[path] = Shown(body, **how)
        return self.host + path

    def ranges(self) -> list[str | None]:
        """What was asked for in each request for a body."""
        return [headers.get("Range") for path, headers in self.requests if not path.startswith("/cdn")] or []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is what some tests are about."""

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Hub(BaseHTTPRequestHandler):
    server: ModelServer

    def log_message(self, format: str, *args: Any) -> None:
        """The test's output is not the place."""

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers.items())))
        path = urlsplit(self.path).path
        shown = self.server.files.get(path.removeprefix("/cdn"))
        if shown is None or shown.status != 200:
            self.send_error(404 if shown is None else shown.status)
        elif shown.linked and not path.startswith("/cdn"):
            self.send_response(302)
            self.send_header("Location", f"/cdn{path}")
            self.send_header("X-Linked-ETag", f'"{shown.checksum or hashlib.sha256(shown.body).hexdigest()}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_file(shown)

    def send_file(self, shown: Shown) -> None:
        body = shown.body[: shown.truncated.pop(0)] if shown.truncated else shown.body
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if span is not None and shown.ranges and condition in (None, shown.etag):
            begin, end = int(span[1]), int(span[2] or len(body) - 1)
            if begin >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{min(end, len(body) - 1)}/{len(body)}")
            body = body[begin : end + 1]
        else:
            self.send_response(200)
        if shown.etag is not None:
            self.send_header("ETag", shown.etag)
        if not shown.plain_end:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = shown.breaks.pop(0) if shown.breaks else len(body)
        half = len(body) // 2 if shown.hold is not None else 0
        self.wfile.write(body[:half])
        self.wfile.flush()
        if shown.hold is not None:
            self.server.half_sent.set()
            while not shown.hold.wait(0.01) and not self.server.closing.is_set():
                pass
        self.wfile.write(body[half:cut])
        if cut < len(body):
            self.close_connection = True


@pytest.fixture
def hub() -> Iterator[ModelServer]:
    server = ModelServer()
    yield server
    for shown in server.files.values():
        if shown.hold is not None:
            shown.hold.set()
    server.close()
