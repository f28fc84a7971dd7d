"""Inputs in the project's own Storage: fetched by a signature that nobody else gets to see, or a clear error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.test_courier import Courier, start, until
from tests.test_courier_cache import Store, clip, store
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.comfy_input_files import called
from wan2gp.handlers.comfy_inputs import check_url
from wan2gp.handlers.locations import locate, shown_url
from wan2gp.protocol import SIGNATURE, Event, Failed, Fetch, Fetched, Signed, Source
from wan2gp.storage_address import BadAddress, StorageAddress, is_storage, parse_address
from wan2gp.supervisor.publish import PublishFailed
from wan2gp.supervisor.signer import Signatures, Signer

__all__ = ["start", "store"]
Start = Callable[..., Courier]
ADDRESS = "storage://image_uploads/u 1/100% größe.mp4"
PATIENCE_S = 20.0
HTTP = "input.http_error"
PROJECT = "https://x.supabase.co"


# --- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["in.mp4", "a/b/in.mp4", "u 1/100%25.mp4", "größe/映像.mp4", "what?.mp4", "a#b.mp4", "..a/b..mp4", "%2e%2e/a"],
)
def test_a_path_is_taken_as_it_is(path: str) -> None:
    assert parse_address(f"  Storage://image_uploads/{path}\n") == StorageAddress("image_uploads", path)
    assert check_url(f"storage://image_uploads/{path}", "video_url").endswith(path)


@pytest.mark.parametrize(
    "url",
    [
        "storage:",
        "storage://",
        "storage:///in.mp4",
        "storage://bucket",
        "storage://bucket/",
        "storage:/bucket/in.mp4",
        "storage:bucket/in.mp4",
        "storage://bucket/../other/in.mp4",
        "storage://../image_uploads/in.mp4",
        "storage://bucket/a/./in.mp4",
        "storage://bucket/a//in.mp4",
        "storage://bucket/a\\..\\in.mp4",
        "storage://bucket/in\n.mp4",
        "storage://bucket/in\0.mp4",
        "storage://bucket/\ud800.mp4",
        f"storage://bucket/{'x' * 1025}",
        f"storage://bucket/{'ü' * 600}",
    ],
)
def test_a_malformed_address_is_refused_before_anything_is_started(url: str) -> None:
    with pytest.raises(BadAddress):
        parse_address(url)
    with pytest.raises(TaskFailure) as raised:
        check_url(url, "inputs[3].url")
    assert raised.value.code == "input.bad_url" and "`inputs[3].url`" in raised.value.message
    assert is_storage(url) and shown_url(url) == "(a malformed URL)"


def test_a_file_is_called_as_its_object_and_not_as_its_signed_url() -> None:
    assert called(ADDRESS) == "100% größe.mp4"
    location = locate(Source(ADDRESS), Signed("https://x.supabase.co/storage/v1/object/sign/b/c?token=secret"))
    assert location.file_name == "100% größe.mp4" and location.shown == shown_url(ADDRESS) == ADDRESS


def test_a_signed_url_is_not_shown_by_anything_that_holds_it() -> None:
    signed = Signed("https://x.supabase.co/storage/v1/object/sign/b/c?token=secret")
    fetch = Fetch("t", "l", {"video_url": Source(ADDRESS)}, "/d", {"video_url": signed})
    held = (signed, fetch, locate(Source(ADDRESS), signed))
    assert all("secret" not in f"{each!r} {each}" for each in held)


def test_of_two_signatures_of_one_file_only_the_address_counts() -> None:
    def at(address: str, url: str) -> Any:
        return locate(Source(address), Signed(url)).identity

    base = "http://10.0.0.9:8000/storage/v1/object/sign/b/c?token="
    assert at(ADDRESS, base + "one") == at(ADDRESS, base + "two")
    assert at(ADDRESS, base + "one") != at("storage://image_uploads/other.mp4", base + "one")
    assert at(ADDRESS, base + "one") != at(ADDRESS, "http://10.0.0.8:8000/storage/v1/object/sign/b/c?token=one")


# --- the signer ----------------------------------------------------------------------------------------------------


class Loop:
    """Stands where the loop is: keeps what was posted, and calls it when asked."""

    def __init__(self) -> None:
        self.posted: list[Callable[[], None]] = []
        self.answers: list[Signatures] = []

    def answer(self) -> Signatures:
        until(lambda: bool(self.posted), "an answer was posted")
        self.posted.pop(0)()
        return self.answers.pop()


@pytest.fixture
def make() -> Iterator[Callable[..., tuple[Signer, Loop]]]:
    made: list[Signer] = []

    def build(sign: Any, url: str = f"{PROJECT}/", **more: Any) -> tuple[Signer, Loop]:
        loop = Loop()
        made.append(Signer(url, sign, loop.posted.append, **{"first_pause_s": 0.001, **more}))
        return made[-1], loop

    yield build
    for signer in made:
        signer.stop()


def ask(signer: Signer, loop: Loop, **paths: str) -> Callable[[], None]:
    addresses = {name: StorageAddress("b", path) for name, path in paths.items()}
    return signer.sign(addresses, loop.answers.append)


def signed_url(path: str) -> str:
    return f"{PROJECT}/storage/v1/object/sign/b/{path}?token=T"


def broken(code: str = "publish.unavailable", permanent: bool = False, **more: Any) -> PublishFailed:
    return PublishFailed(code, "why", permanent=permanent, **more)


def test_a_url_of_another_host_is_never_handed_on(make: Callable[..., Any]) -> None:
    """The courier is let through to it, even in a private network: no answer of anybody may choose it."""
    for url in ("http://169.254.169.254/storage/v1/object/sign/b/x?token=T", f"{PROJECT}.evil.test/x", f"{PROJECT}/x"):
        signer, loop = make(lambda bucket, path, ttl, url=url: url)
        ask(signer, loop, a="x")
        found = loop.answer()
        assert isinstance(found, Failed) and found.code == "handler.crashed" and url not in repr(found)


def test_all_inputs_of_a_task_are_answered_at_once_and_each_file_is_signed_once(make: Callable[..., Any]) -> None:
    asked: list[str] = []
    signer, loop = make(lambda bucket, path, ttl: asked.append(path) or signed_url(path))
    ask(signer, loop, a="x", b="y", c="x")
    found = loop.answer()
    assert sorted(asked) == ["x", "y"] and set(found) == {"a", "b", "c"} and found["a"] == found["c"] != found["b"]


def test_storage_that_is_away_for_a_moment_is_asked_again(make: Callable[..., Any]) -> None:
    failures = [broken(), broken(retry_after_s=0.01), broken()]

    def sign(bucket: str, path: str, ttl: float) -> str:
        if failures:
            raise failures.pop()
        return signed_url(path)

    signer, loop = make(sign)
    ask(signer, loop, a="x")
    assert isinstance(loop.answer(), Mapping) and not failures


def test_storage_that_stays_away_sends_the_task_back_to_the_queue(make: Callable[..., Any]) -> None:
    def sign(bucket: str, path: str, ttl: float) -> str:
        raise broken()

    signer, loop = make(sign, patience_s=0.05)
    ask(signer, loop, a="x", b="y")
    found = loop.answer()
    assert isinstance(found, Failed) and found.code == "input.unreachable" and found.retryable
    assert not loop.posted, "one answer, whatever else fails"


def test_a_pause_that_is_asked_for_and_too_long_is_not_waited_for(make: Callable[..., Any]) -> None:
    def sign(bucket: str, path: str, ttl: float) -> str:
        raise broken(retry_after_s=3600.0)

    signer, loop = make(sign)
    ask(signer, loop, a="x")
    found = loop.answer()
    assert isinstance(found, Failed) and found.retryable


def test_without_a_project_the_error_says_what_to_set(make: Callable[..., Any]) -> None:
    signer, loop = make(None)
    ask(signer, loop, a="x")
    found = loop.answer()
    assert isinstance(found, Failed) and found.code == "input.no_storage" and not found.retryable
    assert "storage://b/x" in found.message and "SUPABASE_URL" in found.message


def test_a_bucket_that_is_not_for_inputs_is_not_even_asked(make: Callable[..., Any]) -> None:
    """The worker's key opens all of them, and a row may be anybody's."""
    asked: list[str] = []
    signer, loop = make(lambda bucket, path, ttl: asked.append(bucket) or signed_url(path), buckets=("b",))
    for bucket in ("secrets", "B"):
        addresses = {"a": StorageAddress("b", "x"), "c": StorageAddress(bucket, "x")}
        signer.sign(addresses, loop.answers.append)
        found = loop.answer()
        assert isinstance(found, Failed) and found.code == "input.storage_denied" and not found.retryable
        assert f"storage://{bucket}/x" in found.message and "inputs.buckets" in found.message
    assert not asked
    ask(signer, loop, a="x")
    assert isinstance(loop.answer(), Mapping)


def test_a_task_that_is_over_gets_no_answer_and_is_not_asked_for_any_more(make: Callable[..., Any]) -> None:
    asked, gate = threading.Semaphore(0), threading.Event()

    def sign(bucket: str, path: str, ttl: float) -> str:
        asked.release()
        gate.wait(PATIENCE_S)
        raise broken()

    signer, loop = make(sign)
    drop = ask(signer, loop, a="x")
    assert asked.acquire(timeout=PATIENCE_S)
    drop()
    gate.set()
    ask(signer, loop, **{str(index): str(index) for index in range(8)})()  # behind it, and dropped as well
    signer.stop()
    assert not loop.posted


def test_a_defect_ends_one_task_and_tells_no_secret(make: Callable[..., Any]) -> None:
    def sign(bucket: str, path: str, ttl: float) -> str:
        if path == "bad":
            raise ValueError("https://x/?token=secret")
        return signed_url(path)

    signer, loop = make(sign)
    ask(signer, loop, a="bad")
    found = loop.answer()
    assert isinstance(found, Failed) and found.code == "handler.crashed" and "secret" not in repr(found)
    ask(signer, loop, a="good")
    assert isinstance(loop.answer(), Mapping)


# --- the courier ---------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(start: Start) -> Courier:
    """A courier to which no private address is open, and which keeps what it downloads."""
    return start(allow_private_hosts=[], cache_bytes=10**8)


def fetch(courier: Courier, task_id: str, signed: str | None, address: str = ADDRESS) -> Fetched:
    directory = courier.path / task_id
    directory.mkdir()
    given = {"video_url": Signed(signed)} if signed is not None else {}
    courier.send(Fetch(task_id, "l1", {"video_url": Source(address, "video")}, str(directory), given))
    return courier.until(Fetched, task_id)


def got(answer: Fetched) -> bytes:
    assert answer.failure is None, answer.failure
    return Path(answer.files["video_url"]).read_bytes()


def refused(answer: Fetched) -> Failed:
    assert answer.failure is not None
    return answer.failure


def test_a_project_in_a_private_network_is_let_through_and_nothing_else_of_it(guarded: Courier, store: Store) -> None:
    store.put("/in.mp4", clip(b"one"), ETag='"v1"')
    assert got(fetch(guarded, "t1", store.url("/in.mp4?token=secret"))) == clip(b"one")
    guarded.fetch("t2", video_url=store.url("/in.mp4?token=secret"))
    assert refused(guarded.until(Fetched, "t2")).code == "input.forbidden_address"


def test_a_redirect_away_from_storage_is_guarded_again(guarded: Courier, store: Store) -> None:
    store.redirects["/in.mp4"] = store.url("/private.mp4")
    store.put("/private.mp4", clip(b"one"))
    assert refused(fetch(guarded, "t1", store.url("/in.mp4?token=secret"))).code == "input.forbidden_address"
    assert [path for path, _, _ in store.asked] == ["/in.mp4?token=secret"]


def test_a_new_signature_is_the_same_file_and_none_is_written_down(guarded: Courier, store: Store) -> None:
    store.put("/in.mp4", clip(b"one"), ETag='W/"v1"')
    for task_id, token in (("t1", "secret-1"), ("t2", "secret-2")):
        answer = fetch(guarded, task_id, store.url(f"/in.mp4?token={token}"))
        assert got(answer) == clip(b"one") and Path(answer.files["video_url"]).name == "100_groe.mp4"
    assert store.statuses() == [200, 304] and "secret-2" in store.asked[1][0]
    said = repr(guarded.seen)
    assert "secret" not in said and store.url("") not in said
    shown = {message.fields["url"] for message in guarded.seen if isinstance(message, Event)}
    assert shown == {ADDRESS}
    written = [path for path in guarded.path.rglob("*") if path.is_file()]
    assert written and not any(b"secret" in path.read_bytes() for path in written)


def test_another_file_of_that_signed_url_is_not_taken_from_the_cache(guarded: Courier, store: Store) -> None:
    store.put("/in.mp4", clip(b"one"), ETag='"v1"')
    fetch(guarded, "t1", store.url("/in.mp4?token=a"))
    fetch(guarded, "t2", store.url("/in.mp4?token=a"), "storage://image_uploads/other.mp4")
    assert store.statuses() == [200, 200]


def test_two_tasks_that_want_a_file_at_once_share_its_download(guarded: Courier, store: Store) -> None:
    store.put("/in.mp4", clip(b"one"), ETag='"v1"')
    store.gate.clear()
    for task_id in ("t1", "t2"):
        (guarded.path / task_id).mkdir()
        given = {"video_url": Signed(store.url(f"/in.mp4?token={task_id}"))}
        sources = {"video_url": Source(ADDRESS, "video")}
        guarded.send(Fetch(task_id, "l1", sources, str(guarded.path / task_id), given))
        guarded.until(Event, task_id)
    store.gate.set()
    for task_id in ("t1", "t2"):
        if task_id not in [task for task, _ in guarded.answers()]:
            guarded.until(Fetched, task_id)
    answers = [message for message in guarded.seen if isinstance(message, Fetched)]
    assert [got(answer) for answer in answers] == [clip(b"one")] * 2
    assert store.statuses() in ([200], [200, 200], [200, 304]), "the second may come when the first is done"


def test_an_address_that_came_unsigned_is_no_way_into_anything(guarded: Courier) -> None:
    assert refused(fetch(guarded, "t1", None)).code == "input.no_storage"
    assert refused(fetch(guarded, "t2", None, "storage://b/../x")).code == "input.bad_url"


@pytest.mark.long
@pytest.mark.parametrize(
    ("status", "body", "code", "signature"),
    [
        (400, '{"statusCode":"400","error":"InvalidJWT","message":"jwt secret","code":"InvalidJWT"}', HTTP, "refused"),
        (400, '{"statusCode":"404","error":"not_found","message":"secret"}', "input.not_found", None),
        (400, '{"statusCode":"404","error":"Bucket not found","code":"NoSuchBucket"}', "input.not_found", None),
        (404, "", "input.not_found", None),
        (403, "<html>secret</html>", HTTP, "refused"),
        (400, '{"statusCode":"403","error":"Unauthorized"}', HTTP, "refused"),
        (503, "[]", HTTP, None),
        (429, "{" * 50_000, HTTP, None),
        (400, "[" * 16_000, HTTP, None),
    ],
)
def test_what_storage_says_is_understood_and_not_repeated(
    guarded: Courier, store: Store, status: int, body: str, code: str, signature: str | None
) -> None:
    store.errors["/in.mp4"] = (status, body.encode())
    failure = refused(fetch(guarded, "t1", store.url("/in.mp4?token=secret")))
    assert failure.code == code and failure.detail.get(SIGNATURE) == signature
    assert ADDRESS in failure.message and "secret" not in repr(failure) and store.url("") not in repr(failure)
    assert failure.retryable is (code == HTTP)


def test_a_project_that_cannot_be_reached_is_not_named_in_the_row(guarded: Courier, store: Store) -> None:
    port = store.server_address[1]
    failure = refused(fetch(guarded, "t1", "http://127.0.0.1:1/in.mp4?token=secret"))
    assert failure.code == "input.unreachable" and failure.retryable and ADDRESS in failure.message
    assert "127.0.0.1" not in failure.message and str(port) not in failure.message
