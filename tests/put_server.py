"""A server that takes one PUT after the other, or does not."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

SIGNATURE = "s3cr3t-signature%2Bof%2Fa-task"
QUERY = f"X-Amz-Expires=60&X-Amz-Signature={SIGNATURE}"


class PutServer(ThreadingHTTPServer):
    """Answers with what ``answers`` has next, else 200; keeps what was sent."""

    daemon_threads = False
    block_on_close = True

    def __init__(self, trust: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Put)
        self.answers: list[tuple[int, dict[str, str], str]] = []
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.early = False
        """It answers before it has read the body, and closes."""
        self.drops = 0
        """So many requests are read to their end and not answered."""
        self.silent = threading.Event()
        self.reached = threading.Event()
        self.scheme = "http"
        if trust is not None:
            self.socket, self.scheme = trust.wrap_socket(self.socket, server_side=True), "https"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def url(self, host: str = "127.0.0.1", path: str = "/bucket/a%20clip.mp4") -> str:
        return f"{self.scheme}://{host}:{self.server_address[1]}{path}?{QUERY}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are expected."""

    def close(self) -> None:
        self.silent.clear()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Put(BaseHTTPRequestHandler):
    server: PutServer

    def log_message(self, format: str, *args: Any) -> None:
        """The test's output is not the place."""

    def do_PUT(self) -> None:
        self.server.reached.set()
        while self.server.silent.is_set():
            time.sleep(0.01)
        body = b"" if self.server.early else self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, dict(self.headers.items()), body))
        if self.server.drops:
            self.server.drops -= 1
            return
        status, headers, said = self.server.answers.pop(0) if self.server.answers else (200, {}, "")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(said.encode())))
        self.end_headers()
        self.wfile.write(said.encode())


@pytest.fixture
def put_server() -> Iterator[PutServer]:
    server = PutServer()
    yield server
    server.close()
