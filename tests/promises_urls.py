"""What holds for any URL and any address, however it is made up."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import strategies as st

from wan2gp.addresses import Address, is_public
from wan2gp.brake import Brake
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.locations import Location, parse_location, shown_url
from wan2gp.pinned import PrivateAddress, find

HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+(%[0-9a-z._~-]+)?")
PIECES = st.sampled_from(
    [
        *(
            "http://",
            "https://",
            "HTTP:",
            "file://",
            "//",
            "/",
            "\\",
            "@",
            ":",
            "?",
            "#",
            "%",
            "%00",
            "%2f",
            "..",
            ".",
            ",",
        ),
        *(
            "127.0.0.1",
            "localhost",
            "0x7f.1",
            "2130706433",
            "169.254.169.254",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[fe80::1%25x]",
        ),
        *(
            "example",
            "ex.ample",
            "user",
            "pass",
            "80",
            "99999",
            "-1",
            "ü",
            "①",
            "。",
            "．",
            "\u200b",
            "\u00ad",
            "ß",
            "İ",
        ),
        *(
            " ",
            "\t",
            "\r\n",
            "\0",
            "\x7f",
            "[",
            "]",
            "<",
            ">",
            '"',
            "'",
            "{",
            "|",
            "^",
            "`",
            "secret=1",
            "xn--",
            "xn--a",
        ),
    ]
)
URLS = st.one_of(
    st.text(max_size=60),
    st.lists(PIECES, max_size=9).map("".join),
    st.lists(PIECES | st.text(max_size=3), max_size=9).map(lambda parts: "http://" + "".join(parts)),
)
V4 = st.ip_addresses(v=4)
PRIVATE_V4 = st.sampled_from(
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 "
    "192.168.0.0/16 198.18.0.0/15 224.0.0.0/4 240.0.0.0/4 255.255.255.255/32".split()
).flatmap(lambda network: st.ip_addresses(network=network))
NETWORKS = st.ip_addresses(network="2000::/3")
RFC_6052 = (32, 40, 48, 56, 64, 96)


def is_taken_apart_or_refused(url: str) -> None:
    """One meaning or none; nothing in it can become a second header, another host, or a line of a log."""
    try:
        found = parse_location(url)
    except TaskFailure as failure:
        assert failure.code == "input.bad_url"
        assert failure.message.isprintable() or "\n" not in failure.message
        assert "secret" not in failure.message or "secret" not in url.partition("?")[2]
        return
    _sane(found)
    again = parse_location(f"{found.scheme}://{_bracketed(found.host)}:{found.port}{found.target}")
    assert (again.origin, again.target) == (found.origin, found.target), "it means the same when it is read again"
    for target in (url, "/" + url, "//" + url):
        try:
            _sane(found.redirected(target))
        except TaskFailure as failure:
            assert failure.code == "input.bad_url"


def _sane(found: Location) -> None:
    assert found.scheme in ("http", "https") and HOST.fullmatch(found.host) and 0 <= found.port <= 65535
    assert found.target.startswith("/") and found.target.isascii() and not re.search(r"[\s\x00-\x1f\x7f]", found.target)
    assert "?" not in found.shown and "@" not in found.shown.partition("://")[2].partition("/")[0]
    assert found.authorization is None or re.fullmatch(r"Basic [A-Za-z0-9+/=]*", found.authorization)
    assert shown_url(f"{found.scheme}://{_bracketed(found.host)}{found.path}").isprintable()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def guard(addresses: Sequence[Address], *, private: bool = False, own: Sequence[Address] = ()) -> Sequence[Address]:
    """What the guard lets through; the name server is a stub, and nothing is connected to."""

    def lookup(host: str, port: int) -> Sequence[Address]:
        return addresses

    named: dict[str, Any] = {"private": private, "timeout_s": 20.0, "brake": Brake(), "lookup": lookup}
    return find("name.example", 80, own=lambda: own, **named)


def embedded(v4: ipaddress.IPv4Address, network: ipaddress.IPv6Address) -> dict[str, ipaddress.IPv6Address]:
    """The forms in which an IPv6 address can stand for an IPv4 one."""
    number, top = int(v4), int(network) >> 64 << 64
    forms = {
        "mapped": 0xFFFF << 32 | number,
        "compatible": number,
        "translated": 0xFFFF << 48 | number,
        "NAT64": 0x64FF9B << 96 | number,
        "NAT64, local": 0x64FF9B0001 << 80 | number,
        "6to4": 0x2002 << 112 | number << 80 | 1,
        "Teredo": 0x20010000 << 96 | 0x5EF5 << 80 | ~number & 0xFFFFFFFF,
        "Teredo's server": 0x20010000 << 96 | number << 64 | 1,
        "ISATAP": top | 0x00005EFE << 32 | number,
        "ISATAP, global": top | 0x02005EFE << 32 | number,
    }
    return {name: ipaddress.IPv6Address(value) for name, value in forms.items()}


def leads_to_no_private_address(pair: tuple[ipaddress.IPv4Address, ipaddress.IPv6Address]) -> None:
    """``pair``: an IPv4 address that is private, and any network."""
    v4, network = pair
    for address in (v4, *embedded(v4, network).values()):
        assert not is_public(address), address
        with pytest.raises(PrivateAddress):
            guard([address])


def is_no_more_lenient_than_the_registries(address: Address) -> None:
    """What Python's copy of IANA's tables calls not global is never public here."""
    if is_public(address):
        assert address.is_global and not address.is_multicast and not address.is_reserved
        assert guard([address]) == [address]
        with pytest.raises(PrivateAddress):
            guard([address], own=[address])
