"""The supervisor's end of the wire: it knows its peers by the kernel's word, drops strangers and never blocks.

Everything that a peer may do here has a limit: connections, handshakes, bytes and messages a second, what waits to be
sent to it. Whoever goes beyond is not read for a while, so that what it sends piles up on its own side; whoever goes on
like that is reported as a :class:`~wan2gp.protocol.ProtocolError`, for which the loop ends it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from wan2gp.protocol import MAX_MESSAGE_BYTES, Down, ProtocolError, Up, encode
from wan2gp.supervisor.allowance import Allowance, Rate
from wan2gp.supervisor.bounds import understood
from wan2gp.supervisor.connection import Connection
from wan2gp.supervisor.connections import Connections
from wan2gp.supervisor.kin import FAR_EVERY_S, Kin
from wan2gp.supervisor.zmtp import Session, Violation, frame

BURST = 256
"""Messages taken from one peer in one go, so that a chatty child cannot keep the loop from its other duties."""
QUEUE_BYTES = 2 * MAX_MESSAGE_BYTES
"""How much may wait for a child that does not read, bytes."""
CONNECTIONS_MAX = 3
"""Of one peer at a time. One is enough; it may be replaced before its end is seen."""
REFUSALS_MAX = 32
"""So many connections of one peer may be turned away before it counts as flooding."""
SECRET_MIN = 8
"""Shorter ones are no tokens, and may be part of any word."""
PAUSE_S = 0.1
"""Shortest pause of one that has said too much: the loop is not to be woken for each message more, seconds."""
MESSAGES = Rate(per_s=2000, burst=4000, flood=40_000)
BYTES = Rate(per_s=8 << 20, burst=32 << 20, flood=256 << 20)
"""A task's outcome, with all its texts, may be 8 MiB."""
STRANGERS = Rate(per_s=20, burst=200, flood=math.inf)
"""Connections of processes that are no child's; beyond it the next ones wait, a child's among them."""
EFFORT = Rate(per_s=0.2, burst=2.0, flood=10.0)
"""What it costs this thread to understand a peer, processor seconds: whatever makes its messages costly."""

Heard = tuple[bytes, "Up | ProtocolError"]


class Unreachable(Exception):
    """The peer is not connected, or does not read: its death will be seen elsewhere."""


@dataclass
class _Peer:
    """A child that may be heard. ``owns``: whether a process is the child's, or below it."""

    identity: bytes
    owns: Callable[[Kin], bool]
    secrets: tuple[bytes, ...]
    """What it knows and must not tell, as it stands in JSON."""
    messages: Allowance
    bytes: Allowance
    effort: Allowance
    connection: Connection | None = None
    """The one that it speaks by."""
    held: list[Connection] = field(default_factory=list)
    """All of them."""
    refused: int = 0
    dead: bool = False
    """It has ended: what is still to come of it is no more than its socket holds."""
    reported: bool = False
    """It is to be ended, and nothing that it says counts any more."""

    def pause_s(self, now: float) -> float:
        return 0.0 if self.dead else max(each.pause_s(now) for each in self._allowances)

    def pay(self, size: int, now: float) -> None:
        self.messages.spend(1, now)
        self.bytes.spend(size, now)

    def pay_effort(self, seconds: float, now: float, after: float) -> None:
        """``now`` and ``after``: when it began, and when it was done."""
        self.effort.spend(seconds, now)
        for each in self._allowances:
            each.pass_over(after)

    @property
    def _allowances(self) -> tuple[Allowance, ...]:
        return self.messages, self.bytes, self.effort

    @property
    def offence(self) -> str | None:
        """Why it must be ended, if so."""
        if not self.dead and any(each.flooding for each in self._allowances):
            return "it floods the supervisor with messages"
        return "it opens connection after connection" if self.refused > REFUSALS_MAX else None


class Router:
    """One listening socket and its connections. Only peers that were :meth:`admit`-ted are heard."""

    def __init__(
        self,
        endpoint: str,
        clock: Callable[[], float] = time.monotonic,
        worked: Callable[[], float] = time.thread_time,
    ) -> None:
        """``endpoint``: ``ipc://`` and an absolute path of at most 107 bytes. ``worked``: the processor seconds of this
        thread so far. Raises :class:`OSError`."""
        self.endpoint = endpoint
        self._clock = clock
        self._worked = worked
        self._connections = Connections(endpoint, lambda: Session(MAX_MESSAGE_BYTES), QUEUE_BYTES, clock)
        self._strangers = Allowance(STRANGERS, clock())
        self._far_at = -math.inf
        self._peers: dict[bytes, _Peer] = {}
        self._owners: dict[Connection, _Peer] = {}

    @property
    def descriptor(self) -> int:
        """Readable when there is something to do here; for a poller."""
        return self._connections.descriptor

    @property
    def turned_away(self) -> Mapping[str, int]:
        """Connections that were closed, by reason."""
        return self._connections.turned_away

    def open_to(self, group: int) -> None:
        """Let this group's members connect too: handlers that have a user of their own. Raises :class:`OSError`."""
        self._connections.listener.open_to(group)

    def admit(self, identity: bytes, owns: Callable[[Kin], bool], secrets: Iterable[str] = ()) -> None:
        """Hear this peer from now on. ``owns(kin)`` tells whether a process that connects is one of its own; what it
        says has ``***`` in place of ``secrets``, which may have got into an error's text."""
        now = self._clock()
        known = tuple(msgspec.json.encode(each)[1:-1] for each in secrets if len(each) >= SECRET_MIN)
        messages, size, effort = (Allowance(rate, now) for rate in (MESSAGES, BYTES, EFFORT))
        self._peers[identity] = _Peer(identity, owns, known, messages, size, effort)

    def expel(self, identity: bytes) -> None:
        """Its incarnation is over: whatever it still says is dropped."""
        peer = self._peers.pop(identity, None)
        for connection in [] if peer is None else list(peer.held):
            self._drop(connection)

    def hear_out(self, identity: bytes) -> None:
        """It has ended: its last words are heard at once, though it has said too much."""
        peer = self._peers.get(identity)
        if peer is not None:
            peer.dead = True
            for connection in peer.held:
                self._connections.hasten(connection)

    def send(self, identity: bytes, message: Down) -> None:
        """Send without waiting. Raises :class:`Unreachable`, or :class:`ProtocolError` for what is too large."""
        data = frame(encode(message))
        peer = self._peers.get(identity)
        if peer is None or peer.connection is None:
            raise Unreachable(f"cannot reach {_name(identity)}: it is not connected")
        if not peer.connection.queue(data):
            raise Unreachable(f"cannot reach {_name(identity)}: it does not read")
        self._connections.settle(peer.connection)

    def receive(self) -> Iterator[Heard]:
        """What has arrived, at most a burst from each peer; what is no message comes as the error it is."""
        now = self._clock()
        for connection, pid in self._connections.arrivals():
            yield from self._judge(connection, pid)
        for connection in self._connections.turns():
            yield from self._serve(self._owners[connection], connection, now)
        for connection in self._connections.late():
            yield from self._refuse(self._forget(connection))

    def wait(self, timeout_ms: int) -> bool:
        """Whether something has come within the time."""
        return self._connections.wait(timeout_ms)

    def due_s(self) -> float | None:
        """After how many seconds :meth:`receive` has something to do, whatever the descriptor says; None: not known."""
        return self._connections.due_s()

    def close(self) -> None:
        """Unbind and close."""
        self._connections.close()

    # -- connections -------------------------------------------------------------------------------------------------

    def _judge(self, connection: Connection, pid: int) -> Iterator[Heard]:
        try:
            kin = Kin(pid)
            peer = self._owner(kin)
            culprit = self._note_stranger(kin) if peer is None else None
        except OSError:  # /proc cannot be read: it may try again
            self._connections.count("no descriptor")
            connection.close()
            return
        if peer is None:
            self._connections.count("stranger")
            connection.close()
            if culprit is not None:
                yield from self._report(culprit, "it opens connection after connection")
        elif peer.reported or len(peer.held) >= CONNECTIONS_MAX:
            connection.close()
            self._connections.count("too many")
            yield from self._refuse(peer)
        elif self._connections.add(connection):
            peer.held.append(connection)
            self._owners[connection] = peer

    def _owner(self, kin: Kin) -> _Peer | None:
        return next((each for each in self._peers.values() if each.owns(kin)), None)

    def _note_stranger(self, kin: Kin) -> _Peer | None:
        """Whoever must be blamed for too many of them, if it can be found: to judge each costs this thread time."""
        now = self._clock()
        self._strangers.spend(1, now)
        pause = self._strangers.pause_s(now)
        if pause == 0:
            return None
        self._connections.hold(now + max(PAUSE_S, pause))
        if not kin.deep or now < self._far_at:
            return None
        self._far_at = now + FAR_EVERY_S
        kin.look_far()
        return self._owner(kin)

    def _refuse(self, peer: _Peer) -> Iterator[Heard]:
        peer.refused += 1
        yield from self._report(peer, peer.offence)

    def _report(self, peer: _Peer, offence: str | None) -> Iterator[Heard]:
        """Say once that it must be ended, and hear it no more."""
        if offence is None or peer.reported:
            return
        peer.reported = True
        for connection in list(peer.held):
            self._drop(connection)
        yield peer.identity, ProtocolError(offence)

    def _drop(self, connection: Connection) -> None:
        self._connections.drop(connection)
        self._forget(connection)

    def _turn_away(self, connection: Connection, why: str) -> Iterator[Heard]:
        self._connections.drop(connection)
        self._connections.count(why)
        yield from self._refuse(self._forget(connection))

    def _forget(self, connection: Connection) -> _Peer:
        """Of a connection that is closed, whose it was."""
        peer = self._owners.pop(connection)
        peer.held.remove(connection)
        if peer.connection is connection:
            peer.connection = None
        return peer

    # -- what they say -----------------------------------------------------------------------------------------------

    def _serve(self, peer: _Peer, connection: Connection, now: float) -> Iterator[Heard]:
        try:
            if connection.session.identity is None:
                yield from self._shake(peer, connection)
            if connection.session.identity is not None and not connection.closed:
                yield from self._messages(peer, connection, now)
        except Violation as violation:
            yield from self._report(peer, str(violation))
        if connection.closed:
            return
        if not self._connections.over(connection):
            self._connections.settle(connection)
        elif connection.session.identity is None:
            yield from self._turn_away(connection, "no handshake")
        else:
            self._drop(connection)

    def _shake(self, peer: _Peer, connection: Connection) -> Iterator[Heard]:
        done = connection.session.shake()
        connection.flush()
        if not done:
            return
        if connection.session.identity != peer.identity:
            raise Violation("a connection under another's name")
        if peer.connection is not None and not peer.connection.ended:
            yield from self._turn_away(connection, "second")
        else:
            peer.connection = connection

    def _messages(self, peer: _Peer, connection: Connection, now: float) -> Iterator[Heard]:
        for _ in range(BURST):
            if peer.pause_s(now) > 0:
                self._connections.pause(connection, now + max(PAUSE_S, peer.pause_s(now)))
                return
            frames = connection.session.take()
            if frames is None:
                return
            (payload,) = frames
            peer.pay(len(payload), now)
            if peer.offence is not None:
                yield from self._report(peer, peer.offence)
                return
            yield peer.identity, self._understood(peer, payload)
            if connection.closed:
                return
        self._connections.unread(connection)

    def _understood(self, peer: _Peer, payload: bytes) -> Up | ProtocolError:
        """What it costs is the peer's to pay."""
        began_at, began = self._clock(), self._worked()
        for secret in peer.secrets:
            payload = payload.replace(secret, b"***")
        message = understood(payload)
        peer.pay_effort(self._worked() - began, began_at, self._clock())
        return message


def _name(identity: bytes) -> str:
    """Without the nonce, which is its password."""
    return identity.rpartition(b"#")[0].decode(errors="replace")
