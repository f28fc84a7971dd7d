"""A ComfyUI elsewhere, reached through a proxy that misbehaves: answers that are lost, late, or lies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from tests.comfy_jobs import Bench, fault, make_video, picture, spec_row
from tests.conftest_comfy import BuiltinServer, free_port
from wan2gp.handlers.comfy_input_files import called, plain_name
from wan2gp.protocol import Cancelled

Make = Callable[..., Bench]


@dataclass
class Proxy:
    """Forwards to `target`. `posts`: what to do with each POST /prompt in turn; afterwards it is honest.

    `lose`: forward, then close without an answer; `fail`: forward, then answer 500; `drop`: answer 500 only.
    """

    target: str
    posts: list[str] = field(default_factory=list)
    chokes: bool = False
    """Cannot say what became of a prompt, until that is deleted: the real one, when a node showed what is no JSON."""
    forgets: bool = False
    """Answers as a server that was started anew: it knows no prompt."""
    log: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def misdeed(self, method: str, path: str) -> str:
        self.log.append((method, path.partition("?")[0]))
        return self.posts.pop(0) if method == "POST" and path == "/prompt" and self.posts else ""

    def count(self, method: str, path: str) -> int:
        return self.log.count((method, path))


def serve(proxy: Proxy) -> ThreadingHTTPServer:
    class Forward(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.forward("GET")

        def do_POST(self) -> None:
            self.forward("POST")

        def forward(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            misdeed = proxy.misdeed(method, self.path)
            if self.path.startswith("/ws"):
                self.answer(404, b"", "text/plain")
            elif misdeed == "drop" or (proxy.chokes and self.path.startswith("/history/")):
                self.answer(500, b"500 Internal Server Error", "text/plain")
            elif proxy.forgets and self.path.startswith(("/history", "/queue")) and method == "GET":
                empty = b'{"queue_running": [], "queue_pending": []}' if self.path == "/queue" else b"{}"
                self.answer(200, empty, "application/json")
            else:
                self.pass_on(method, body, misdeed)

        def pass_on(self, method: str, body: bytes, misdeed: str) -> None:
            kind = self.headers.get("Content-Type", "application/json")
            got = requests.request(method, proxy.target + self.path, data=body, headers={"Content-Type": kind})
            if misdeed == "lose":
                self.close_connection = True
            elif misdeed == "fail":
                self.answer(500, b"500 Internal Server Error", "text/plain")
            else:
                self.answer(got.status_code, got.content, got.headers.get("Content-Type", "text/plain"))

        def answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer(("127.0.0.1", 0), Forward)


@pytest.fixture
def proxy(builtin_server: BuiltinServer) -> Iterator[Proxy]:
    one = Proxy(builtin_server.url)
    httpd = serve(one)
    one.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield one
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.mark.long
@pytest.mark.parametrize("misdeed", ["fail", "lose"])
def test_a_prompt_whose_answer_is_lost_runs_once(bench: Make, proxy: Proxy, misdeed: str) -> None:
    """It was queued all the same: sent again it would run twice."""
    proxy.posts = [misdeed]
    bench(url=proxy.url).succeeds({"workflow": picture()})
    assert proxy.count("POST", "/prompt") == 1


def test_an_output_left_out_in_a_lost_answer_is_noticed(bench: Make, proxy: Proxy) -> None:
    proxy.posts = ["lose"]
    graph = picture()
    graph["9"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}
    failure = bench(url=proxy.url).fails({"workflow": graph})
    assert failure.code == "comfy.validation"
    assert "node 9 (SaveImage)" in failure.message


def test_a_prompt_that_never_arrived_is_sent_again(bench: Make, proxy: Proxy) -> None:
    proxy.posts = ["drop"]
    bench(url=proxy.url).succeeds({"workflow": picture()})
    assert proxy.count("POST", "/prompt") == 2


def test_a_server_that_takes_nothing_is_a_failure_with_its_answer(bench: Make, proxy: Proxy) -> None:
    proxy.posts = ["drop"] * 10
    failure = bench(url=proxy.url).fails({"workflow": picture()})
    assert (failure.code, failure.retryable) == ("comfy.api_error", True)
    assert "500" in failure.message


def test_a_result_that_cannot_be_told_is_the_graphs_fault(bench: Make, proxy: Proxy) -> None:
    proxy.chokes = True
    failure = bench(url=proxy.url).fails({"workflow": picture()})
    assert (failure.code, failure.retryable) == ("comfy.node_failed", False)
    assert proxy.count("POST", "/history") == 1


def test_a_prompt_that_the_server_forgot_is_retried(bench: Make, proxy: Proxy) -> None:
    proxy.forgets = True
    failure = bench(url=proxy.url).fails({"workflow": picture()})
    assert (failure.code, failure.retryable) == ("comfy.exited", True)


def test_an_external_server_gets_the_video_by_upload_and_gives_the_result_by_view(
    bench: Make, proxy: Proxy, tmp_path: Path
) -> None:
    """And without a websocket: the poll alone must do."""
    one = bench(make_video(tmp_path / "in.mp4"), url=proxy.url)
    row = {**spec_row(), "video_url": "https://example.com/my%20clip%22%20(1)%20%C3%A9.mp4?sig=1"}
    (artifact,) = one.succeeds(row).artifacts
    assert (artifact.frames, artifact.kind) == (12, "video")
    assert ("comfy.uploaded", {"kind": "video", "name": "my_clip_1_.mp4"}) in one.facts
    assert proxy.count("POST", "/upload/image") == 1 and proxy.count("GET", "/view") == 1
    ((state, said),) = one.states
    assert state == "ready" and said["url"] == proxy.url and said["version"] == "0.3.64"
    assert "not ours to restart" in said["whose"]


def test_a_video_that_an_external_server_finds_too_large_is_not_tried_again(
    bench: Make, start_builtin: Callable[..., BuiltinServer], tmp_path: Path
) -> None:
    small = start_builtin("--max-upload-size", "0.001")
    failure = bench(make_video(tmp_path / "in.mp4"), url=small.url).fails(spec_row())
    assert (failure.code, failure.retryable) == ("input.too_large", False)


def test_cancelling_on_an_external_server_takes_the_prompt_out(
    bench: Make, proxy: Proxy, builtin_server: BuiltinServer
) -> None:
    one = bench(url=proxy.url)
    one.heard = lambda name, _: one.cancel.set() if name == "comfy.queued" else None
    assert isinstance(one.run({"workflow": fault("TestSleep", seconds=60, steps=6000)}), Cancelled)
    assert builtin_server.get("/queue") == {"queue_running": [], "queue_pending": []}


@pytest.mark.long
def test_waiting_behind_anothers_prompt_is_not_being_stuck(
    bench: Make, proxy: Proxy, builtin_server: BuiltinServer
) -> None:
    for nonce in range(4):
        builtin_server.post(fault("TestSleep", seconds=1.0, steps=1, nonce=nonce))
    bench(url=proxy.url, stuck_s=3.5).succeeds({"workflow": picture()})


@pytest.mark.long
def test_an_external_server_that_is_not_there_costs_no_task(bench: Make) -> None:
    url = f"http://user:secret@127.0.0.1:{free_port()}"
    failure = bench(url=url).fails({"workflow": picture()})
    assert failure.code == "comfy.not_ready" and failure.engine_down
    assert "secret" not in failure.message


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://x/a/b.MP4?token=1", "b.MP4"),
        ("https://x/a/get.php?token=1", "get.php.mp4"),
        ("https://x/", "input.mp4"),
        ("https://x/..%2F..%2Fetc%2Fpasswd", "passwd.mp4"),
        ("https://x/....mp4", "mp4.mp4"),
        ("https://x/" + "n" * 300 + ".mp4", "n" * 76 + ".mp4"),
        ("https://x/%F0%9F%98%80.mp4", "mp4.mp4"),
    ],
)
def test_the_name_of_an_input_is_plain(url: str, name: str) -> None:
    assert plain_name(called(url), Path("video_url.mp4")) == name
