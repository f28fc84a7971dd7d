"""What the web does to a download: each vice ends in one code, one sentence, and no file."""

from __future__ import annotations

import re
import resource
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wan2gp.handlers.api import Interrupted, TaskFailure
from wan2gp.handlers.download import Download, Downloaded
from wan2gp.handlers.webstream import Limits
from wan2gp.protocol import Source

if TYPE_CHECKING:
    from tests.bad_web_server import BadWebServer

HERE = frozenset({"127.0.0.1"})
LIMIT_S = 30.0


def fetch(url: str, directory: Path, kind: str = "video", **given: Any) -> Downloaded:
    limits = Limits(**{"allow_private_hosts": HERE, "max_bytes": 10**6, "idle_s": 20.0, "total_s": 25.0, **given})
    return Download(Source(url, kind), directory, limits).run()


def failure(url: str, directory: Path, kind: str = "video", **given: Any) -> TaskFailure:
    with pytest.raises(TaskFailure) as caught:
        fetch(url, directory, kind, **given)
    assert list(directory.iterdir()) == [], "nothing of a failed download may stay"
    return caught.value


@pytest.mark.parametrize(
    "path",
    ["clip.mp4", "without-length", "chunked", "gzip", "deflate", "bare-deflate", "keeps-the-connection", "hops/7"],
)
def test_good_answers_arrive_byte_for_byte(bad_web: BadWebServer, tmp_path: Path, path: str) -> None:
    from tests.bad_web_server import CLIP

    got = fetch(bad_web.url(f"/{path}"), tmp_path)
    assert got.path.read_bytes() == CLIP and got.bytes == len(CLIP)
    assert got.path.suffix == ".mp4" and got.found.mime == "video/mp4"
    assert [path.name for path in tmp_path.iterdir()] == [got.path.name]


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("404", "input.not_found", "answered 404 Not Found"),
        ("410", "input.not_found", "410 Gone"),
        ("401", "input.not_found", "401 Unauthorized"),
        ("403", "input.not_found", "403 Forbidden: check that the link is right, public, and not expired"),
        ("500", "input.http_error", "500 Internal Server Error"),
        ("503", "input.http_error", "503 Service Unavailable"),
        ("429", "input.http_error", "429 Too Many Requests"),
        ("418", "input.http_error", "418"),
        ("799", "input.http_error", "799"),
        ("204", "input.http_error", "204 No Content"),
        ("no-location", "input.http_error", "302 Found"),
        ("not-http", "input.http_error", "no HTTP answer"),
        ("hangs-up", "input.http_error", "no HTTP answer"),
        ("huge-headers", "input.http_error", "no HTTP answer"),
        ("truncated", "input.http_error", r"broke off after \d+ bytes: 17416 were announced"),
        ("truncated-chunks", "input.http_error", "broke off"),
        ("truncated-gzip", "input.http_error", "gzip data are incomplete"),
        ("not-gzip", "input.http_error", "it is no gzip data"),
        ("brotli", "input.http_error", "the encoding 'br', which was not asked for"),
        ("page.mp4", "input.not_media", r"serves a web page \(HTML\), not a video"),
        ("picture.mp4", "input.not_media", "serves a PNG picture, not a video"),
        ("noise.mp4", "input.not_media", "data of an unknown format, not a video"),
        ("empty.mp4", "input.not_media", "an empty file, not a video"),
        ("too-large", "input.too_large", "1000000000000000 bytes, the limit is 1000000 bytes"),
        ("endless", "input.too_large", "more than that, the limit is 1000000 bytes"),
        ("endless-chunks", "input.too_large", "more than that"),
        ("gzip-bomb", "input.too_large", "more than that"),
        ("gzip-of-nothing", "input.too_large", "more than that"),
        ("loop", "input.redirects", "in a circle"),
        ("circle-a", "input.redirects", "in a circle"),
        ("for-ever", "input.redirects", "more than 8 times"),
        ("hops/8", "input.redirects", "more than 8 times"),
    ],
)
def test_bad_answers(bad_web: BadWebServer, tmp_path: Path, path: str, code: str, words: str) -> None:
    found = failure(bad_web.url(f"/{path}"), tmp_path)
    assert found.code == code and re.search(words, found.message), found.message


def test_status_is_told_to_programs_too(bad_web: BadWebServer, tmp_path: Path) -> None:
    assert failure(bad_web.url("/404"), tmp_path).detail == {"status": 404}


@pytest.mark.parametrize("path", ["silent", "slow-headers", "endless-continue", "stall"])
def test_server_that_falls_silent_or_never_ends_its_headers(bad_web: BadWebServer, tmp_path: Path, path: str) -> None:
    found = failure(bad_web.url(f"/{path}"), tmp_path, idle_s=0.3)
    assert found.code == "input.timeout" and "within 0.3 s" in found.message


@pytest.mark.parametrize("path", ["drip", "endless", "silent", "slow-headers"])
def test_server_that_keeps_going_for_longer_than_the_total_limit(
    bad_web: BadWebServer, tmp_path: Path, path: str
) -> None:
    found = failure(bad_web.url(f"/{path}"), tmp_path, total_s=0.4, max_bytes=10**12)
    assert found.code == "input.timeout" and "not done within 0.4 s" in found.message


@pytest.mark.parametrize("path", ["silent", "slow-headers", "drip", "stall", "endless"])
def test_cancelled_download_ends_at_once_and_leaves_the_server(
    bad_web: BadWebServer, tmp_path: Path, path: str
) -> None:
    limits = Limits(allow_private_hosts=HERE, max_bytes=10**12)
    download = Download(Source(bad_web.url(f"/{path}"), "video"), tmp_path, limits)
    ended: list[type[BaseException]] = []

    def run() -> None:
        try:
            download.run()
        except BaseException as error:
            ended.append(type(error))

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: bool(bad_web.requests), "the request")
    download.cancel()
    thread.join(LIMIT_S)
    assert ended == [Interrupted] and list(tmp_path.iterdir()) == []
    if path in ("slow-headers", "drip", "endless"):
        until(lambda: len(bad_web.gone) == 1, "that the server sees the client leave")


def test_cancelled_before_it_began(bad_web: BadWebServer, tmp_path: Path) -> None:
    download = Download(Source(bad_web.url("/clip.mp4"), "video"), tmp_path, Limits(allow_private_hosts=HERE))
    download.cancel()
    with pytest.raises(Interrupted):
        download.run()
    assert bad_web.requests == []


def test_cancelled_while_the_name_server_is_silent(tmp_path: Path) -> None:
    asked, release = threading.Event(), threading.Event()

    def lookup(host: str, port: int) -> Sequence[Any]:
        asked.set()
        release.wait(LIMIT_S)
        return []

    download = Download(Source("http://slow.example/", "any"), tmp_path, Limits(), lookup=lookup)
    canceller = threading.Thread(target=lambda: asked.wait(LIMIT_S) and download.cancel())
    canceller.start()
    with pytest.raises(Interrupted):
        download.run()
    release.set()
    canceller.join()


def test_cancelled_while_connecting_to_a_host_that_answers_nothing(tmp_path: Path) -> None:
    with full_listener() as port:
        download = Download(
            Source(f"http://127.0.0.1:{port}/", "any"), tmp_path, Limits(allow_private_hosts=HERE, connect_s=LIMIT_S)
        )
        timer = threading.Timer(0.1, download.cancel)
        timer.start()
        with pytest.raises(Interrupted):
            download.run()
        timer.join()


def test_host_that_answers_nothing(tmp_path: Path) -> None:
    with full_listener() as port:
        found = failure(f"http://127.0.0.1:{port}/", tmp_path, connect_s=0.2)
    assert found.code == "input.unreachable" and "no answer" in found.message


class full_listener:
    """A port whose queue of connections is full, so that one more is never answered."""

    def __enter__(self) -> int:
        self._server = socket.socket()
        self._server.bind(("127.0.0.1", 0))
        self._server.listen(0)
        self._clients = []
        for _ in range(3):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(self._server.getsockname())
            self._clients.append(client)
        return int(self._server.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        self._server.close()


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        found = failure(f"http://127.0.0.1:{port}/clip.mp4", tmp_path)
    assert found.code == "input.unreachable" and f"127.0.0.1 port {port}: Connection refused" in found.message


def test_host_that_does_not_exist(tmp_path: Path) -> None:
    found = failure("http://no-such-host.invalid/clip.mp4", tmp_path)
    assert found.code == "input.unreachable" and "cannot find the host no-such-host.invalid" in found.message


def test_memory_stays_flat_for_a_file_larger_than_the_allowance(bad_web: BadWebServer, tmp_path: Path) -> None:
    fetch(bad_web.url("/clip.mp4"), tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    got = fetch(bad_web.url("/big.mp4"), tmp_path, max_bytes=10**9)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert got.bytes == 40 * 1024**2 and grown_kib < 16 * 1024


def test_progress_tells_bytes_and_total(bad_web: BadWebServer, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    limits = Limits(allow_private_hosts=HERE)
    source = Source(bad_web.url("/big.mp4"), "video")
    Download(source, tmp_path, limits, progress=lambda done, total: told.append((done, total))).run()
    assert told[-1] == (40 * 1024**2, 40 * 1024**2) and told == sorted(told)


def test_disk_without_room_is_said_before_the_first_byte(
    bad_web: BadWebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 5000))  # type: ignore[attr-defined]
    found = failure(bad_web.url("/clip.mp4"), tmp_path)
    assert found.code == "worker.disk_full" and "0 MiB are free" in found.message


def test_disk_that_fills_up_under_a_body_of_unknown_length(
    bad_web: BadWebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else on the disk is left without a byte."""
    import shutil

    def free(path: Path) -> Any:
        taken = sum(file.stat().st_size for file in tmp_path.iterdir())
        return shutil._ntuple_diskusage(10**9, 10**9, 100 * 1024**2 - taken)  # type: ignore[attr-defined]

    monkeypatch.setattr("shutil.disk_usage", free)
    found = failure(bad_web.url("/endless"), tmp_path, max_bytes=10**9)
    assert found.code == "worker.disk_full" and re.search(r": \d+ MiB are free", found.message)


def until(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < deadline, f"this did not happen: {what}"
        time.sleep(0.005)
