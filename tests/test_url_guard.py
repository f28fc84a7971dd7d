"""The guard before every download: whatever a row's URL says, and whatever the name server answers to it."""

from __future__ import annotations

import gzip
import http.client
import ipaddress
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzzing import corpus, search, slice_of
from tests.promises_urls import (
    NETWORKS,
    PRIVATE_V4,
    URLS,
    embedded,
    guard,
    is_no_more_lenient_than_the_registries,
    is_taken_apart_or_refused,
    leads_to_no_private_address,
)
from wan2gp.addresses import is_public, own_addresses
from wan2gp.brake import Brake
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.locations import parse_location
from wan2gp.handlers.webstream import Reply
from wan2gp.pinned import PrivateAddress

ADDRESSES = st.ip_addresses(v=4) | st.ip_addresses(v=6) | NETWORKS


def test_every_url_has_one_meaning_or_none() -> None:
    for url in corpus("urls"):
        is_taken_apart_or_refused(url)
    slice_of(is_taken_apart_or_refused, URLS, 600)


def test_no_private_address_in_any_form_is_let_through() -> None:
    slice_of(leads_to_no_private_address, st.tuples(PRIVATE_V4, NETWORKS), 200)


def test_no_address_is_public_here_that_the_registries_call_private() -> None:
    slice_of(is_no_more_lenient_than_the_registries, ADDRESSES, 600)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_urls_and_addresses_for_minutes_without_a_finding() -> None:
    def all_three(example: tuple[Any, Any, Any]) -> None:
        is_taken_apart_or_refused(example[0])
        leads_to_no_private_address(example[1])
        is_no_more_lenient_than_the_registries(example[2])

    assert search("urls", all_three, st.tuples(URLS, st.tuples(PRIVATE_V4, NETWORKS), ADDRESSES))


@pytest.mark.parametrize("form", sorted(embedded(ipaddress.IPv4Address("10.0.0.1"), ipaddress.IPv6Address("2a00::"))))
@pytest.mark.parametrize("v4", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.100.100.200", "168.63.129.16"])
def test_an_ipv4_address_within_an_ipv6_address(form: str, v4: str) -> None:
    address = embedded(ipaddress.IPv4Address(v4), ipaddress.IPv6Address("2a00:1450:4001::"))[form]
    assert not is_public(address), f"{address} is {v4} as {form}"


def test_this_machines_own_public_address_is_as_private_as_its_loopback() -> None:
    """What listens on all interfaces answers there, and no firewall is in between."""
    ours, other = ipaddress.ip_address("8.8.4.4"), ipaddress.ip_address("8.8.8.8")
    assert guard([ours, other], own=[ours]) == [other]
    with pytest.raises(PrivateAddress):
        guard([ours], own=[ours])
    assert guard([ours], own=[ours], private=True) == [ours], "the operator may allow it"


def test_own_addresses_are_those_of_the_interfaces(tmp_path: Path) -> None:
    assert ipaddress.ip_address("127.0.0.1") in own_addresses()
    v4, v6 = tmp_path / "fib_trie", tmp_path / "if_inet6"
    v4.write_text(
        "Local:\n  +-- 0.0.0.0/0 3 0 5\n     +-- 8.8.4.0/24 2 0 2\n        |-- 8.8.4.0\n           /24 link UNICAST\n"
        "        |-- 8.8.4.4\n           /32 host LOCAL\n        |-- 8.8.4.255\n           /32 link BROADCAST\n"
    )
    v6.write_text("2a001450400100000000000000000007 02 40 00 80     eth0\ngarbage\n\n")
    assert own_addresses(v4, v6) == {ipaddress.ip_address("8.8.4.4"), ipaddress.ip_address("2a00:1450:4001::7")}
    assert own_addresses(tmp_path / "none", tmp_path / "none") == frozenset()


@pytest.mark.parametrize(
    "url",
    [
        "http://public.example\\@127.0.0.1/",
        "http://public.example%2f@127.0.0.1\\.example/",
        "http://a,b/",
        "http://exa mple/",
        "http://%31%32%37.0.0.1/",
        "http://*/",
        "http://.example/",
        "http://[127.0.0.1]/",
    ],
)
def test_host_that_two_readers_would_read_in_two_ways(url: str) -> None:
    try:
        assert parse_location(url).host == "127.0.0.1"  # behind an @ there is one reading, and that is refused later
        assert "@" in url
    except TaskFailure as failure:
        assert failure.code == "input.bad_url"


@pytest.mark.parametrize("url", ["http://１２７.０.０.１/", "http://①②⑦.⓪.⓪.①/", "http://127。0。0。1/"])
def test_digits_of_other_scripts_are_digits(url: str) -> None:
    try:
        assert parse_location(url).host == "127.0.0.1"
    except TaskFailure as failure:
        assert failure.code == "input.bad_url"


# --- bodies ----------------------------------------------------------------------------------------------------------


class Answer:
    """A body that arrives in pieces of any size."""

    status, reason, chunked, length = 200, "OK", True, None

    def __init__(self, pieces: list[bytes], encoding: str) -> None:
        self._pieces = pieces
        self.headers = http.client.HTTPMessage()
        self.headers["Content-Encoding"] = encoding

    def read1(self, wanted: int) -> bytes:
        piece = self._pieces.pop(0) if self._pieces else b""
        if len(piece) > wanted:
            self._pieces.insert(0, piece[wanted:])
        return piece[:wanted]


def bare(body: bytes) -> bytes:
    squeeze = zlib.compressobj(wbits=-15)
    return squeeze.compress(body) + squeeze.flush()


ENCODINGS = {
    "gzip": lambda body: gzip.compress(body),
    "x-gzip": lambda body: gzip.compress(body[:1000]) + gzip.compress(b"") + gzip.compress(body[1000:]),
    "deflate": lambda body: zlib.compress(body),
    "deflate ": bare,
}
BODIES = (
    st.binary(max_size=3000)
    | st.integers(1, 6).map(lambda count: bytes(262_144 * count - 1))
    | st.binary(max_size=40).map(lambda piece: piece * 30_000)
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(BODIES, st.sampled_from(sorted(ENCODINGS)), st.integers(1, 70_000))
def test_every_body_arrives_whole_however_it_is_packed_and_cut(body: bytes, encoding: str, cut: int) -> None:
    packed = ENCODINGS[encoding](body)
    pieces = [packed[start : start + cut] for start in range(0, len(packed), cut)][:100_000]
    answer: Any = Answer(pieces, encoding)
    reply = Reply(parse_location("http://x.example/"), answer, Brake(), 1.0)
    got = list(reply.pieces())
    assert b"".join(got) == body and reply.received == len(packed)
    assert max(map(len, got), default=0) <= 262_144, "never more at once, whatever a byte stands for"


@pytest.mark.parametrize("padding", [bytes(1), bytes(5000), b"\x1f", b"\r\n", b"\x1f\x00rest"])
@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
@pytest.mark.parametrize("cut", [1, 7, 70_000])
def test_what_stands_behind_a_packed_body_is_no_part_of_it(padding: bytes, encoding: str, cut: int) -> None:
    """Servers pad with zeros, and other clients pass over them."""
    body = b"wan" * 1000
    packed = ENCODINGS[encoding](body) + padding
    answer: Any = Answer([packed[start : start + cut] for start in range(0, len(packed), cut)], encoding)
    reply = Reply(parse_location("http://x.example/"), answer, Brake(), 1.0)
    assert b"".join(reply.pieces()) == body and reply.received == len(packed)


@pytest.mark.parametrize(
    "broken", [lambda whole: whole[:-1], lambda whole: whole[:12] + bytes(50)], ids=["cut", "zeros"]
)
def test_a_later_part_of_a_packed_body_that_is_broken_is_no_padding(broken: Callable[[bytes], bytes]) -> None:
    member = broken(gzip.compress(b"x" * 100))
    answer: Any = Answer([gzip.compress(b"first") + member], "gzip")
    with pytest.raises(TaskFailure, match="gzip data"):
        list(Reply(parse_location("http://x.example/"), answer, Brake(), 1.0).pieces())


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.binary(max_size=400), st.sampled_from(["gzip", "deflate"]), st.booleans())
def test_a_body_that_is_not_what_it_says_is_a_failure_in_words(noise: bytes, encoding: str, begun: bool) -> None:
    answer: Any = Answer([gzip.compress(b"x")[:12] * begun + noise], encoding)
    try:
        list(Reply(parse_location("http://x.example/"), answer, Brake(), 1.0).pieces())
    except TaskFailure as failure:
        assert failure.code == "input.http_error"
