"""The courier as a real process at the end of a real wire, with a web server that has every vice."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import zmq

from wan2gp.boot import Boot, encode_boot
from wan2gp.protocol import (
    Cancel,
    Down,
    Event,
    Fetch,
    Fetched,
    Progress,
    Shutdown,
    Source,
    Up,
    decode_up,
    encode,
)

if TYPE_CHECKING:
    from tests.bad_web_server import BadWebServer

LIMIT_S = 30.0
IDENTITY = "courier#1#nonce"
M = TypeVar("M", bound=Up)


class Courier:
    """The process, and the supervisor's end of its wire. ``seen`` holds all that it has said but its beats."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self.seen: list[Up] = []
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.bind(f"ipc://{path}/s")
        (path / "home").mkdir()
        boot = Boot(
            name="courier",
            target="wan2gp.handlers.courier:Courier",
            endpoint=f"ipc://{path}/s",
            identity=IDENTITY,
            home=str(path / "home"),
            settings={"allow_private_hosts": ["127.0.0.1"], "idle_s": LIMIT_S, "total_s": LIMIT_S, **settings},
            beat_s=0.05,
        )
        self.process = subprocess.Popen([sys.executable, "-m", "wan2gp.handlers", "courier"], stdin=subprocess.PIPE)
        assert self.process.stdin is not None
        self.process.stdin.write(encode_boot(boot))
        self.process.stdin.close()
        self._receive()  # its first beat: connected

    def send(self, message: Down) -> None:
        self._router.send_multipart([IDENTITY.encode(), encode(message)])

    def _receive(self) -> Up:
        assert self._router.poll(int(LIMIT_S * 1000)), "the courier says nothing, not even a beat"
        return decode_up(self._router.recv_multipart()[1])

    def until(self, kind: type[M], task_id: str) -> M:
        """The next message of that kind about that task."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            message = self._receive()
            if isinstance(message, (Event, Progress, Fetched)):
                self.seen.append(message)
                if isinstance(message, kind) and message.task_id == task_id:
                    return message
        raise AssertionError(f"no {kind.__name__} of {task_id} came, but {self.seen}")

    def fetch(self, task_id: str, lease_id: str = "l1", **urls: str) -> Path:
        directory = self.path / f"{task_id}-{lease_id}-{len(list(self.path.iterdir()))}"
        directory.mkdir()
        sources = {name: Source(url, "video") for name, url in urls.items()}
        self.send(Fetch(task_id, lease_id, sources, str(directory)))
        return directory

    def answers(self) -> list[tuple[str, str]]:
        return [(each.task_id, each.lease_id) for each in self.seen if isinstance(each, Fetched)]

    def close(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT_S)
        self._router.close()
        self._context.term()


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Courier]]:
    started: list[Courier] = []

    def begin(**settings: Any) -> Courier:
        started.append(Courier(tmp_path_factory.mktemp("c"), **settings))
        return started[-1]

    yield begin
    for courier in started:
        courier.close()


def until(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < deadline, f"this did not happen: {what}"
        time.sleep(0.005)


def test_all_inputs_of_a_task_in_one_answer(start: Callable[..., Courier], bad_web: BadWebServer) -> None:
    from tests.bad_web_server import CLIP

    courier = start()
    directory = courier.fetch("t", first=bad_web.url("/clip.mp4?sig=secret"), second=bad_web.url("/clip.mp4"))
    answer = courier.until(Fetched, "t")
    assert answer.failure is None and answer.lease_id == "l1" and set(answer.files) == {"first", "second"}
    assert {Path(path).name for path in answer.files.values()} == {"clip.mp4", "clip-2.mp4"}
    assert all(Path(path).parent == directory and Path(path).read_bytes() == CLIP for path in answer.files.values())
    facts = [(each.name, each.fields["url"], each.task_id) for each in courier.seen if isinstance(each, Event)]
    shown = bad_web.url("/clip.mp4")
    assert sorted(facts) == 2 * [("input.downloaded", shown, "t")] + 2 * [("input.downloading", shown, "t")]
    told = [each.fields for each in courier.seen if isinstance(each, Event) and each.name == "input.downloaded"]
    assert all(fields["bytes"] == len(CLIP) and fields["seconds"] >= 0 for fields in told)


def test_nothing_to_fetch(start: Callable[..., Courier]) -> None:
    courier = start()
    courier.fetch("t")
    assert courier.until(Fetched, "t").files == {}


def test_first_failure_is_the_answer_and_ends_the_other_downloads(
    start: Callable[..., Courier], bad_web: BadWebServer
) -> None:
    courier = start()
    directory = courier.fetch("t", good=bad_web.url("/drip"), bad=bad_web.url("/404?sig=secret"))
    failure = courier.until(Fetched, "t").failure
    assert failure is not None and failure.code == "input.not_found" and failure.retryable is False
    assert failure.message.startswith("bad: http://127.0.0.1") and "secret" not in failure.message
    assert failure.detail == {"input": "bad", "status": 404}
    until(lambda: "/drip" in bad_web.gone or "/drip" not in bad_web.paths(), "that the other download ends")
    until(lambda: list(directory.iterdir()) == [], "that no part of a file stays")


@pytest.mark.parametrize(
    ("path", "code", "retryable"),
    [("500", "input.http_error", True), ("page.mp4", "input.not_media", False), ("loop", "input.redirects", False)],
)
def test_failures_say_whether_another_attempt_can_help(
    start: Callable[..., Courier], bad_web: BadWebServer, path: str, code: str, retryable: bool
) -> None:
    courier = start()
    courier.fetch("t", video_url=bad_web.url(f"/{path}"))
    failure = courier.until(Fetched, "t").failure
    assert failure is not None and (failure.code, failure.retryable) == (code, retryable)


@pytest.mark.parametrize(
    ("settings", "path", "code"),
    [
        ({"max_bytes": 1000}, "clip.mp4", "input.too_large"),
        ({"idle_s": 0.2}, "silent", "input.timeout"),
        ({"total_s": 0.3}, "drip", "input.timeout"),
        ({"allow_private_hosts": []}, "clip.mp4", "input.forbidden_address"),
    ],
)
def test_settings_bound_every_download(
    start: Callable[..., Courier], bad_web: BadWebServer, settings: dict[str, Any], path: str, code: str
) -> None:
    courier = start(**settings)
    courier.fetch("t", video_url=bad_web.url(f"/{path}"))
    failure = courier.until(Fetched, "t").failure
    assert failure is not None and failure.code == code


def test_zero_is_no_limit(start: Callable[..., Courier], bad_web: BadWebServer) -> None:
    courier = start(max_bytes=0, idle_s=0, total_s=0, allow_private_hosts=[], allow_private_urls=True)
    courier.fetch("t", video_url=bad_web.url("/big.mp4"))
    assert courier.until(Fetched, "t").failure is None


def test_slow_download_holds_up_nobody_else_and_shows_that_it_goes_on(
    start: Callable[..., Courier], bad_web: BadWebServer
) -> None:
    courier = start()
    courier.fetch("slow", video_url=bad_web.url("/drip"))
    courier.until(Event, "slow")
    for number in range(20):
        courier.fetch(f"quick{number}", video_url=bad_web.url("/clip.mp4"))
        assert courier.until(Fetched, f"quick{number}").failure is None
    progress = courier.until(Progress, "slow")
    assert progress.phase == "download" and progress.detail == "0.0 of 1.0 MB"


def test_cancelled_task_lets_go_of_its_server_and_is_not_answered(
    start: Callable[..., Courier], bad_web: BadWebServer
) -> None:
    courier = start()
    directory = courier.fetch("t", one=bad_web.url("/drip"), two=bad_web.url("/endless"))
    until(lambda: len(bad_web.requests) == 2, "both requests")
    courier.send(Cancel("t", "l1"))
    until(lambda: len(bad_web.gone) == 2, "that both connections end")
    until(lambda: list(directory.iterdir()) == [], "that no part of a file stays")
    courier.fetch("next", video_url=bad_web.url("/clip.mp4"))
    assert courier.until(Fetched, "next").failure is None
    assert courier.answers() == [("next", "l1")]


def test_cancelled_task_may_be_fetched_again(start: Callable[..., Courier], bad_web: BadWebServer) -> None:
    courier = start()
    courier.send(Cancel("t", "l1"))
    courier.fetch("t", video_url=bad_web.url("/clip.mp4"))
    assert courier.until(Fetched, "t").failure is None


def test_second_wish_for_a_task_voids_the_first(start: Callable[..., Courier], bad_web: BadWebServer) -> None:
    courier = start()
    courier.fetch("t", video_url=bad_web.url("/drip"))
    until(lambda: len(bad_web.requests) == 1, "the first request")
    directory = courier.fetch("t", video_url=bad_web.url("/clip.mp4"))
    assert courier.until(Fetched, "t").files == {"video_url": str(directory / "clip.mp4")}
    until(lambda: bad_web.gone == ["/drip"], "that the first connection ends")
    assert courier.answers() == [("t", "l1")]


def test_told_to_leave_in_the_middle_of_everything(start: Callable[..., Courier], bad_web: BadWebServer) -> None:
    courier = start()
    directories = [
        courier.fetch(path, video_url=bad_web.url(f"/{path}"))
        for path in ("drip", "silent", "slow-headers", "stall", "endless")
    ]
    until(lambda: len(bad_web.requests) == 4 + 1, "all requests")
    courier.send(Shutdown())
    assert courier.process.wait(LIMIT_S) == 0
    assert [list(directory.iterdir()) for directory in directories] == [[]] * 5
    assert courier.answers() == []


def test_directory_that_is_gone_is_this_tasks_failure_alone(
    start: Callable[..., Courier], bad_web: BadWebServer
) -> None:
    courier = start()
    courier.send(Fetch("t", "l1", {"video_url": Source(bad_web.url("/clip.mp4"), "video")}, "/no/such/directory"))
    failure = courier.until(Fetched, "t").failure
    assert failure is not None and "No such file" in failure.message
    courier.fetch("next", video_url=bad_web.url("/clip.mp4"))
    assert courier.until(Fetched, "next").failure is None
