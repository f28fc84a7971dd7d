"""The control socket's door: lets in who may ask, keeps each within its limits, hands messages in and answers out.

Whoever a handler starts has no business here: it could neither be stopped from asking for ever nor be told from the
operator. It is known by the kernel's word and closed before it can say anything. Everybody else is a user of this
machine who got past the directory's permissions; what one of them does wrong costs that one its connection.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from wan2gp.control import MAX_REQUEST_BYTES
from wan2gp.supervisor.allowance import Allowance, Rate
from wan2gp.supervisor.connection import Connection
from wan2gp.supervisor.connections import Connections
from wan2gp.supervisor.zmtp import Session, Violation, message

CONNECTIONS_MAX = 64
"""At a time. A further one takes the place of the one that has been silent longest, unless all wait for answers."""
PER_PROCESS_MAX = 32
"""Of one process at a time."""
MESSAGE_MAX_BYTES = 2 * MAX_REQUEST_BYTES
"""All frames together: above the limit of a request, so that one somewhat too large is answered and not cut off."""
FRAMES_MAX = 16
"""More than a request has, so that one with some too many is answered."""
HELD_MAX_BYTES = 4 * MESSAGE_MAX_BYTES
"""Of what has come from all and is no whole message yet: beyond it the one with most is closed."""
UNSENT_MAX_BYTES = 64 * 1024 * 1024
"""Of what waits for one that does not read, unless a single answer is longer."""
STALLED_S = 30.0
"""So long a message may be half here, or an answer unread, without a byte of progress, seconds."""
RATE = Rate(per_s=1000, burst=4000, flood=math.inf)
"""Messages and reads of one connection. Who goes beyond is not read for a while."""
BURST = 64
"""Messages taken from one in one go."""
PAUSE_S = 0.05
INTRUSIONS = Rate(per_s=20, burst=500, flood=math.inf)
"""Connections of the supervisor's own processes; beyond it is no curiosity, nor a client that tries again."""
REPORT_EVERY_S = 0.1
LINGER_S = 0.3
"""How long answers under way may still leave at the end, seconds."""


@dataclass(eq=False)
class _Caller:
    number: int
    pid: int
    connection: Connection
    allowance: Allowance
    moved_at: float
    """When it last sent or took anything, monotonic seconds."""
    asked: int = 0
    """Messages that have had no answer yet."""

    @property
    def stalled(self) -> bool:
        """Whether it is in the middle of something."""
        return self.connection.unsent or self.connection.session.held > 0

    @property
    def idle(self) -> bool:
        return not self.asked and not self.stalled


class ControlDoor:
    """A listening socket and its callers, by number. Not for several threads at once."""

    def __init__(
        self,
        endpoint: str,
        ours: Callable[[int], bool],
        intruded: Callable[[int], None] = lambda pid: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``ours(pid)``: whether a process may be one of the supervisor's own; ``intruded(pid)`` is told when such
        connect without end. Raises :class:`OSError`."""
        self._ours = ours
        self._intruded = intruded
        self._intrusions = Allowance(INTRUSIONS, clock())
        self._report_at = -math.inf
        self._clock = clock
        self._connections = Connections(endpoint, _session, UNSENT_MAX_BYTES, clock)
        self._callers: dict[int, _Caller] = {}
        self._by: dict[Connection, _Caller] = {}
        self._last = 0

    @property
    def descriptor(self) -> int:
        """Readable when there is something to do here; for a poller."""
        return self._connections.descriptor

    @property
    def turned_away(self) -> Mapping[str, int]:
        """Connections that were closed for what they are or did, by reason."""
        return self._connections.turned_away

    def due_s(self) -> float | None:
        """After how many seconds :meth:`receive` has something to do, whatever the descriptor says; None: not known."""
        now = self._clock()
        stalls = [each.moved_at + STALLED_S - now for each in self._callers.values() if each.stalled]
        due = self._connections.due_s()
        times = stalls if due is None else [*stalls, due]
        return max(0.0, min(times)) if times else None

    def receive(self) -> Iterator[tuple[int, list[bytes]]]:
        """What has arrived: who has said it, and the message's frames. Each gets one :meth:`send`."""
        for connection, pid in self._connections.arrivals():
            self._judge(connection, pid)
        for connection in self._connections.turns():
            yield from self._serve(self._by[connection])
        for connection in self._connections.late():
            self._forget(connection)
        self._end_stalled()

    def send(self, number: int, frames: Sequence[bytes]) -> None:
        """Answer without waiting. Who is gone is forgotten, who does not read is closed."""
        caller = self._callers.get(number)
        if caller is None:
            return
        caller.asked -= 1
        caller.moved_at = caller.moved_at if caller.connection.unsent else self._clock()
        if caller.connection.queue(message(frames)):
            self._connections.settle(caller.connection)
        else:
            self._turn_away(caller, "does not read")

    def close(self) -> None:
        """Let answers leave that are on their way, for a moment; then unbind and close."""
        deadline = time.monotonic() + LINGER_S
        while time.monotonic() < deadline and any(each.connection.unsent for each in self._callers.values()):
            for caller in self._callers.values():
                caller.connection.flush()
            time.sleep(0.005)
        self._connections.close()

    def _judge(self, connection: Connection, pid: int) -> None:
        why = self._objection(pid)
        if why is not None:
            self._connections.count(why)
            connection.close()
        elif self._connections.add(connection):
            self._last += 1
            now = self._clock()
            self._by[connection] = _Caller(self._last, pid, connection, Allowance(RATE, now), now)
            self._callers[self._last] = self._by[connection]

    def _objection(self, pid: int) -> str | None:
        """Why this process may not come in, if so."""
        try:
            if self._ours(pid):
                self._note_intrusion(pid)
                return "handler"
        except OSError:  # /proc cannot be read
            return "no descriptor"
        if Counter(each.pid for each in self._callers.values())[pid] >= PER_PROCESS_MAX:
            return "too many of one process"
        return None if len(self._callers) < CONNECTIONS_MAX or self._make_room() else "too many"

    def _note_intrusion(self, pid: int) -> None:
        now = self._clock()
        if self._intrusions.pause_s(now) == 0:  # no debt beyond: the next handler that tries once is not its cause
            self._intrusions.spend(1, now)
        elif now >= self._report_at:
            self._report_at = now + REPORT_EVERY_S
            self._intruded(pid)

    def _make_room(self) -> bool:
        """A socket of ZeroMQ that only holds its place connects again when it needs it."""
        idle = [each for each in self._callers.values() if each.idle]
        if idle:
            self._turn_away(min(idle, key=lambda each: each.moved_at), "silent")
        return bool(idle)

    def _serve(self, caller: _Caller) -> Iterator[tuple[int, list[bytes]]]:
        connection, now = caller.connection, self._clock()
        caller.moved_at = now
        caller.allowance.spend(1, now)
        try:
            if connection.session.identity is not None or connection.session.shake():
                yield from self._messages(caller, now)
        except Violation:
            self._turn_away(caller, "not the protocol")
            return
        if connection.closed:
            return
        connection.flush()
        if self._connections.over(connection):
            self._drop(caller)
        else:
            self._connections.settle(connection)
            self._keep_within_memory()

    def _messages(self, caller: _Caller, now: float) -> Iterator[tuple[int, list[bytes]]]:
        for _ in range(BURST):
            pause = caller.allowance.pause_s(now)
            if pause > 0:
                self._connections.pause(caller.connection, now + max(PAUSE_S, pause))
                return
            frames = caller.connection.session.take()
            if frames is None:
                return
            caller.allowance.spend(1, now)
            caller.asked += 1
            yield caller.number, frames
            if caller.connection.closed:
                return
        self._connections.unread(caller.connection)

    def _keep_within_memory(self) -> None:
        held = {caller: caller.connection.session.held for caller in self._callers.values()}
        if sum(held.values()) > HELD_MAX_BYTES:
            self._turn_away(max(held, key=lambda caller: held[caller]), "too much at once")

    def _end_stalled(self) -> None:
        now = self._clock()
        for caller in [each for each in self._callers.values() if each.stalled]:
            if now - caller.moved_at > STALLED_S:
                self._turn_away(caller, "does not read" if caller.connection.unsent else "half a message")

    def _turn_away(self, caller: _Caller, why: str) -> None:
        self._connections.count(why)
        self._drop(caller)

    def _drop(self, caller: _Caller) -> None:
        self._connections.drop(caller.connection)
        self._forget(caller.connection)

    def _forget(self, connection: Connection) -> None:
        del self._callers[self._by.pop(connection).number]


def _session() -> Session:
    return Session(MESSAGE_MAX_BYTES, FRAMES_MAX, heartbeats=True)
