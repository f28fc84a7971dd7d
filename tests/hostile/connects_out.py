"""Reaches for other hosts: `prey["tcp"]` and `prey["udp"]` are ports of this machine that stand for them, by name;
`prey["hosts"]` are addresses with a port."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Tries

HOSTS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
MSG_FASTOPEN = getattr(socket, "MSG_FASTOPEN", 0x20000000)
IPPROTO_MPTCP, IPPROTO_UDPLITE, IPPROTO_SCTP = 262, 136, 132
WAIT_S = 2.0


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    for label, port in prey.get("tcp", {}).items():
        for family, host in HOSTS:
            tries(f"{label}, {family.name}", lambda f=family, to=(host, port): connected(f, to))
        tries(f"{label}, mapped", lambda port=port: connected(socket.AF_INET6, ("::ffff:127.0.0.1", port)))
        tries(f"{label}, multipath", lambda port=port: connected(socket.AF_INET, ("127.0.0.1", port), IPPROTO_MPTCP))
        tries(f"{label}, fast open", lambda port=port: fast_open(("127.0.0.1", port)))
        tries(f"{label}, fast open by sendmsg", lambda port=port: fast_open_message(("127.0.0.1", port)))
        tries(f"{label}, not waiting", lambda port=port: hurried(("127.0.0.1", port)))
    for label, port in prey.get("udp", {}).items():
        for family, host in HOSTS:
            tries(f"{label}, {family.name} datagram", lambda f=family, to=(host, port): datagram(f, to))
        tries(f"{label}, UDP-Lite", lambda port=port: datagram(socket.AF_INET, ("127.0.0.1", port), IPPROTO_UDPLITE))
    for label, (host, port) in prey.get("hosts", {}).items():
        tries(label, lambda to=(host, port): connected(socket.AF_INET, to))
    tries("listens", listens)


def connected(family: int, to: tuple[str, int], protocol: int = 0) -> str:
    with socket.socket(family, socket.SOCK_STREAM, protocol) as made:
        made.settimeout(WAIT_S)
        made.connect(to)
        return f"connected to {to[1]}"


def hurried(to: tuple[str, int]) -> str:
    with socket.socket() as made:
        made.setblocking(False)
        if (number := made.connect_ex(to)) not in (0, errno.EINPROGRESS):
            raise OSError(number, "connect")
        return "connecting"


def fast_open(to: tuple[str, int]) -> str:
    """Data with the first packet: no call to connect."""
    with socket.socket() as made:
        made.sendto(b"secret", MSG_FASTOPEN, to)
        return "sent"


def fast_open_message(to: tuple[str, int]) -> str:
    with socket.socket() as made:
        made.sendmsg([b"secret"], [], MSG_FASTOPEN, to)
        return "sent"


def datagram(family: int, to: tuple[str, int], protocol: int = 0) -> str:
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as made:
        made.sendto(b"secret", to)
        return "sent"


def listens() -> str:
    """A port of its own, for whoever waits outside."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        return "listening"
