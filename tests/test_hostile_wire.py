"""What a hostile child can do to the supervisor's socket: nothing that another child, or the supervisor, would feel."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.conftest_worker import eventually
from tests.raw_zmtp import COMMAND, GREETING, MORE, connect, frame, join, ready
from wan2gp.handlers.link import Link
from wan2gp.protocol import (
    MAX_CONTAINERS,
    Beat,
    Cancel,
    Event,
    Finished,
    Progress,
    ProtocolError,
    Run,
    Succeeded,
    Unload,
    Up,
    decode_down,
    encode,
)
from wan2gp.supervisor import bounds
from wan2gp.supervisor.allowance import Allowance
from wan2gp.supervisor.connections import HANDSHAKE_S
from wan2gp.supervisor.router import BYTES, CONNECTIONS_MAX, EFFORT, MESSAGES, REFUSALS_MAX, Router, Unreachable

A, B = b"a#1#secret-of-a", b"b#1#secret-of-b"
Heard = list[tuple[bytes, Up | ProtocolError]]


class Wire:
    """A router with a clock of its own, and two children admitted: this process is below both."""

    def __init__(self, path: Path) -> None:
        self.now = 0.0
        self.effort_s = self._worked = 0.0
        """What each message costs, and what all have cost, processor seconds."""
        self.router = Router(f"ipc://{path}/s", lambda: self.now, self._work)
        self.endpoint = self.router.endpoint
        self.ours = True
        self.router.admit(A, lambda kin: self.ours and kin.pid == os.getpid())
        self.router.admit(B, lambda kin: False)
        self._open: list[socket.socket] = []

    def _work(self) -> float:
        """Asked before and after each message."""
        self._worked += self.effort_s
        return self._worked

    def join(self, identity: bytes = A) -> socket.socket:
        self._open.append(join(self.endpoint, identity))
        return self._open[-1]

    def connect(self) -> socket.socket:
        self._open.append(connect(self.endpoint))
        return self._open[-1]

    def hear(self) -> Heard:
        """All that has come: what a local socket was given is there at once."""
        heard: Heard = []
        while self.router.wait(1):
            heard += self.router.receive()
        return heard

    def errors(self) -> list[str]:
        return [str(said) for _, said in self.hear() if isinstance(said, ProtocolError)]

    def close(self) -> None:
        for own in self._open:
            own.close()
        self.router.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    path = Path(tempfile.mkdtemp(prefix="w2g-"))
    made = Wire(path)
    yield made
    made.close()
    shutil.rmtree(path)


def closed(own: socket.socket) -> bool:
    """Whether the other end has closed it, after whatever it had sent."""
    with contextlib.suppress(ConnectionError):
        while own.recv(65536):
            pass
    return True


def test_a_socket_of_zeromq_and_the_supervisor_understand_each_other(wire: Wire) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    try:
        dealer.setsockopt(zmq.IDENTITY, A)
        dealer.connect(wire.endpoint)
        large = Finished("t", "l", Succeeded((), data={"text": "y" * 3_000_000}))
        for message in (Beat(), large, Beat()):
            dealer.send(encode(message))
        heard: Heard = []
        eventually("all has come", lambda: heard.extend(wire.hear()) or len(heard) == 3)
        assert [said for _, said in heard] == [Beat(), large, Beat()]
        wire.router.send(A, Run("t", "x", 1, "l", "z" * 3_000_000, "/w"))
        wire.router.send(A, Unload())
        eventually("it has arrived", lambda: wire.hear() or dealer.poll(10))
        assert len(dealer.recv()) > 3_000_000
        eventually("the next too", lambda: wire.hear() or dealer.poll(10))
        assert b"unload" in dealer.recv()
    finally:
        dealer.close(linger=0)
        context.term()


def test_a_stranger_is_closed_before_it_can_say_anything(wire: Wire) -> None:
    wire.ours = False
    own = wire.join()
    assert wire.hear() == [] and closed(own)
    assert wire.router.turned_away == {"stranger": 1}


def test_a_name_that_is_another_childs_ends_whoever_took_it(wire: Wire) -> None:
    own = wire.join(B)
    own.sendall(frame(encode(Beat())))
    assert [(who, str(said)) for who, said in wire.hear()] == [(A, "a connection under another's name")]
    assert closed(own)


def test_a_second_connection_is_turned_away_and_the_first_goes_on(wire: Wire) -> None:
    first = wire.join()
    assert wire.hear() == []
    second = wire.join()
    assert wire.hear() == [] and closed(second)
    first.sendall(frame(encode(Beat())))
    assert wire.hear() == [(A, Beat())]


def test_a_connection_that_is_replaced_after_its_end_is_heard(wire: Wire) -> None:
    first = wire.join()
    first.sendall(frame(encode(Beat())))
    first.close()
    assert wire.hear() == [(A, Beat())]
    again = wire.join()
    again.sendall(frame(encode(Beat())))
    assert wire.hear() == [(A, Beat())]


def test_last_words_before_a_death_are_all_heard(wire: Wire) -> None:
    own = wire.join()
    own.sendall(frame(encode(Beat())) * 1000)
    own.close()
    assert wire.hear() == [(A, Beat())] * 1000


def test_last_words_are_heard_of_one_that_had_said_too_much_before_its_death(wire: Wire) -> None:
    own = wire.join()
    for _ in range(8):
        own.sendall(frame(encode(Beat())) * (int(MESSAGES.burst) // 8))
        wire.hear()
    own.sendall(frame(encode(Beat())) * 1000)
    assert wire.hear() == [(A, Beat())]
    last = Finished("t", "l", Succeeded(()))
    own.sendall(frame(encode(last)))
    own.close()
    wire.router.hear_out(A)
    assert wire.hear() == [(A, Beat())] * 999 + [(A, last)]


def test_connection_after_connection_ends_the_child_and_costs_no_descriptor(wire: Wire) -> None:
    before = len(os.listdir("/proc/self/fd"))
    errors: list[str] = []
    for _ in range(2 * (CONNECTIONS_MAX + REFUSALS_MAX)):
        own = connect(wire.endpoint)
        errors += wire.errors()
        own.close()
        errors += wire.errors()
    held = [wire.connect() for _ in range(CONNECTIONS_MAX + REFUSALS_MAX + 10)]
    errors += wire.errors()
    assert errors == ["it opens connection after connection"]
    assert len(os.listdir("/proc/self/fd")) - before - len(held) <= CONNECTIONS_MAX


def test_a_supervisor_without_descriptors_turns_connections_away_and_goes_on(wire: Wire) -> None:
    own = wire.join()
    wire.hear()
    waiting = wire.connect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        own.sendall(frame(encode(Beat())))
        assert wire.hear() == [(A, Beat())]
        assert wire.router.turned_away["no descriptor"] == 1
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert closed(waiting)


def test_a_handshake_that_never_ends_is_not_waited_for(wire: Wire) -> None:
    own = wire.connect()
    own.sendall(GREETING[:30])
    assert wire.hear() == []
    due = wire.router.due_s()
    assert due is not None and due <= HANDSHAKE_S
    wire.now += HANDSHAKE_S + 1
    assert list(wire.router.receive()) == [] and closed(own)
    assert wire.router.turned_away == {"no handshake": 1}


WRONG = {
    "not zmtp": b"GET / HTTP/1.1\r\n\r\n",
    "another mechanism": GREETING.replace(b"NULL", b"PLAIN"),
    "an old version": GREETING[:10] + b"\x01" + GREETING[11:],
    "no ready": GREETING + frame(b"hello"),
    "another socket": GREETING + ready(A, b"PUB"),
    "a cut property": GREETING + frame(b"\x05READY\x08Identity\xff\xff\xff\xff", COMMAND),
    "a long handshake": GREETING + frame(b"\x05READY" + bytes(5000), COMMAND),
    "parts": GREETING + ready(A) + frame(b"xx", MORE),
    "a command": GREETING + ready(A) + frame(b"\x04PING", COMMAND),
    "reserved bits": GREETING + ready(A) + b"\x80\x01x",
    "a frame without end": GREETING + ready(A) + b"\x02" + b"\xff" * 8,
    "a frame too long": GREETING + ready(A) + b"\x02" + (9 << 20).to_bytes(8, "big"),
    "no message": GREETING + ready(A) + frame(b'{"type":"nothing"}'),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_message_ends_whoever_sent_it_and_raises_nothing(wire: Wire, what: str) -> None:
    own = wire.connect()
    own.sendall(WRONG[what])
    ((who, said),) = wire.hear()
    assert who == A and isinstance(said, ProtocolError)
    own.close()
    assert wire.hear() == []


def test_a_flood_is_taken_at_its_rate_and_the_rest_stays_with_its_sender(wire: Wire) -> None:
    own = wire.join()
    own.setblocking(False)
    beats = frame(encode(Beat())) * 1000

    def flood() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                own.send(beats)

    heard = 0
    for _ in range(10):
        flood()
        heard += len(wire.hear())
    assert MESSAGES.burst <= heard <= MESSAGES.burst + 1
    due = wire.router.due_s()
    assert due is not None and due > 0
    wire.now += 1
    assert MESSAGES.per_s - 1 <= len([*wire.router.receive(), *wire.hear()]) <= MESSAGES.per_s + 1


def test_a_pause_gives_the_burst_back(wire: Wire) -> None:
    own = wire.join()
    for _ in range(1 + int(MESSAGES.flood / MESSAGES.burst)):
        wire.now += MESSAGES.burst / MESSAGES.per_s + 1
        for _ in range(4):
            own.sendall(frame(encode(Beat())) * (int(MESSAGES.burst) // 4 - 1))
            assert wire.errors() == []


def test_a_flood_without_a_pause_ends_the_child(wire: Wire) -> None:
    own = wire.join()
    own.setblocking(False)
    beats = pending = frame(encode(Beat())) * 1000
    errors: list[str] = []
    while not errors and wire.now < 60:
        try:
            pending = pending[own.send(pending) :] or beats
        except BlockingIOError:
            errors += wire.errors()
            wire.now += wire.router.due_s() or 0.0
    assert errors == ["it floods the supervisor with messages"]
    assert wire.now >= (MESSAGES.flood - MESSAGES.burst) / MESSAGES.per_s - 1
    assert closed(own) and wire.errors() == []


def bulky(kind: str, body: bytes) -> bytes:
    """A frame's payload that takes seconds to decode."""
    return b'{"type":"%s","task_id":"t","lease_id":"l",%s}' % (kind.encode(), body)


def failed(detail: bytes) -> bytes:
    return b'"outcome":{"type":"failed","code":"x","message":"m","detail":{"a":%s}}' % detail


NESTED = b"[" + (b"[" * 150 + b"]" * 150 + b",") * 10_000 + b"0]"
FLAT = b"[" + b"{}," * 500_000 + b"0]"


@pytest.mark.parametrize(
    "payload",
    [
        bulky("finished", failed(NESTED)),
        bulky("finished", failed(FLAT)),
        bulky("fetched", b'"files":{"x":"%s"}' % (b"y" * 2_000_000)),
        b'{"task_id":"t",' + bulky("finished", failed(FLAT))[1:],
    ],
    ids=["nested", "flat", "a courier's", "whose type comes late"],
)
def test_what_would_take_seconds_to_decode_is_refused_unread(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, payload: bytes
) -> None:
    read: list[int] = []
    monkeypatch.setattr("wan2gp.supervisor.bounds.decode_up", lambda data: read.append(len(data)))
    assert isinstance(bounds.understood(payload), ProtocolError) and read == []
    own = wire.join()
    own.setblocking(False)
    pending, heard = frame(payload), wire.hear()
    while pending:
        with contextlib.suppress(BlockingIOError):
            pending = pending[own.send(pending) :]
        heard += wire.hear()
    assert [(who, isinstance(said, ProtocolError)) for who, said in heard] == [(A, True)] and read == []


def test_talk_that_is_too_long_is_dropped_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("wan2gp.supervisor.bounds.decode_up")
    assert isinstance(bounds.understood(b'{"type":"event","name":"x","fields":{"a":%s}}' % FLAT), bounds.Dropped)


def test_an_outcome_that_the_supervisor_would_not_read_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="objects and lists"):
        encode(Finished("t", "l", Succeeded((), data={"text": "[" * (MAX_CONTAINERS + 1)})))
    run = Run("t", "x", 1, "l", {"text": "[" * (MAX_CONTAINERS + 1)}, "/w")
    assert decode_down(encode(run)) == run, "a text in a row costs nothing to decode"


def test_one_whose_messages_cost_much_time_is_paused_for_it_and_ended_in_the_end(wire: Wire) -> None:
    own = wire.join()
    own.setblocking(False)
    wire.hear()
    wire.effort_s = 1.0
    said = 0
    errors: list[str] = []
    while not errors and said < 100:
        own.send(frame(encode(Beat())))
        heard = wire.hear()
        said += len(heard)
        errors = [str(each) for _, each in heard if isinstance(each, ProtocolError)]
        wire.now += wire.router.due_s() or 0.0
    assert errors == ["it floods the supervisor with messages"]
    assert EFFORT.flood / wire.effort_s <= said <= EFFORT.flood / wire.effort_s + 2


def test_the_time_that_the_supervisor_works_for_one_is_no_pause_of_its_own() -> None:
    """Eight MiB that take it four seconds each: by the clock alone that would be no flood at all."""
    slow, now = Allowance(BYTES, 0.0), 0.0
    for _ in range(int(BYTES.flood / (8 << 20)) + 1):
        slow.spend(8 << 20, now)
        now += 4
        slow.pass_over(now)
    assert slow.flooding
    waited = Allowance(BYTES, 0.0)
    for _ in range(100):
        waited.spend(8 << 20, now)
        now += 4
    assert not waited.flooding


@pytest.mark.long
def test_few_large_messages_are_a_flood_too(wire: Wire) -> None:
    own = wire.join()
    own.setblocking(False)
    large = pending = frame(encode(Event("x", {"text": "y" * 4_000_000})))
    heard = 0
    while not wire.router.due_s():
        try:
            pending = pending[own.send(pending) :] or large
        except BlockingIOError:
            heard += len(wire.hear())
    assert BYTES.burst / len(large) - 1 <= heard <= BYTES.burst / len(large) + 1


def test_a_child_that_never_reads_is_found_out_before_it_costs_much(wire: Wire) -> None:
    wire.join()
    wire.hear()
    run = Run("t", "x", 1, "l", "z" * 4_000_000, "/w")
    with pytest.raises(Unreachable, match="cannot reach a#1: it does not read"):
        for _ in range(20):
            wire.router.send(A, run)


def test_a_chatty_child_that_is_not_read_hears_that_it_is_to_stop(wire: Wire) -> None:
    """All that it has said comes afterwards, in order."""
    link, many = Link(wire.endpoint, A.decode(), beat_s=1000), 30_000
    link.start()
    heard: Heard = []
    eventually("it is there", lambda: heard.extend(wire.hear()) or heard)
    for step in range(many):
        link.send(Progress("t", "l", step=step))
    wire.router.send(A, Cancel("t", "l"))
    eventually("it has heard", lambda: link.cancelled("t", "l"))

    def all_come() -> bool:
        wire.now += wire.router.due_s() or 0.0
        heard.extend(wire.hear())
        return len(heard) > many

    eventually("all has come", all_come)
    assert [said.step for _, said in heard if isinstance(said, Progress)] == list(range(many))
    link.close()


def test_one_that_is_not_there_or_over_cannot_be_reached(wire: Wire) -> None:
    with pytest.raises(Unreachable, match="not connected"):
        wire.router.send(B, Unload())
    own = wire.join()
    wire.hear()
    wire.router.expel(A)
    assert closed(own)
    with pytest.raises(Unreachable, match="not connected"):
        wire.router.send(A, Unload())
    again = wire.join()
    assert wire.hear() == [] and closed(again)
