"""A task's own URL for its result: whatever stands behind it gets the file at most; no message holds the signature."""

from __future__ import annotations

import ipaddress
import json
import ssl
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.put_server import QUERY, SIGNATURE, PutServer
from tests.storage_server import StorageServer
from wan2gp.addresses import Address
from wan2gp.config import Secret
from wan2gp.supervisor.patience import Patience
from wan2gp.supervisor.publish import PublishFailed
from wan2gp.supervisor.signed_put import put
from wan2gp.supervisor.supabase_project import SupabaseProject

QUICK = Patience(first_s=0.005, max_s=0.02)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"0123456789" * 100_000)
    return path


def send(url: str, file: Path, **given: Any) -> None:
    wanted: dict[str, Any] = {"stop": threading.Event(), "allow_private_urls": True, "patience": QUICK}
    put(url, file, "video/mp4", **{**wanted, **given})


def failure(url: str, file: Path, **given: Any) -> PublishFailed:
    with pytest.raises(PublishFailed) as caught:
        send(url, file, **given)
    trace = "".join(traceback.format_exception(caught.value))
    assert SIGNATURE not in trace and "s3cr3t" not in trace + repr(vars(caught.value)), "the signature is told"
    assert caught.value.message.isprintable() and len(caught.value.message) < 800
    return caught.value


def found_at(*addresses: str) -> Callable[[str, int], Sequence[Address]]:
    return lambda host, port: [ipaddress.ip_address(each) for each in addresses]


def test_the_file_arrives_with_its_type_and_nothing_else(put_server: PutServer, clip: Path) -> None:
    send(put_server.url(), clip)
    ((path, headers, body),) = put_server.seen
    assert path == f"/bucket/a%20clip.mp4?{QUERY}" and body == clip.read_bytes()
    assert headers["Content-Type"] == "video/mp4" and headers["Content-Length"] == str(len(body))
    assert set(headers) == {"Host", "User-Agent", "Content-Type", "Content-Length", "Connection"}


def test_an_empty_file(put_server: PutServer, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    send(put_server.url(), tmp_path / "empty")
    assert put_server.seen[0][2] == b""


def test_real_storages_signed_upload_takes_it(storage_server: StorageServer, clip: Path) -> None:
    """As an app makes the URL: with its own key, for one path."""
    project = SupabaseProject(storage_server.url, Secret(storage_server.key))
    url = project.client.storage.from_("image_uploads").create_signed_upload_url("u/a.mp4")["signed_url"]
    project.close()
    send(url, clip)
    assert storage_server.storage.content("image_uploads", "u/a.mp4") == clip.read_bytes()
    assert storage_server.storage.mime("image_uploads", "u/a.mp4") == "video/mp4"
    with pytest.raises(PublishFailed, match="409 Conflict: The resource already exists") as caught:
        send(url, clip)
    assert (caught.value.code, caught.value.permanent) == ("publish.put_refused", True)

    storage_server.storage.tokens.clock = lambda: 1e11
    with pytest.raises(PublishFailed, match="signed for PUT, and not expired"):
        send(url, clip)


# -- where it may go --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://media.example/a?token=s3cr3t-x", "not https"),
        ("ftp://media.example/a?token=s3cr3t-x", "not with http"),
        ("https://user:s3cr3t@media.example/a", "user or a password"),
        ("https:///a?token=s3cr3t-x", "no host"),
        ("https://media.example:99999/a?token=s3cr3t-x", "ort"),
        ("https://media.example/a\nHost: x?token=s3cr3t-x", "control character"),
        ("nonsense?token=s3cr3t-x", "nonsense"),
        ("https://media.example/" + "a" * 9000, "characters"),
    ],
)
def test_a_url_that_cannot_be_used(clip: Path, url: str, words: str) -> None:
    failed = failure(url, clip, lookup=found_at("127.0.0.1"), allow_private_urls=False)
    assert (failed.code, failed.permanent) == ("publish.bad_put_url", True) and words in failed.message


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00::1", "::ffff:127.0.0.1"])
def test_a_private_address_is_refused_whatever_its_name(put_server: PutServer, clip: Path, address: str) -> None:
    for url in (
        put_server.url("media.example"),
        f"https://[{address}]:1/a" if ":" in address else f"https://{address}/",
    ):
        url = url.replace("http://", "https://")
        failed = failure(url, clip, lookup=found_at(address), allow_private_urls=False)
        assert (failed.code, failed.permanent) == ("publish.bad_put_url", True), failed.message
        assert "private address" in failed.message and "WAN2GP_ALLOW_PRIVATE_PUT_URLS" in failed.message
    assert put_server.seen == []


def test_the_checked_address_is_the_one_connected_to(put_server: PutServer, clip: Path) -> None:
    """A name server that changes its mind after the check is not asked again."""
    asked: list[str] = []

    def lookup(host: str, port: int) -> Sequence[Address]:
        asked.append(host)
        return [ipaddress.ip_address("127.0.0.1" if len(asked) == 1 else "192.0.2.1")]

    send(put_server.url("media.example"), clip, lookup=lookup)
    assert asked == ["media.example"] and put_server.seen[0][1]["Host"].startswith("media.example")


def test_the_certificate_must_be_the_hosts(certificate: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(certificate)
    server = PutServer(trust)
    try:
        given = {"lookup": found_at("127.0.0.1")}
        failed = failure(server.url("media.example"), clip, **given)
        assert (failed.code, failed.permanent) == ("publish.put_refused", True) and "certificate" in failed.message
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        send(server.url("media.example"), clip, **given)
        assert "certificate" in failure(server.url("other.example"), clip, **given).message
        assert [len(body) for _, _, body in server.seen] == [clip.stat().st_size]
    finally:
        server.close()


def test_a_proxy_of_the_environment_sees_nothing(
    put_server: PutServer, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    send(put_server.url(), clip)
    assert len(put_server.seen) == 1


# -- what it may say --------------------------------------------------------------------------------------------------

S3 = (
    '<?xml version="1.0"?><Error><Code>SignatureDoesNotMatch</Code><Message>The signature does not match</Message>'
    f"<SignatureProvided>{SIGNATURE}</SignatureProvided><StringToSign>{QUERY}</StringToSign></Error>"
)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, S3, ["403 Forbidden", "SignatureDoesNotMatch", "signed for PUT, and not expired?"]),
        (403, f"no {SIGNATURE} here", ["403 Forbidden: no *** here"]),
        (401, json.dumps({"message": f"bad token {SIGNATURE}"}), ["401 Unauthorized: bad token ***"]),
        (404, "<html>" + "x" * 100_000, ["404 Not Found"]),
        (405, "", ["405 Method Not Allowed"]),
        (411, "", ["411"]),
        (413, "too big", ["413", "too big"]),
        (501, "", ["501"]),
        (
            400,
            json.dumps({"statusCode": "403", "message": "new row violates row-level security"}),
            ["403", "row-level"],
        ),
        (499, "\x1b[2J\r\nSet-Cookie: x", ["499"]),
    ],
)
def test_a_refusal_is_quoted_without_the_signature(
    put_server: PutServer, clip: Path, status: int, body: str, words: list[str]
) -> None:
    put_server.answers = [(status, {}, body)]
    failed = failure(put_server.url(), clip)
    assert (failed.code, failed.permanent) == ("publish.put_refused", True)
    assert f"http://127.0.0.1:{put_server.server_address[1]}/bucket/a%20clip.mp4" in failed.message
    assert all(word in failed.message for word in words), failed.message
    assert len(put_server.seen) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(put_server: PutServer, clip: Path, status: int) -> None:
    put_server.answers = [(status, {"Location": put_server.url(path="/other")}, "")]
    failed = failure(put_server.url(), clip)
    assert (failed.code, failed.permanent) == ("publish.put_refused", True) and "not followed" in failed.message
    assert len(put_server.seen) == 1


def test_an_answer_before_the_end_of_the_body(put_server: PutServer, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(50_000_000)
    put_server.early, put_server.answers = True, [(403, {}, "expired")] * QUICK.tries
    failed = failure(put_server.url(), large)
    assert failed.code in (
        "publish.put_refused",
        "publish.put_unavailable",
    )  # the answer may be lost with the connection


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_passes_is_tried_again(put_server: PutServer, clip: Path, status: int) -> None:
    put_server.answers = [(status, {}, "later")] * 2
    send(put_server.url(), clip)
    assert len(put_server.seen) == 3
    put_server.answers = [(status, {}, "later")] * 9
    failed = failure(put_server.url(), clip)
    assert (failed.code, failed.permanent) == ("publish.put_unavailable", False) and str(status) in failed.message


def test_a_long_retry_after_is_the_callers_to_wait_for(put_server: PutServer, clip: Path) -> None:
    put_server.answers = [(503, {"Retry-After": "90"}, "")]
    assert failure(put_server.url(), clip).retry_after_s == 90.0


def test_a_lost_answer_and_a_server_that_takes_nothing_twice(put_server: PutServer, clip: Path) -> None:
    put_server.drops, put_server.answers = 1, [(409, {}, "exists")]
    send(put_server.url(), clip)
    assert [len(body) for _, _, body in put_server.seen] == [clip.stat().st_size] * 2
    put_server.answers = [(409, {}, "exists")]
    assert failure(put_server.url(), clip).code == "publish.put_refused"


@pytest.mark.parametrize("addresses", [(), ("127.0.0.1",)])
def test_nobody_there(clip: Path, addresses: tuple[str, ...]) -> None:
    def lookup(host: str, port: int) -> Sequence[Address]:
        if not addresses:
            raise OSError("no such name")
        return [ipaddress.ip_address(each) for each in addresses]

    failed = failure("http://media.example:9/a?" + QUERY, clip, lookup=lookup)
    assert (failed.code, failed.permanent) == ("publish.put_unavailable", False)


def test_a_stop_ends_a_server_that_says_nothing(put_server: PutServer, clip: Path) -> None:
    put_server.silent.set()
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(send, put_server.url(), clip, stop=stop)
        assert put_server.reached.wait(20)
        stop.set()
        error = running.exception(timeout=10)
    assert isinstance(error, PublishFailed) and (error.code, error.permanent) == ("worker.stopping", False)


def test_a_server_that_says_nothing_is_given_up(put_server: PutServer, clip: Path) -> None:
    put_server.silent.set()
    failed = failure(put_server.url(), clip, patience=Patience(tries=2, first_s=0.01, answer_s=0.1))
    assert (failed.code, failed.permanent) == ("publish.put_unavailable", False)


def test_a_file_that_is_gone(put_server: PutServer, tmp_path: Path) -> None:
    failed = failure(put_server.url(), tmp_path / "none")
    assert (failed.code, failed.permanent) == ("publish.file_changed", True)
