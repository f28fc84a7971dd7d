"""Which network addresses a download may go to: a user's URL must not reach what only this machine can reach.

A name is resolved once per hop, every address it has is checked, and the connection is made to a checked *address*, so
that no second answer of the name server can lead elsewhere.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Union

from wan2gp.brake import Brake

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Resolve = Callable[[str, int], Sequence[Address]]
"""``resolve(host, port)``: all addresses of a host, best first; raises OSError."""

_PRIVATE_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT, and a cloud's metadata service
        "127.0.0.0/8",
        "168.63.129.16/32",  # another cloud's, at an address that looks public
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# Of IPv6 only this one block is handed out to hosts. Outside of it: loopback, link-local, unique local, multicast, and
# the forms that carry an IPv4 address within (mapped, compatible, NAT64).
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_PRIVATE_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # Teredo among them, which carries an IPv4 address
        "2001:db8::/32",
        "2002::/16",  # 6to4, the same
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
_ISATAP = (0x00005EFE, 0x02005EFE)
"""The 32 bits before the IPv4 address that such an IPv6 address ends with, whatever network it is in (RFC 5214)."""
_LOCAL_V4, _LOCAL_V6 = Path("/proc/net/fib_trie"), Path("/proc/net/if_inet6")


def is_public(address: Address) -> bool:
    """True for an address of the open internet.

    A network may translate IPv4 addresses under a prefix of its own choice (RFC 6052), and no address shows it.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _PRIVATE_V4)
    if int(address) >> 32 & 0xFFFFFFFF in _ISATAP and not is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)):
        return False
    return address in _PUBLIC_V6 and not any(address in network for network in _PRIVATE_V6)


def own_addresses(v4: Path = _LOCAL_V4, v6: Path = _LOCAL_V6) -> frozenset[Address]:
    """The addresses of this machine's interfaces, or of its container's, public ones included.

    By its own public address a machine reaches what listens on all of its interfaces, behind its firewall. What the
    kernel does not tell (``proc(5)``) is left out.
    """
    return frozenset((*_own_v4(_lines(v4)), *_own_v6(_lines(v6))))


def _lines(path: Path) -> Sequence[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ()


def _own_v4(trie: Sequence[str]) -> Iterator[Address]:
    """``|-- 10.0.0.7``, and below it ``/32 host LOCAL``."""
    leaf = ""
    for line in trie:
        head, mark, rest = line.partition("|-- ")
        if mark:
            leaf = rest.strip()
        elif leaf and line.split() == ["/32", "host", "LOCAL"]:
            yield ipaddress.IPv4Address(leaf)


def _own_v6(table: Sequence[str]) -> Iterator[Address]:
    """Each line begins with the address, as 32 digits."""
    for line in table:
        digits = line.partition(" ")[0]
        if len(digits) == 32:
            yield ipaddress.IPv6Address(int(digits, 16))


def resolve(host: str, port: int) -> Sequence[Address]:
    """All addresses of ``host``, in the order in which the system would try them. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    texts = (str(entry[4][0]).partition("%")[0] for entry in found)
    return [ipaddress.ip_address(text) for text in dict.fromkeys(texts)]


def resolve_within(lookup: Resolve, host: str, port: int, timeout_s: float, brake: Brake) -> Sequence[Address]:
    """The same, but gives up after ``timeout_s`` seconds or when the brake is pulled (both: TimeoutError).

    The system's resolver cannot be interrupted, so its thread is left to end by itself.
    """
    answer: queue.SimpleQueue[Sequence[Address] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(lookup(host, port))
        except OSError as error:
            answer.put(error)
        except UnicodeError as error:
            answer.put(OSError(f"not a host name: {error}"))

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        with brake.stops(lambda: answer.put(TimeoutError("stopped"))):
            found = answer.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError(f"no answer from the name server within {timeout_s:.0f} s") from None
    if isinstance(found, OSError):
        raise found
    return found
