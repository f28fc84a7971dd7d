"""What the courier keeps and shares: never a stale, a partial or a foreign file, and one request where one will do."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.test_courier import LIMIT_S, Courier, start, until
from wan2gp.handlers.download import Download
from wan2gp.handlers.flights import Flights, SharedDownload
from wan2gp.handlers.input_cache import InputCache, Validators, file_digest, validators_of
from wan2gp.handlers.locations import parse_location
from wan2gp.handlers.webstream import Limits
from wan2gp.protocol import Cancel, Event, Fetch, Fetched, Source

__all__ = ["start"]
HEAD = b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41"
OLD, SERVED = "Mon, 01 Jan 2024 10:00:00 GMT", "Tue, 02 Jan 2024 10:00:00 GMT"
Start = Callable[..., Courier]


def clip(mark: bytes, size: int = 20_000) -> bytes:
    return HEAD + mark * (size // len(mark))


class Store(ThreadingHTTPServer):
    """Serves ``files`` by path, each with headers of its own, and answers conditions as object stores do."""

    daemon_threads = False
    block_on_close = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Serve)
        self.files: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.asked: list[tuple[str, dict[str, str], int]] = []
        """(path with query, headers, status) in order."""
        self.refused: set[str] = set()
        self.redirects: dict[str, str] = {}
        """Path → where it leads."""
        self.errors: dict[str, tuple[int, bytes]] = {}
        """Path → status and body of the answer."""
        self.gate = threading.Event()
        self.gate.set()
        """Held back: bodies stop half way until it is set."""
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def put(self, path: str, content: bytes, **headers: str) -> None:
        self.files[path] = (content, {name.replace("_", "-"): text for name, text in headers.items()})

    def statuses(self) -> list[int]:
        return [status for _, _, status in self.asked]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are what some of these tests are about."""

    def close(self) -> None:
        self.gate.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Serve(BaseHTTPRequestHandler):
    server: Store

    def log_message(self, format: str, *args: Any) -> None:
        """The test's output is not the place."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return SERVED

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path in self.server.redirects or path in self.server.errors:
            status, body = self.server.errors.get(path, (302, b""))
            self.server.asked.append((self.path, dict(self.headers.items()), status))
            self.send_response(status)
            if path in self.server.redirects:
                self.send_header("Location", self.server.redirects[path])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        content, headers = self.server.files[path]
        status = self._status(headers)
        self.server.asked.append((self.path, dict(self.headers.items()), status))
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        body = content if status == 200 else b""
        if status != 304 and "X-Endless" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:100])
        self.wfile.flush()
        self.server.gate.wait(LIMIT_S)
        self.wfile.write(body[100:])

    def _status(self, headers: dict[str, str]) -> int:
        if any(word in self.path for word in self.server.refused):
            return 403
        etag = self.headers.get("If-None-Match")
        if etag is not None:
            return 304 if etag == headers.get("ETag") else 200
        since = self.headers.get("If-Modified-Since")
        return 304 if since is not None and since == headers.get("Last-Modified") else 200


@pytest.fixture
def store() -> Iterator[Store]:
    server = Store()
    yield server
    server.close()


@pytest.fixture
def keeper(start: Start) -> Courier:
    """A courier that keeps what it downloads."""
    return start(cache_bytes=10**8, shared_user=False)


def get(courier: Courier, task_id: str, url: str) -> bytes:
    """What a task gets for a URL."""
    directory = courier.fetch(task_id, video_url=url)
    answer = courier.until(Fetched, task_id)
    assert answer.failure is None, answer.failure
    path = Path(answer.files["video_url"])
    assert path.parent == directory
    return path.read_bytes()


def blobs(courier: Courier) -> list[Path]:
    return sorted((courier.path / "home" / "cache" / "blobs").glob("*"))


def facts(courier: Courier) -> list[str]:
    return [message.name for message in courier.seen if isinstance(message, Event)]


# --- kept ----------------------------------------------------------------------------------------------------------


def test_the_same_file_again_costs_one_question_and_no_bytes(keeper: Courier, store: Store) -> None:
    store.put("/a.mp4", clip(b"one"), ETag='"v1"')
    assert get(keeper, "t1", store.url("/a.mp4")) == get(keeper, "t2", store.url("/a.mp4")) == clip(b"one")
    assert store.statuses() == [200, 304]
    assert facts(keeper) == ["input.downloading", "input.downloaded", "input.downloading", "input.from_cache"]


def test_a_file_that_changed_is_fetched_anew(keeper: Courier, store: Store) -> None:
    store.put("/a.mp4", clip(b"one"), ETag='"v1"')
    get(keeper, "t1", store.url("/a.mp4"))
    store.put("/a.mp4", clip(b"two"), ETag='"v2"')
    assert get(keeper, "t2", store.url("/a.mp4")) == clip(b"two")
    assert get(keeper, "t3", store.url("/a.mp4")) == clip(b"two")
    assert store.statuses() == [200, 200, 304]


def test_a_date_will_do_where_there_is_no_etag(keeper: Courier, store: Store) -> None:
    store.put("/a.mp4", clip(b"one"), Last_Modified=OLD)
    for task_id in ("t1", "t2"):
        assert get(keeper, task_id, store.url("/a.mp4")) == clip(b"one")
    assert store.statuses() == [200, 304]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Last_Modified": SERVED},
        {"ETag": '"v1"', "Cache_Control": "private, no-store"},
        {"ETag": '""'},
        {"ETag": '"v1"', "X_Endless": "1"},
    ],
    ids=["no validator", "changed this very second", "forbidden", "an empty etag", "perhaps cut off"],
)
def test_what_nobody_could_tell_to_be_current_and_whole_is_not_kept(
    keeper: Courier, store: Store, headers: dict[str, str]
) -> None:
    store.put("/a.mp4", clip(b"one"), **headers)
    for task_id in ("t1", "t2"):
        get(keeper, task_id, store.url("/a.mp4"))
    assert store.statuses() == [200, 200]
    assert blobs(keeper) == []


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Signature=SIG&X-Amz-Date=SIG",
        "token=SIG",
        "Expires=1&Signature=SIG&Key-Pair-Id=K",
        "se=2030&sp=r&sig=SIG",
    ],
)
def test_a_new_signature_is_the_same_file(keeper: Courier, store: Store, query: str) -> None:
    """A producer signs the URL anew for every row."""
    store.put("/a.mp4", clip(b"one"), ETag='"v1"', Last_Modified=OLD)
    for task_id in ("first", "second"):
        assert get(keeper, task_id, store.url("/a.mp4?" + query.replace("SIG", task_id))) == clip(b"one")
    assert store.statuses() == [200, 304]
    assert "second" in store.asked[1][0], "the server is asked with the new signature"
    kept = b"".join(path.read_bytes() for path in (keeper.path / "home" / "cache" / "urls").iterdir())
    assert b"first" not in kept and b"second" not in kept, "no signature is written down"


def test_a_signature_that_is_not_valid_gets_nothing_from_the_cache(keeper: Courier, store: Store) -> None:
    store.put("/a.mp4", clip(b"one"), ETag='"v1"')
    get(keeper, "t1", store.url("/a.mp4?token=good"))
    store.refused.add("bad")
    keeper.fetch("t2", video_url=store.url("/a.mp4?token=bad"))
    failure = keeper.until(Fetched, "t2").failure
    assert failure is not None and failure.code == "input.not_found"


def test_a_date_says_nothing_of_another_file_of_that_address(keeper: Courier, store: Store) -> None:
    """`/get?token=A` and `/get?token=B` may be two files: not modified since A was does not make B the same."""
    store.put("/get", clip(b"A"), Last_Modified=OLD)
    get(keeper, "t1", store.url("/get?token=A"))
    store.put("/get", clip(b"B"), Last_Modified=OLD)
    assert get(keeper, "t2", store.url("/get?token=B")) == clip(b"B")
    assert "If-Modified-Since" not in store.asked[1][1]


def test_other_queries_are_other_files(keeper: Courier, store: Store) -> None:
    store.put("/get", clip(b"one"), ETag='"v1"')
    get(keeper, "t1", store.url("/get?id=1"))
    get(keeper, "t2", store.url("/get?id=2"))
    assert store.statuses() == [200, 200]
    assert len(blobs(keeper)) == 1, "but the same content is on the disk once"


def test_a_kept_file_that_was_written_into_is_thrown_away(keeper: Courier, store: Store) -> None:
    """A node may write into its input file, which is the same one on the disk."""
    store.put("/a.mp4", clip(b"one"), ETag='"v1"')
    keeper.fetch("t1", video_url=store.url("/a.mp4"))
    path = Path(keeper.until(Fetched, "t1").files["video_url"])
    with path.open("r+b") as file:
        file.write(b"spoilt")
    assert get(keeper, "t2", store.url("/a.mp4")) == clip(b"one")
    assert store.statuses() == [200, 304, 200]
    assert get(keeper, "t3", store.url("/a.mp4")) == clip(b"one")


@pytest.mark.parametrize("spoil", ["cut", "empty", "gone", "index"])
def test_a_cache_that_a_crash_left_half_written_is_as_good_as_none(keeper: Courier, store: Store, spoil: str) -> None:
    store.put("/a.mp4", clip(b"one"), ETag='"v1"')
    get(keeper, "t1", store.url("/a.mp4"))
    (blob,) = blobs(keeper)
    if spoil == "gone":
        blob.unlink()
    elif spoil == "index":
        for path in (keeper.path / "home" / "cache" / "urls").iterdir():
            path.write_bytes(b'{"sha256": "../../../etc/passwd"')
    else:
        os.truncate(blob, 5000 if spoil == "cut" else 0)
    assert get(keeper, "t2", store.url("/a.mp4")) == clip(b"one")
    assert get(keeper, "t3", store.url("/a.mp4")) == clip(b"one")
    assert store.statuses()[-1] == 304


def test_killed_in_the_middle_of_a_download_nothing_of_it_is_kept(start: Start, store: Store, tmp_path: Path) -> None:
    courier = start(cache_bytes=10**8)
    store.put("/a.mp4", clip(b"one"), ETag='"v1"')
    store.gate.clear()
    courier.fetch("t1", video_url=store.url("/a.mp4"))
    until(lambda: len(store.asked) == 1, "the request")
    courier.process.send_signal(signal.SIGKILL)
    courier.process.wait(LIMIT_S)
    store.gate.set()
    assert blobs(courier) == []


def test_the_cache_outlives_the_process(start: Start, store: Store) -> None:
    store.put("/a.mp4", clip(b"one"), ETag='"v1"')
    first = start(cache_bytes=10**8)
    get(first, "t1", store.url("/a.mp4"))
    first.process.kill()
    first.process.wait(LIMIT_S)
    second = start(cache_bytes=10**8)
    second.process.kill()
    second.process.wait(LIMIT_S)
    cache = InputCache(first.path / "home" / "cache", 10**8)
    known = cache.look_up(parse_location(store.url("/a.mp4")))
    assert known is not None and known.conditions == {"If-None-Match": '"v1"'}


def test_who_may_write_into_its_input_writes_into_no_other_tasks(start: Start, store: Store) -> None:
    store.put("/a.mp4", clip(b"one"), ETag='"v1"')
    courier = start(cache_bytes=10**8, shared_user=True)
    for task_id in ("t1", "t2", "t3"):
        assert get(courier, task_id, store.url("/a.mp4")) == clip(b"one")
        (given,) = courier.path.glob(f"{task_id}-*/*")
        given.write_bytes(b"poison")
    assert store.statuses() == [200, 304, 304]


def test_without_a_budget_nothing_is_kept_and_the_disk_is_given_back(start: Start, store: Store) -> None:
    store.put("/a.mp4", clip(b"one"), ETag='"v1"')
    courier = start(cache_bytes=0)
    for task_id in ("t1", "t2"):
        get(courier, task_id, store.url("/a.mp4"))
    assert store.statuses() == [200, 200]
    assert not (courier.path / "home" / "cache").exists()


def test_a_hit_of_the_wrong_kind_is_refused_like_a_download(keeper: Courier, store: Store) -> None:
    store.put("/a", clip(b"one"), ETag='"v1"')
    get(keeper, "t1", store.url("/a"))
    directory = keeper.path / "t2"
    directory.mkdir()
    keeper.send(Fetch("t2", "l1", {"image": Source(store.url("/a"), "image")}, str(directory)))
    failure = keeper.until(Fetched, "t2").failure
    assert failure is not None and failure.code == "input.not_media"
    assert list(directory.iterdir()) == []


# --- the budget ----------------------------------------------------------------------------------------------------


def filled(root: Path, budget: int, count: int, size: int = 1000) -> InputCache:
    """A cache into which `count` files were put, the first one longest ago."""
    cache = InputCache(root / "cache", budget)
    for number in range(count):
        keep(cache, root, number, size)
    return cache


def keep(cache: InputCache, root: Path, number: int, size: int = 1000) -> None:
    path = root / f"file{number}"
    path.write_bytes(bytes([number]) * size)
    digest = file_digest(path)
    cache.keep(parse_location(f"https://x/{number}"), path, digest, Validators(etag='"e"'))
    path.unlink()
    blob = root / "cache" / "blobs" / digest
    if blob.exists():
        os.utime(blob, (number, number))


def present(cache: InputCache, count: int) -> list[int]:
    return [number for number in range(count) if cache.look_up(parse_location(f"https://x/{number}")) is not None]


def test_the_budget_holds_and_the_least_used_goes_first(tmp_path: Path) -> None:
    cache = filled(tmp_path, 3000, 3)
    assert present(cache, 3) == [0, 1, 2]
    known = cache.look_up(parse_location("https://x/0"))
    assert known is not None and cache.take(known, tmp_path / "used")  # now 1 is the one used longest ago
    keep(cache, tmp_path, 3)
    assert present(cache, 4) == [0, 2, 3]
    assert len(list((tmp_path / "cache" / "urls").iterdir())) == 3, "what names an evicted file goes with it"
    assert (tmp_path / "used").read_bytes() == bytes(1000)


def test_a_job_keeps_its_file_when_the_cache_drops_it(tmp_path: Path) -> None:
    cache = filled(tmp_path, 1000, 1)
    known = cache.look_up(parse_location("https://x/0"))
    assert known is not None and cache.take(known, tmp_path / "job")
    keep(cache, tmp_path, 1)
    assert present(cache, 2) == [1]
    assert (tmp_path / "job").read_bytes() == bytes(1000)


def test_a_file_larger_than_the_budget_drives_nothing_out(tmp_path: Path) -> None:
    cache = filled(tmp_path, 3000, 2)
    keep(cache, tmp_path, 2, size=4000)
    assert present(cache, 3) == [0, 1]


def test_a_smaller_budget_holds_from_the_start(tmp_path: Path) -> None:
    filled(tmp_path, 5000, 5)
    assert present(InputCache(tmp_path / "cache", 2000), 5) == [3, 4]
    InputCache(tmp_path / "cache", 0)
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_takes_the_cache_before_it_fails_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = filled(tmp_path, 5000, 5)
    monkeypatch.setattr("wan2gp.handlers.input_cache.shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    cache.make_room(100)
    assert present(cache, 5) == []
    keep(cache, tmp_path, 6)
    assert present(cache, 7) == [], "nothing is kept on a disk that is nearly full"


def test_many_threads_on_one_cache(tmp_path: Path) -> None:
    """Whatever they take is whole; the budget holds when they are done."""
    cache = InputCache(tmp_path / "cache", 5000)
    wrong: list[str] = []

    def work(which: int) -> None:
        for step in range(40):
            number = (which + step) % 8
            path = tmp_path / f"in{which}"
            path.write_bytes(bytes([number]) * 1000)
            cache.keep(parse_location(f"https://x/{number}"), path, file_digest(path), Validators(etag='"e"'))
            path.unlink()
            known, draft = cache.look_up(parse_location(f"https://x/{step % 8}")), tmp_path / f"out{which}"
            if known is not None and cache.take(known, draft):
                if draft.read_bytes() != bytes([step % 8]) * 1000:
                    wrong.append(f"{which}/{step}")
                draft.unlink()

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sum(path.stat().st_size for path in (tmp_path / "cache" / "blobs").iterdir()) <= 5000


@pytest.mark.parametrize("etag", ["é", '"' + "x" * 600 + '"', '"a\r\nX: y"'])
def test_an_etag_that_cannot_be_sent_back_is_none(etag: str) -> None:
    assert not validators_of({"ETag": etag}.get)


# --- under way -----------------------------------------------------------------------------------------------------


def test_one_url_of_many_tasks_is_one_request(store: Store, tmp_path: Path) -> None:
    """A hundred rows with the same driving video, and no cache to help."""
    store.put("/a.mp4", clip(b"one"))
    store.gate.clear()
    flights, source, got = Flights(), Source(store.url("/a.mp4"), "video"), []
    limits = Limits(allow_private_urls=True)

    def fetch(number: int) -> None:
        folder = tmp_path / str(number % 5)  # of five tasks, each of which wants it twice
        folder.mkdir(exist_ok=True)

        def alone(progress: Callable[[int, int | None], None]) -> Download:
            return Download(source, folder, limits, progress=progress)

        got.append(SharedDownload(source, folder, flights, alone, lambda done, total: None).run())

    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    until(lambda: len(flights.waiting((parse_location(source.url), "video"))) == 9, "that all but one wait")
    store.gate.set()
    for thread in threads:
        thread.join(LIMIT_S)
    assert len(store.asked) == 1
    assert sorted(each.shared for each in got) == [False] + 9 * [True]
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == sorted(5 * ["a-2.mp4", "a.mp4"])
    assert all(each.path.read_bytes() == clip(b"one") for each in got)
    assert len({each.path.stat().st_ino for each in got}) == 1, "and once on the disk"


def test_a_cancelled_leader_leaves_the_lead_to_who_waits(start: Start, store: Store) -> None:
    courier = start(cache_bytes=0)
    store.put("/a.mp4", clip(b"one"))
    store.gate.clear()
    first = courier.fetch("t1", video_url=store.url("/a.mp4"))
    until(lambda: len(store.asked) == 1, "the request")
    courier.fetch("t2", video_url=store.url("/a.mp4"))
    courier.until(Event, "t2")
    courier.send(Cancel("t1", "l1"))
    until(lambda: len(store.asked) == 2, "that the other asks for itself")
    store.gate.set()
    answer = courier.until(Fetched, "t2")
    assert answer.failure is None and Path(answer.files["video_url"]).read_bytes() == clip(b"one")
    until(lambda: list(first.iterdir()) == [], "that no part of a file stays")
    assert courier.answers() == [("t2", "l1")]


def test_who_waits_may_be_cancelled_alone(start: Start, store: Store) -> None:
    courier = start(cache_bytes=0)
    store.put("/a.mp4", clip(b"one"))
    store.gate.clear()
    courier.fetch("t1", video_url=store.url("/a.mp4"))
    until(lambda: len(store.asked) == 1, "the request")
    second = courier.fetch("t2", video_url=store.url("/a.mp4"))
    courier.until(Event, "t2")
    courier.send(Cancel("t2", "l1"))
    courier.fetch("t3", video_url=store.url("/a.mp4"))
    courier.until(Event, "t3")
    store.gate.set()
    for task_id in ("t1", "t3"):
        if (task_id, "l1") not in courier.answers():
            assert courier.until(Fetched, task_id).failure is None
    assert sorted(courier.answers()) == [("t1", "l1"), ("t3", "l1")]
    assert list(second.iterdir()) == []


def test_a_failure_is_told_to_all_who_wait(start: Start, store: Store) -> None:
    courier = start(cache_bytes=0, max_bytes=150)
    store.put("/a.mp4", clip(b"one"))
    courier.fetch("t1", a=store.url("/a.mp4"), b=store.url("/a.mp4"))
    failure = courier.until(Fetched, "t1").failure
    assert failure is not None and failure.code == "input.too_large"
