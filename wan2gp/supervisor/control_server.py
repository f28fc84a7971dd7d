"""The control socket: served by a thread of its own, so that nobody who asks can hold up the supervisor's loop.

One thread owns the socket and never waits for anything else; a few workers answer, since an answer may wait for the
database. Replies come back over a deque and a wake-up byte. A caller who is gone is forgotten.
"""

from __future__ import annotations

import hmac
import os
import queue
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wan2gp.control import FRAMES, MAX_REQUEST_BYTES, ControlRefused, Gpu, Refused, decode_request, encode
from wan2gp.processes import may_be_below
from wan2gp.supervisor.control_census import Census
from wan2gp.supervisor.control_desk import ControlDesk, Operations
from wan2gp.supervisor.control_door import ControlDoor
from wan2gp.supervisor.queue import TaskQueue

WORKERS = 4
"""Requests answered at once."""

PENDING_MAX = 64
"""Requests waiting beyond those; more are refused as busy."""

SAY_EVERY_S = 60.0
"""Shortest time between two words about connections that were turned away, seconds."""


def below_us(pid: int) -> bool:
    """Whether a process may be one that this one has brought forth."""
    return may_be_below(pid, os.getpid())


@dataclass(frozen=True)
class _Call:
    caller: int
    call_id: bytes
    body: bytes


class ControlServer:
    """Answers `wan2gp-ctl`. :meth:`start` binds, :meth:`stop` ends it within a second whatever the database does."""

    def __init__(
        self,
        endpoint: str,
        token: str,
        queue: TaskQueue,
        operations: Operations,
        *,
        data_dir: Path,
        fault: Callable[[BaseException], None],
        gpus: Callable[[], tuple[Gpu, ...]] = tuple,
        turned_away: Callable[[Mapping[str, int]], None] = lambda counts: None,
        intruded: Callable[[int], None] = lambda pid: None,
        ours: Callable[[int], bool] = below_us,
    ) -> None:
        """``fault`` is told, from a worker's thread, of errors that are ours and not the caller's; ``turned_away``, now
        and then, of how many connections were closed, by reason; ``ours`` knows processes that may not ask at all, and
        ``intruded`` is told of one of them that connects without end."""
        self._endpoint = endpoint
        self._token = token.encode()
        self._desk = ControlDesk(queue, operations, data_dir, Census(queue.stats), gpus, lambda: self._turned_away)
        self._fault = fault
        self._pending = _pending()
        self._replies: deque[tuple[int, list[bytes]]] = deque()
        self._say = turned_away
        self._ours = ours
        self._intruded = intruded
        self._turned_away: Mapping[str, int] = {}
        self._said: Mapping[str, int] = {}
        self._say_at = 0.0
        self._stopping = threading.Event()
        self._waker, self._wake = socket.socketpair()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Bind and serve. Raises :class:`OSError` when the endpoint cannot be bound. Hold the lock file first."""
        door = ControlDoor(self._endpoint, self._ours, self._intruded)
        self._waker.setblocking(False)
        self._wake.setblocking(False)
        for number in range(WORKERS):
            # Daemons: a query that never returns must not hold up the supervisor's exit.
            threading.Thread(target=self._work, name=f"control-{number}", daemon=True).start()
        self._thread = threading.Thread(target=self._serve, args=(door,), name="control", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse nothing, answer nothing more, give the socket back. Safe to repeat."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._rouse()
        if self._thread is not None:
            self._thread.join()
        for _ in range(WORKERS):
            with suppress(queue.Full):
                self._pending.put_nowait(None)
        self._waker.close()
        self._wake.close()

    def _serve(self, door: ControlDoor) -> None:
        poller = select.poll()
        poller.register(door.descriptor, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while not self._stopping.is_set():
            poller.poll(self._patience_ms(door))
            self._drain_wake()
            self._send_replies(door)
            for caller, frames in door.receive():
                self._admit(caller, frames[0], frames)
            self._note(door)
        self._send_replies(door)
        door.close()

    def _patience_ms(self, door: ControlDoor) -> float | None:
        """How long to wait when nobody comes; None: for ever."""
        due_s = door.due_s()
        if self._turned_away != self._said:
            say_s = max(0.0, self._say_at - time.monotonic())
            due_s = say_s if due_s is None else min(due_s, say_s)
        return None if due_s is None else 1000 * due_s + 1

    def _note(self, door: ControlDoor) -> None:
        """Say what was turned away: at once, and then no more often than anybody reads."""
        self._turned_away = door.turned_away
        if self._turned_away != self._said and time.monotonic() >= self._say_at:
            self._say_at = time.monotonic() + SAY_EVERY_S
            self._said = self._turned_away
            self._say(self._said)

    def _admit(self, caller: int, call_id: bytes, frames: list[bytes]) -> None:
        """Refuse at the door what needs no thought; queue the rest. Runs in the socket's thread, so it never waits."""
        refusal: Refused | None = None
        if len(frames) != FRAMES:
            refusal = Refused("bad_request", f"a request has {FRAMES} frames, this one has {len(frames)}")
        elif not hmac.compare_digest(frames[1], self._token):
            refusal = Refused("bad_token", "the token is not this supervisor's: ask from its own data directory")
        elif len(frames[2]) > MAX_REQUEST_BYTES:
            refusal = Refused("too_large", f"the request has more than {MAX_REQUEST_BYTES:,} bytes")
        else:
            try:
                self._pending.put_nowait(_Call(caller, call_id, frames[2]))
            except queue.Full:
                refusal = Refused("busy", "too many requests at once: try again")
        if refusal is not None:
            self._replies.append((caller, [call_id, encode(refusal)]))
            self._rouse()

    def _work(self) -> None:
        while (call := self._pending.get()) is not None:
            reply = self._answer(call.body)
            if self._stopping.is_set():
                return
            self._replies.append((call.caller, [call.call_id, reply]))
            self._rouse()

    def _answer(self, body: bytes) -> bytes:
        try:
            return encode(self._desk.answer(decode_request(body)))
        except ControlRefused as refused:
            return encode(Refused(refused.code, refused.message))
        except Exception as error:
            # A question must not take the worker and its running tasks down: the caller hears it, the log gets it.
            self._fault(error)
            return encode(Refused("internal", f"the supervisor failed at this request: {type(error).__name__}"))

    def _send_replies(self, door: ControlDoor) -> None:
        while self._replies:
            door.send(*self._replies.popleft())

    def _rouse(self) -> None:
        with suppress(BlockingIOError, OSError):  # full: a wake-up is on its way already
            self._waker.send(b"x")

    def _drain_wake(self) -> None:
        with suppress(BlockingIOError):
            while self._wake.recv(4096):
                pass


def _pending() -> queue.Queue[_Call | None]:
    return queue.Queue(PENDING_MAX)
