"""A row's URL must not reach what only the worker can reach, by whatever name, form or detour."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wan2gp.addresses import Address, is_public, resolve
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.download import Download, Downloaded
from wan2gp.handlers.webstream import Limits
from wan2gp.protocol import Source

if TYPE_CHECKING:
    from tests.bad_web_server import BadWebServer

HERE = frozenset({"127.0.0.1"})
LOOPBACK = ipaddress.ip_address("127.0.0.1")


def fetch(url: str, directory: Path, **given: Any) -> Downloaded:
    lookup = given.pop("lookup", resolve)
    limits = Limits(**{"max_bytes": 10**6, "idle_s": 20.0, "total_s": 25.0, **given})
    return Download(Source(url, "video"), directory, limits, lookup=lookup).run()


def refused(url: str, directory: Path, **given: Any) -> TaskFailure:
    with pytest.raises(TaskFailure) as caught:
        fetch(url, directory, **given)
    return caught.value


class NameServer:
    """Answers from a list, one answer per question, and remembers the questions."""

    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.asked.append(host)
        return [ipaddress.ip_address(text) for text in self._answers.pop(0).split()]


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b:1::a00:1",
        "fe80::1",
        "fec0::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::1",
        "3fff::1",
        "5f00::1",
    ],
)
def test_private_address_in_every_form(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450:4001::1"])
def test_public_address(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "LOCALHOST.", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0", "[::1]"]
)
def test_loopback_by_any_spelling(bad_web: BadWebServer, tmp_path: Path, host: str) -> None:
    found = refused(f"http://{host}:{bad_web.port}/clip.mp4", tmp_path)
    # The C library of some systems knows fewer spellings: a name that is not found reaches nothing either.
    assert found.code in ("input.forbidden_address", "input.unreachable")
    assert bad_web.requests == []


def test_refusal_says_what_to_do_and_hides_the_address(tmp_path: Path) -> None:
    found = refused("http://intranet.example/", tmp_path, lookup=NameServer("10.20.30.40"))
    assert found.code == "input.forbidden_address" and "inputs.allow_private_hosts" in found.message
    assert "10.20.30.40" not in found.message


def test_metadata_service_of_the_cloud(tmp_path: Path) -> None:
    assert refused("http://169.254.169.254/latest/meta-data/", tmp_path).code == "input.forbidden_address"


def test_redirect_to_a_private_address(bad_web: BadWebServer, tmp_path: Path) -> None:
    inside = bad_web.url("/clip.mp4", "localhost")
    found = refused(bad_web.url(f"/to?url={inside}"), tmp_path, allow_private_hosts=HERE)
    assert found.code == "input.forbidden_address" and "localhost" in found.message
    assert bad_web.paths() == [f"/to?url={inside}"]


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1", "javascript:alert(1)", "http://[x"]
)
def test_redirect_to_something_that_is_not_the_web(bad_web: BadWebServer, tmp_path: Path, target: str) -> None:
    found = refused(bad_web.url(f"/to?url={target}"), tmp_path, allow_private_hosts=HERE)
    assert found.code == "input.bad_url" and "redirects to where nothing can be had" in found.message


def test_name_server_that_changes_its_mind_after_the_check(bad_web: BadWebServer, tmp_path: Path) -> None:
    names = NameServer("127.0.0.1", "10.0.0.1")
    url = bad_web.url("/clip.mp4", "media.example")
    fetch(url, tmp_path, lookup=names, allow_private_hosts=frozenset({"media.example"}))
    assert names.asked == ["media.example"], "one question per hop: the connection uses the answer that was checked"
    assert bad_web.requests[0][1]["Host"] == f"media.example:{bad_web.port}"


def test_name_that_is_public_at_first_and_private_after_its_own_redirect(bad_web: BadWebServer, tmp_path: Path) -> None:
    hops = NameServer("127.0.0.1", "192.168.0.1")
    first = bad_web.url(f"/to?url={bad_web.url('/clip.mp4', 'rebound.example')}", "allowed.example")
    found = refused(first, tmp_path, lookup=hops, allow_private_hosts=frozenset({"allowed.example"}))
    assert found.code == "input.forbidden_address" and hops.asked == ["allowed.example", "rebound.example"]


def test_private_addresses_among_public_ones_are_not_tried(tmp_path: Path, bad_web: BadWebServer) -> None:
    names = NameServer("127.0.0.1 192.0.2.1 ::1")
    assert refused(bad_web.url("/clip.mp4", "mixed.example"), tmp_path, lookup=names).code == "input.forbidden_address"
    assert bad_web.requests == []


def test_second_address_is_tried_when_the_first_is_dead(bad_web: BadWebServer, tmp_path: Path) -> None:
    names = NameServer("127.0.0.2 127.0.0.1")  # nothing listens on the first
    url = bad_web.url("/clip.mp4", "two.example")
    assert fetch(url, tmp_path, lookup=names, allow_private_hosts=frozenset({"two.example"})).bytes


def test_operator_allows_all_private_addresses(bad_web: BadWebServer, tmp_path: Path) -> None:
    assert fetch(bad_web.url("/clip.mp4", "localhost"), tmp_path, allow_private_urls=True).bytes


def test_proxy_of_the_environment_is_not_used(
    bad_web: BadWebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    assert fetch(bad_web.url("/clip.mp4"), tmp_path, allow_private_hosts=HERE).bytes


def test_credentials_in_the_url_stay_with_their_origin(bad_web: BadWebServer, tmp_path: Path) -> None:
    both = frozenset({"127.0.0.1", "localhost"})
    elsewhere = bad_web.url("/clip.mp4", "localhost")
    start = bad_web.url("/hops/1").replace("//", "//us%40er:p%3Aw@")
    assert "er" not in fetch(start, tmp_path, allow_private_hosts=both).url.partition("//")[2].partition("/")[0]
    assert {headers.get("Authorization") for _, headers in bad_web.requests} == {"Basic dXNAZXI6cDp3"}
    bad_web.requests.clear()
    fetch(bad_web.url(f"/to?url={elsewhere}").replace("//", "//user:pw@", 1), tmp_path, allow_private_hosts=both)
    assert [headers.get("Authorization") for _, headers in bad_web.requests] == ["Basic dXNlcjpwdw==", None]


def test_planted_netrc_is_not_used(bad_web: BadWebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login planted password planted\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "in").mkdir()
    fetch(bad_web.url("/clip.mp4"), tmp_path / "in", allow_private_hosts=HERE)
    assert "Authorization" not in bad_web.requests[0][1]


@pytest.fixture
def secure_web(certificate: Path) -> Any:
    from tests.bad_web_server import BadWebServer

    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(certificate)
    server = BadWebServer(trust)
    yield server
    server.close()


def over_tls(
    server: BadWebServer, directory: Path, host: str, path: str = "/clip.mp4", idle_s: float = 20.0
) -> Downloaded:
    url = server.url(path, host)
    return fetch(url, directory, lookup=NameServer("127.0.0.1"), allow_private_hosts=frozenset({host}), idle_s=idle_s)


def test_certificate_is_checked_for_the_name_though_the_address_is_pinned(
    secure_web: BadWebServer, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert over_tls(secure_web, tmp_path, "media.example").bytes
    with pytest.raises(TaskFailure, match="certificate of other.example is refused.*ostname mismatch") as caught:
        over_tls(secure_web, tmp_path, "other.example")
    assert (caught.value.code, caught.value.retryable) == ("input.unreachable", False)


def test_certificate_that_nobody_vouches_for(secure_web: BadWebServer, tmp_path: Path) -> None:
    with pytest.raises(TaskFailure, match="certificate of media.example is refused: self-signed certificate"):
        over_tls(secure_web, tmp_path, "media.example")


@pytest.mark.parametrize("path", ["/stall", "/slow-headers"])
def test_slow_server_behind_tls(
    secure_web: BadWebServer, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with pytest.raises(TaskFailure, match=r"within 0\.5 s") as caught:
        over_tls(secure_web, tmp_path, "media.example", path, idle_s=0.5)
    assert caught.value.code == "input.timeout"


def test_https_address_where_plain_http_is_spoken(bad_web: BadWebServer, tmp_path: Path) -> None:
    found = refused(bad_web.url("/clip.mp4").replace("http:", "https:"), tmp_path, allow_private_hosts=HERE)
    assert found.code == "input.http_error" and "no HTTP answer" in found.message
