"""A web server with one vice per path, on the loopback. ``/clip.mp4`` and ``/big.mp4`` are its virtues.

A vice that lasts goes on until the client leaves or the server is closed; nothing here outlives its test.
"""

from __future__ import annotations

import gzip
import ssl
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

CLIP = b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41" + bytes(range(256)) * 64
"""The beginning of a real MP4 file, then noise: 16 KiB."""
BIG_BYTES = 40 * 1024**2
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"
DRIP_S = 0.02


class BadWebServer(ThreadingHTTPServer):
    """``requests`` has every (path, headers) in order."""

    daemon_threads = False
    block_on_close = True

    def __init__(self, trust: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Vices)
        self.closing = threading.Event()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.gone: list[str] = []
        """Paths whose client left before the end."""
        self.scheme = "http"
        if trust is not None:
            self.socket = trust.wrap_socket(self.socket, server_side=True)
            self.scheme = "https"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves in the middle is what these tests are about."""

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Vices(BaseHTTPRequestHandler):
    server: BadWebServer

    def log_message(self, format: str, *args: Any) -> None:
        """The test's output is not the place."""

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers.items())))
        try:
            self.answer(urlsplit(self.path).path)
        except OSError:
            self.server.gone.append(self.path)

    def answer(self, path: str) -> None:
        status = path.strip("/")
        if status.isdigit():
            self.send(PAGE, status=int(status))
        elif path.startswith("/hops/"):
            left = int(path.rpartition("/")[2])
            self.redirect(f"/hops/{left - 1}" if left else "/clip.mp4")
        else:
            vice: Callable[[], None] = getattr(self, "vice_" + status.replace(".", "_").replace("-", "_").lower())
            vice()

    def send(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, to: str, status: int = 302) -> None:
        self.send(b"", status=status, Location=to)

    def last(self, piece: bytes, pause_s: float = DRIP_S) -> None:
        """Until the client leaves."""
        while not self.server.closing.wait(pause_s):
            self.wfile.write(piece)
            self.wfile.flush()

    # --- virtues

    def vice_clip_mp4(self) -> None:
        self.send(CLIP, Content_Type="video/mp4")

    def vice_download(self) -> None:
        """A clip without an extension, said to be something else."""
        self.send(CLIP, Content_Type="text/plain")

    def vice_big_mp4(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(BIG_BYTES))
        self.end_headers()
        for _ in range(BIG_BYTES // len(CLIP) + 1):
            self.wfile.write(CLIP[:BIG_BYTES])

    def vice_without_length(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CLIP)

    def vice_chunked(self) -> None:
        self.chunks(ends=True)

    def vice_gzip(self) -> None:
        self.send(gzip.compress(CLIP[:5000]) + gzip.compress(CLIP[5000:]), Content_Encoding="gzip")

    def vice_deflate(self) -> None:
        self.send(zlib.compress(CLIP), Content_Encoding="deflate")

    def vice_bare_deflate(self) -> None:
        squeeze = zlib.compressobj(wbits=-15)
        self.send(squeeze.compress(CLIP) + squeeze.flush(), Content_Encoding="deflate")

    def vice_keeps_the_connection(self) -> None:
        """Ignores Connection: close; whoever reads beyond the length waits for ever."""
        self.send(CLIP)
        self.wfile.flush()
        self.last(b"")

    # --- too slow

    def vice_silent(self) -> None:
        self.last(b"")

    def vice_slow_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        self.last(b"x")

    def vice_endless_continue(self) -> None:
        self.last(b"HTTP/1.1 100 Continue\r\n\r\n")

    def vice_drip(self) -> None:
        self.send(CLIP, length=10**6)
        self.last(b"x")

    def vice_stall(self) -> None:
        self.send(CLIP, length=10**6)
        self.wfile.flush()
        self.last(b"")

    # --- too much

    def vice_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CLIP)
        self.last(bytes(65536), pause_s=0)

    def vice_endless_chunks(self) -> None:
        self.chunks(ends=False)

    def vice_too_large(self) -> None:
        self.send(CLIP, length=10**15)

    def vice_gzip_bomb(self) -> None:
        self.send(gzip.compress(CLIP + bytes(50_000_000)), Content_Encoding="gzip")

    def vice_gzip_of_nothing(self) -> None:
        """Files without content one behind the other: whoever counts what they hold counts nothing, for ever."""
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.last(gzip.compress(b"") * 3000, pause_s=0)

    def vice_huge_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        self.last(b"X-Many: " + b"x" * 60000 + b"\r\n", pause_s=0)

    def chunks(self, *, ends: bool) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chunk = b"%x\r\n%s\r\n" % (len(CLIP), CLIP)
        self.wfile.write(chunk)
        if ends:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.last(chunk, pause_s=0)

    # --- lies

    def vice_truncated(self) -> None:
        self.send(CLIP, length=len(CLIP) + 1000)

    def vice_truncated_chunks(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%s" % (len(CLIP) + 1000, CLIP))

    def vice_truncated_gzip(self) -> None:
        self.send(gzip.compress(CLIP)[:-20], Content_Encoding="gzip")

    def vice_not_gzip(self) -> None:
        self.send(CLIP, Content_Encoding="gzip")

    def vice_brotli(self) -> None:
        self.send(CLIP, Content_Encoding="br")

    def vice_not_http(self) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")

    def vice_hangs_up(self) -> None:
        """No answer at all."""

    def vice_page_mp4(self) -> None:
        self.send(PAGE, Content_Type="video/mp4")

    def vice_empty_mp4(self) -> None:
        self.send(b"")

    def vice_noise_mp4(self) -> None:
        self.send(b"\x01\x02\x03\x04" * 2000)

    def vice_picture_mp4(self) -> None:
        self.send(b"\x89PNG\r\n\x1a\n" + bytes(5000))

    # --- redirects

    def vice_to(self) -> None:
        self.redirect(parse_qs(urlsplit(self.path).query)["url"][0])

    def vice_loop(self) -> None:
        self.redirect("/loop")

    def vice_circle_a(self) -> None:
        self.redirect("/circle-b", status=307)

    def vice_circle_b(self) -> None:
        self.redirect("/circle-a", status=301)

    def vice_for_ever(self) -> None:
        """Never the same place twice."""
        self.redirect(f"/for-ever?{len(self.server.requests)}")

    def vice_no_location(self) -> None:
        self.send(PAGE, status=302)


@pytest.fixture
def bad_web() -> Iterator[BadWebServer]:
    server = BadWebServer()
    yield server
    server.close()
