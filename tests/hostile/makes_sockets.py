"""Opens sockets of every family that leads into the kernel or out of the machine; sends nothing."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Tries

STREAM, DATAGRAM, RAW, SEQPACKET = 1, 2, 3, 5
FAMILIES = {
    "raw IPv4": (socket.AF_INET, RAW, 1),
    "raw IPv6": (socket.AF_INET6, RAW, 58),
    "ping": (socket.AF_INET, DATAGRAM, 1),
    "SCTP": (socket.AF_INET, STREAM, 132),
    "DCCP": (socket.AF_INET, 6, 33),
    "multipath TCP": (socket.AF_INET, STREAM, 262),
    "packet": (17, RAW, 0x0300),
    "vsock": (40, STREAM, 0),
    "crypto": (38, SEQPACKET, 0),
    "bluetooth": (31, RAW, 1),
    "CAN": (29, RAW, 1),
    "TIPC": (30, DATAGRAM, 0),
    "RDS": (21, SEQPACKET, 0),
    "XDP": (44, RAW, 0),
    "key management": (15, RAW, 2),
    "netlink of netfilter": (16, RAW, 12),
    "netlink of the audit": (16, RAW, 9),
    "netlink of uevents": (16, RAW, 15),
    "netlink, generic": (16, RAW, 16),
    "X.25": (9, SEQPACKET, 0),
    "SMC": (43, STREAM, 0),
}
"""Family, kind, protocol."""


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    for name, numbers in FAMILIES.items():
        tries(name, lambda numbers=numbers: made(*numbers))


def made(family: int, kind: int, protocol: int) -> str:
    with socket.socket(family, kind, protocol):
        return "a socket"
