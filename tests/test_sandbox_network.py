"""Ports, by Landlock; other protocols, by the filter; whom a process may signal or call by an abstract name."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.sandboxed import confined, profile_of

LOOPBACK = "127.0.0.1"
WAYS = """
import signal, socket
allowed, other, spare, datagrams, name = *map(int, sys.argv[1:5]), sys.argv[5]
INET, STREAM = socket.AF_INET, socket.SOCK_STREAM
def tcp(port, call="connect", protocol=0, family=INET, host="127.0.0.1"):
    with socket.socket(family, STREAM, protocol) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        getattr(made, call)((host, port))
def made(*kind):
    socket.socket(*kind).close()
def fast(port, how):
    with socket.socket(INET, STREAM) as sender:
        if how == "sendto":
            sender.sendto(b"x", socket.MSG_FASTOPEN, ("127.0.0.1", port))
        else:
            sender.sendmsg([b"x"], [], socket.MSG_FASTOPEN, ("127.0.0.1", port))
def abstract(kind=STREAM):
    with socket.socket(socket.AF_UNIX, kind) as caller:
        caller.connect("\\0" + name)
def datagram():
    with socket.socket(INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", datagrams))
def own_child(act):
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    act(child)
    os.waitpid(child, 0)
say("connect_allowed", lambda: tcp(allowed))
say("connect_other", lambda: tcp(other))
say("connect_other_as_mapped", lambda: tcp(other, family=socket.AF_INET6, host="::ffff:127.0.0.1"))
say("bind_allowed", lambda: tcp(spare, "bind"))
say("bind_other", lambda: tcp(0, "bind"))
say("fast_open", lambda: fast(other, "sendto"))
say("fast_open_message", lambda: fast(other, "sendmsg"))
say("multipath", lambda: tcp(other, protocol=262))
say("sctp", lambda: made(INET, STREAM, 132))
say("datagram", datagram)
say("datagram_six", lambda: made(socket.AF_INET6, socket.SOCK_DGRAM))
say("udplite", lambda: made(INET, socket.SOCK_DGRAM, 136))
say("ping", lambda: made(INET, socket.SOCK_DGRAM, 1))
say("raw", lambda: made(INET, socket.SOCK_RAW, 1))
say("packet", lambda: made(socket.AF_PACKET, socket.SOCK_RAW, 0))
say("vsock", lambda: made(socket.AF_VSOCK, STREAM, 0))
say("crypto", lambda: made(socket.AF_ALG, socket.SOCK_SEQPACKET, 0))
say("bluetooth", lambda: made(31, STREAM, 3))
say("routes", lambda: made(socket.AF_NETLINK, socket.SOCK_RAW, 0))
say("firewall", lambda: made(socket.AF_NETLINK, socket.SOCK_RAW, 12))
say("pair", lambda: [end.close() for end in socket.socketpair()])
say("abstract", abstract)
say("signal_launcher", lambda: os.kill(os.getppid(), 0))
say("signal_group_of_launcher", lambda: os.killpg(os.getpgid(os.getppid()), 0))
say("signal_own_child", lambda: own_child(lambda child: os.kill(child, signal.SIGKILL)))
"""
FORBIDDEN = ("sctp", "udplite", "ping", "raw", "packet", "vsock", "crypto", "bluetooth", "firewall")
FINE = ("routes", "pair", "signal_own_child")


@dataclass
class Ears:
    """What is there to be called: two TCP ports, a UDP port, an abstract name. `spare` is held for whoever else binds
    it in the same way."""

    allowed: socket.socket = field(default_factory=socket.socket)
    other: socket.socket = field(default_factory=socket.socket)
    spare: socket.socket = field(default_factory=socket.socket)
    datagrams: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    abstract: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX))

    def open(self) -> Ears:
        for one in (self.allowed, self.other, self.spare, self.datagrams):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((LOOPBACK, 0))
        self.name = f"w2g-sandbox-{os.getpid()}-{self.port(self.other)}"
        self.abstract.bind(f"\0{self.name}")
        for one in (self.allowed, self.other, self.abstract):
            one.listen()
        return self

    @staticmethod
    def port(one: socket.socket) -> int:
        return int(one.getsockname()[1])

    def arguments(self) -> tuple[object, ...]:
        ports = (self.port(one) for one in (self.allowed, self.other, self.spare, self.datagrams))
        return (*ports, self.name)

    def close(self) -> None:
        for one in (self.allowed, self.other, self.spare, self.datagrams, self.abstract):
            one.close()


@pytest.fixture
def ears() -> Iterator[Ears]:
    opened = Ears().open()
    yield opened
    opened.close()


def test_a_handler_with_two_ports_meets_no_other_and_no_other_protocol(ears: Ears, tmp_path: Path) -> None:
    profile = profile_of(tmp_path, tcp=(Ears.port(ears.allowed), Ears.port(ears.spare)))
    seen = confined(profile, WAYS, *ears.arguments())
    answers = dict(seen.answers)
    assert seen.refused == {}
    assert {answers[name] for name in (*FINE, "connect_allowed", "bind_allowed")} == {"ok"}, answers
    assert {answers[name] for name in ("connect_other", "connect_other_as_mapped", "bind_other")} == {"EACCES"}
    closed = (*FORBIDDEN, "multipath", "fast_open", "fast_open_message", "datagram", "datagram_six")
    assert {answers[name] for name in closed} == {"EPERM"}, answers
    assert {answers[name] for name in ("abstract", "signal_launcher", "signal_group_of_launcher")} == {"EPERM"}
    ears.datagrams.setblocking(False)
    with pytest.raises(BlockingIOError):
        ears.datagrams.recv(1)


def test_a_handler_that_may_reach_the_internet_still_makes_no_other_sockets(ears: Ears, tmp_path: Path) -> None:
    answers = confined(profile_of(tmp_path, tcp=None, udp=True), WAYS, *ears.arguments()).answers
    reached = ("connect_allowed", "connect_other", "bind_other", "datagram", "datagram_six")
    assert {answers[name] for name in (*FINE, *reached)} == {"ok"}, answers
    assert {answers[name] for name in FORBIDDEN} == {"EPERM"}
    assert answers["abstract"] == answers["signal_launcher"] == "EPERM"
    assert ears.datagrams.recv(1) == b"x"


def test_without_a_sandbox_all_of_it_is_reached(ears: Ears, tmp_path: Path) -> None:
    """The control."""
    answers = confined(profile_of(tmp_path, mode="off"), WAYS, *ears.arguments()).answers
    reached = ("connect_other", "bind_other", "datagram", "abstract", "signal_launcher", "connect_other_as_mapped")
    assert {answers[name] for name in reached} == {"ok"}, answers


def test_a_kernel_whose_landlock_does_not_know_ports(ears: Ears, tmp_path: Path) -> None:
    """Linux 5.13 to 6.6. Who needs no port makes no TCP sockets at all; who needs some is told to be unprotected."""
    none = confined(profile_of(tmp_path), WAYS, *ears.arguments(), abi=3)
    assert none.answers["connect_other"] == none.answers["bind_other"] == "EPERM"
    assert set(none.refused) == {"scope"}
    some = confined(profile_of(tmp_path, tcp=(Ears.port(ears.allowed),)), WAYS, *ears.arguments(), abi=3)
    assert some.answers["connect_allowed"] == some.answers["connect_other"] == "ok"
    assert set(some.refused) == {"scope", "tcp"} and "6.7" in some.refused["tcp"]
