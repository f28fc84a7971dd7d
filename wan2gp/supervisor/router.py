"""The supervisor's end of the wire: it knows its peers by the kernel's word, drops strangers and never blocks.

Everything that a peer may do here has a limit: connections, handshakes, bytes and messages a second, what waits to be
sent to it. Whoever goes beyond is not read for a while, so that what it sends piles up on its own side; whoever goes on
like that is reported as a :class:`~wan2gp.protocol.ProtocolError`, for which the loop ends it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from wan2gp.protocol import Down, ProtocolError, Up, encode
from wan2gp.supervisor.allowance import Allowance, Rate
from wan2gp.supervisor.bounds import understood
from wan2gp.supervisor.connection import Connection, peer_pid
from wan2gp.supervisor.zmtp import Violation, frame

BURST = 256
"""Messages taken from one peer in one go, so that a chatty child cannot keep the loop from its other duties."""
BACKLOG = 64
ACCEPTS = 16
"""Connections taken in one go."""
CONNECTIONS_MAX = 3
"""Of one peer at a time. One is enough; it may be replaced before its end is seen."""
REFUSALS_MAX = 32
"""So many connections of one peer may be turned away before it counts as flooding."""
SECRET_MIN = 8
"""Shorter ones are no tokens, and may be part of any word."""
HANDSHAKE_S = 10.0
PAUSE_S = 0.1
"""Shortest pause of one that has said too much: the loop is not to be woken for each message more, seconds."""
MESSAGES = Rate(per_s=2000, burst=4000, flood=40_000)
BYTES = Rate(per_s=8 << 20, burst=32 << 20, flood=256 << 20)
"""A task's outcome, with all its texts, may be 8 MiB."""
_SHORT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Heard = tuple[bytes, "Up | ProtocolError"]


class Unreachable(Exception):
    """The peer is not connected, or does not read: its death will be seen elsewhere."""


@dataclass
class _Peer:
    """A child that may be heard. ``owns``: whether a process is the child's, or below it."""

    identity: bytes
    owns: Callable[[int], bool]
    secrets: tuple[bytes, ...]
    """What it knows and must not tell, as it stands in JSON."""
    messages: Allowance
    bytes: Allowance
    connection: Connection | None = None
    """The one that it speaks by."""
    held: list[Connection] = field(default_factory=list)
    """All of them."""
    refused: int = 0
    reported: bool = False
    """It is to be ended, and nothing that it says counts any more."""

    def pause_s(self, now: float) -> float:
        return max(self.messages.pause_s(now), self.bytes.pause_s(now))

    def pay(self, size: int, now: float) -> None:
        self.messages.spend(1, now)
        self.bytes.spend(size, now)

    @property
    def offence(self) -> str | None:
        """Why it must be ended, if so."""
        if self.messages.flooding or self.bytes.flooding:
            return "it floods the supervisor with messages"
        return "it opens connection after connection" if self.refused > REFUSALS_MAX else None


class Router:
    """One listening socket and its connections. Only peers that were :meth:`admit`-ted are heard."""

    def __init__(self, endpoint: str, clock: Callable[[], float] = time.monotonic) -> None:
        """``endpoint``: ``ipc://`` and an absolute path of at most 107 bytes. Raises :class:`OSError`."""
        self.endpoint = endpoint
        self._path = Path(endpoint.removeprefix("ipc://"))
        self._clock = clock
        self._path.unlink(missing_ok=True)  # of an earlier life: the data directory's lock is ours
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(str(self._path))
        self._path.chmod(0o600)
        self._listener.listen(BACKLOG)
        self._spare = _spare()
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._peers: dict[bytes, _Peer] = {}
        self._owners: dict[int, tuple[_Peer, Connection]] = {}
        """By descriptor: every connection, and whose it is."""
        self._unread: dict[int, None] = {}
        """Descriptors of those that may have whole messages in memory yet."""
        self._paused: dict[int, float] = {}
        """Of those that have said too much, and are not waited for: until when, by descriptor."""
        self.turned_away: Counter[str] = Counter()
        """Connections that were closed, by reason."""

    @property
    def descriptor(self) -> int:
        """Readable when there is something to do here; for a poller."""
        return self._epoll.fileno()

    def open_to(self, group: int) -> None:
        """Let this group's members connect too: handlers that have a user of their own. Raises :class:`OSError`."""
        os.chown(self._path, -1, group)
        self._path.chmod(0o660)

    def admit(self, identity: bytes, owns: Callable[[int], bool], secrets: Iterable[str] = ()) -> None:
        """Hear this peer from now on. ``owns(pid)`` tells whether a process that connects is one of its own; what it
        says has ``***`` in place of ``secrets``, which may have got into an error's text."""
        now = self._clock()
        known = tuple(msgspec.json.encode(each)[1:-1] for each in secrets if len(each) >= SECRET_MIN)
        self._peers[identity] = _Peer(identity, owns, known, Allowance(MESSAGES, now), Allowance(BYTES, now))

    def expel(self, identity: bytes) -> None:
        """Its incarnation is over: whatever it still says is dropped."""
        peer = self._peers.pop(identity, None)
        for connection in [] if peer is None else list(peer.held):
            self._drop(connection)

    def send(self, identity: bytes, message: Down) -> None:
        """Send without waiting. Raises :class:`Unreachable`, or :class:`ProtocolError` for what is too large."""
        data = frame(encode(message))
        peer = self._peers.get(identity)
        if peer is None or peer.connection is None:
            raise Unreachable(f"cannot reach {_name(identity)}: it is not connected")
        if not peer.connection.queue(data):
            raise Unreachable(f"cannot reach {_name(identity)}: it does not read")
        self._wait_for(peer.connection)

    def receive(self) -> Iterator[Heard]:
        """What has arrived, at most a burst from each peer; what is no message comes as the error it is."""
        now = self._clock()
        ready = dict(self._epoll.poll(0))
        if ready.pop(self._listener.fileno(), 0):
            yield from self._accept(now)
        self._resume(now)
        for descriptor in [*ready, *(each for each in self._unread if each not in ready)]:
            known = self._owners.get(descriptor)  # an answer to a message may have dropped it
            if known is not None:
                yield from self._serve(*known, ready.get(descriptor, 0), now)
        yield from self._hurry(now)

    def wait(self, timeout_ms: int) -> bool:
        """Whether something has come within the time."""
        return self.due_s() == 0.0 or bool(self._epoll.poll(timeout_ms / 1000, 1))

    def due_s(self) -> float | None:
        """After how many seconds :meth:`receive` has something to do, whatever the descriptor says; None: not known."""
        if self._unread:
            return 0.0
        now = self._clock()
        pauses = [until - now for until in self._paused.values()]
        shaking = [each.opened_at + HANDSHAKE_S - now for each in self._unknown()]
        return max(0.0, min([*pauses, *shaking])) if pauses or shaking else None

    def close(self) -> None:
        """Unbind and close."""
        for _, connection in list(self._owners.values()):
            self._drop(connection)
        self._epoll.close()
        self._listener.close()
        os.close(self._spare)
        self._path.unlink(missing_ok=True)

    # -- connections -------------------------------------------------------------------------------------------------

    def _accept(self, now: float) -> Iterator[Heard]:
        for _ in range(ACCEPTS):
            try:
                own, _ = self._listener.accept()
            except OSError as error:
                if error.errno in _SHORT_OF_DESCRIPTORS:
                    self._turn_one_away()
                return
            yield from self._judge(Connection(own, now), peer_pid(own))

    def _judge(self, connection: Connection, pid: int) -> Iterator[Heard]:
        peer = next((each for each in self._peers.values() if each.owns(pid)), None)
        if peer is None:
            self.turned_away["stranger"] += 1
            connection.close()
        elif peer.reported or len(peer.held) >= CONNECTIONS_MAX:
            connection.close()
            yield from self._refuse(peer, "too many")
        else:
            peer.held.append(connection)
            self._owners[connection.fileno()] = peer, connection
            self._epoll.register(connection, connection.wishes)
            connection.flush()

    def _turn_one_away(self) -> None:
        """There is no descriptor for a connection: one is kept back, to take it and close it."""
        os.close(self._spare)
        with contextlib.suppress(OSError):
            own, _ = self._listener.accept()
            own.close()
        self.turned_away["no descriptor"] += 1
        self._spare = _spare()

    def _refuse(self, peer: _Peer, why: str) -> Iterator[Heard]:
        self.turned_away[why] += 1
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

    def _hurry(self, now: float) -> Iterator[Heard]:
        """A handshake that takes for ever only costs a descriptor: it is not waited for."""
        for connection in self._unknown():
            if not connection.closed and now - connection.opened_at > HANDSHAKE_S:
                peer, _ = self._owners[connection.fileno()]
                self._drop(connection)
                yield from self._refuse(peer, "no handshake")

    def _unknown(self) -> list[Connection]:
        return [connection for _, connection in self._owners.values() if connection.session.identity is None]

    def _drop(self, connection: Connection) -> None:
        descriptor = connection.fileno()
        peer, _ = self._owners.pop(descriptor)
        if descriptor not in self._paused:
            self._epoll.unregister(descriptor)
        self._unread.pop(descriptor, None)
        self._paused.pop(descriptor, None)
        peer.held.remove(connection)
        if peer.connection is connection:
            peer.connection = None
        connection.close()

    def _wait_for(self, connection: Connection) -> None:
        if not connection.closed and connection.fileno() not in self._paused:
            self._epoll.modify(connection, connection.wishes)

    # -- what they say -----------------------------------------------------------------------------------------------

    def _serve(self, peer: _Peer, connection: Connection, events: int, now: float) -> Iterator[Heard]:
        descriptor = connection.fileno()
        if events & select.EPOLLOUT:
            connection.flush()
        if events & ~select.EPOLLOUT and descriptor not in self._unread:
            connection.read()
        try:
            if connection.session.identity is None:
                yield from self._shake(peer, connection)
            if connection.session.identity is not None and not connection.closed:
                yield from self._messages(peer, connection, now)
        except Violation as violation:
            yield from self._report(peer, str(violation))
        if connection.closed:
            return
        if connection.ended and descriptor not in self._unread and descriptor not in self._paused:
            self._drop(connection)
            if connection.session.identity is None:
                yield from self._refuse(peer, "no handshake")
        else:
            self._wait_for(connection)

    def _shake(self, peer: _Peer, connection: Connection) -> Iterator[Heard]:
        done = connection.session.shake()
        connection.flush()
        if not done:
            return
        if connection.session.identity != peer.identity:
            raise Violation("a connection under another's name")
        if peer.connection is not None and not peer.connection.ended:
            self._drop(connection)
            yield from self._refuse(peer, "second")
        else:
            peer.connection = connection

    def _messages(self, peer: _Peer, connection: Connection, now: float) -> Iterator[Heard]:
        descriptor = connection.fileno()
        self._unread.pop(descriptor, None)
        for _ in range(BURST):
            if peer.pause_s(now) > 0:
                self._pause(connection, now + max(PAUSE_S, peer.pause_s(now)))
                return
            payload = connection.session.take()
            if payload is None:
                return
            peer.pay(len(payload), now)
            if peer.offence is not None:
                yield from self._report(peer, peer.offence)
                return
            for secret in peer.secrets:
                payload = payload.replace(secret, b"***")
            yield peer.identity, understood(payload)
            if connection.closed:
                return
        self._unread[descriptor] = None

    def _pause(self, connection: Connection, until: float) -> None:
        self._epoll.unregister(connection)
        self._paused[connection.fileno()] = until

    def _resume(self, now: float) -> None:
        for descriptor, until in list(self._paused.items()):
            _, connection = self._owners[descriptor]
            if until <= now:
                del self._paused[descriptor]
                self._epoll.register(connection, connection.wishes)
                self._unread[descriptor] = None


def _spare() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _name(identity: bytes) -> str:
    """Without the nonce, which is its password."""
    return identity.rpartition(b"#")[0].decode(errors="replace")
