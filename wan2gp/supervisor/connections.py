"""All connections to one socket of the supervisor: whose turn it is, who is not read for a while, who was sent away."""

from __future__ import annotations

import math
import select
import time
from collections import Counter
from collections.abc import Callable, Iterator

from wan2gp.supervisor.connection import Connection, peer_pid
from wan2gp.supervisor.listener import Listener
from wan2gp.supervisor.zmtp import Session

HANDSHAKE_S = 10.0
"""One that takes for ever only costs a descriptor: it is not waited for longer, seconds."""


class Connections:
    """A listening socket and what has connected to it. Never blocks, and is not for several threads at once."""

    def __init__(
        self,
        endpoint: str,
        session: Callable[[], Session],
        queue_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``queue_bytes``: how much may wait for a peer that does not read. Raises :class:`OSError`."""
        self.listener = Listener(endpoint)
        self._session = session
        self._queue_bytes = queue_bytes
        self._clock = clock
        self._epoll = select.epoll()
        self._epoll.register(self.listener, select.EPOLLIN)
        self._open: dict[int, Connection] = {}
        """By descriptor."""
        self._unread: dict[int, None] = {}
        """Descriptors of those that may have whole messages in memory yet."""
        self._paused: dict[int, float] = {}
        """Of those that have said too much, and are not waited for: until when, by descriptor."""
        self._held_until: float | None = None
        """Till then nobody is let in."""
        self._events: dict[int, int] = {}
        self._turned_away: Counter[str] = Counter()

    @property
    def descriptor(self) -> int:
        """Readable when there is something to do here; for a poller."""
        return self._epoll.fileno()

    @property
    def turned_away(self) -> dict[str, int]:
        """Connections that were closed, by reason."""
        lacked = Counter({"no descriptor": self.listener.lacked} if self.listener.lacked else {})
        return dict(self._turned_away + lacked)

    def count(self, why: str) -> None:
        """One was closed."""
        self._turned_away[why] += 1

    def wait(self, timeout_ms: int) -> bool:
        """Whether something has come within the time."""
        return self.due_s() == 0.0 or bool(self._epoll.poll(timeout_ms / 1000, 1))

    def due_s(self) -> float | None:
        """After how many seconds there is something to do, whatever the descriptor says; None: not known."""
        if self._unread:
            return 0.0
        now = self._clock()
        held = [] if self._held_until is None else [self._held_until]
        times = [*held, *self._paused.values(), *(each.opened_at + HANDSHAKE_S for each in self._shaking())]
        return max(0.0, min(times) - now) if times else None

    def arrivals(self) -> Iterator[tuple[Connection, int]]:
        """Who has come, with its process id: each is to be added, or closed. Begins a turn; :meth:`turns` ends it."""
        self._open_again()
        self._events = dict(self._epoll.poll(0))
        if self._events.pop(self.listener.fileno(), 0):
            now = self._clock()
            for own in self.listener.accept():
                yield Connection(own, self._session(), self._queue_bytes, now), peer_pid(own)

    def turns(self) -> Iterator[Connection]:
        """Everybody with something to take or to send, read once; :meth:`settle` each that is still open."""
        self._resume()
        events, self._events = self._events, {}
        for descriptor in [*events, *(each for each in self._unread if each not in events)]:
            connection = self._open.get(descriptor)
            if connection is None:  # dropped for what another has said
                continue
            if events.get(descriptor, 0) & select.EPOLLOUT:
                connection.flush()
            if events.get(descriptor, 0) & ~select.EPOLLOUT and descriptor not in self._unread:
                connection.read()
            self._unread.pop(descriptor, None)
            yield connection

    def late(self) -> Iterator[Connection]:
        """Those whose handshake takes too long; they are dropped."""
        now = self._clock()
        for connection in self._shaking():
            if not connection.closed and now - connection.opened_at > HANDSHAKE_S:
                self.drop(connection)
                self.count("no handshake")
                yield connection

    def add(self, connection: Connection) -> bool:
        """Listen to it. False, and it is closed, when the kernel has no memory for that."""
        try:
            self._epoll.register(connection, connection.wishes)
        except OSError:
            connection.close()
            self.count("no descriptor")
            return False
        self._open[connection.fileno()] = connection
        connection.flush()
        return True

    def unread(self, connection: Connection) -> None:
        """It may have whole messages in memory yet: it gets another turn."""
        self._unread[connection.fileno()] = None

    def pause(self, connection: Connection, until: float) -> None:
        """Do not read it till then: what it sends piles up on its own side."""
        self._epoll.unregister(connection)
        self._paused[connection.fileno()] = until

    def hold(self, until: float) -> None:
        """Let nobody in till then: who comes waits in the kernel's queue."""
        if self._held_until is None:
            self._epoll.modify(self.listener, 0)
        self._held_until = until

    def hasten(self, connection: Connection) -> None:
        """End its pause, if it is in one."""
        if connection.fileno() in self._paused:
            self._paused[connection.fileno()] = -math.inf

    def over(self, connection: Connection) -> bool:
        """Whether it has ended, and all that it has said was heard."""
        descriptor = connection.fileno()
        return connection.ended and descriptor not in self._unread and descriptor not in self._paused

    def settle(self, connection: Connection) -> None:
        """Wait for what it waits for now."""
        if not connection.closed and connection.fileno() not in self._paused:
            self._epoll.modify(connection, connection.wishes)

    def drop(self, connection: Connection) -> None:
        """Close it and forget it."""
        descriptor = connection.fileno()
        del self._open[descriptor]
        if descriptor not in self._paused:
            self._epoll.unregister(descriptor)
        self._unread.pop(descriptor, None)
        self._paused.pop(descriptor, None)
        connection.close()

    def close(self) -> None:
        """Unbind, and close all of them."""
        for connection in list(self._open.values()):
            self.drop(connection)
        self._epoll.close()
        self.listener.close()

    def _shaking(self) -> list[Connection]:
        return [each for each in self._open.values() if each.session.identity is None]

    def _open_again(self) -> None:
        if self._held_until is not None and self._held_until <= self._clock():
            self._held_until = None
            self._epoll.modify(self.listener, select.EPOLLIN)

    def _resume(self) -> None:
        now = self._clock()
        for descriptor, until in list(self._paused.items()):
            if until <= now:
                del self._paused[descriptor]
                connection = self._open[descriptor]
                self._epoll.register(connection, connection.wishes)
                self._unread[descriptor] = None
