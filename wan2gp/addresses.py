"""Which network addresses a download may go to: a user's URL must not reach what only this machine can reach.

A name is resolved once per hop, every address it has is checked, and the connection is made to a checked *address*, so
that no second answer of the name server can lead elsewhere.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from collections.abc import Callable, Sequence
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
        "3fff::/20",
    )
)


def is_public(address: Address) -> bool:
    """True for an address of the open internet."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _PRIVATE_V4)
    return address in _PUBLIC_V6 and not any(address in network for network in _PRIVATE_V6)


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
