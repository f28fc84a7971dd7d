"""The control socket: a ROUTER in a thread of its own, so that nobody who asks can hold up the supervisor's loop.

One thread owns the socket and never waits for anything else; a few workers answer, since an answer may wait for the
database. Replies come back over a deque and a wake-up byte. A caller who is gone is forgotten.
"""

from __future__ import annotations

import hmac
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import zmq

from wan2gp.control import FRAMES, MAX_REQUEST_BYTES, ControlRefused, Gpu, Refused, decode_request, encode
from wan2gp.supervisor.control_census import Census
from wan2gp.supervisor.control_desk import ControlDesk, Operations
from wan2gp.supervisor.queue import TaskQueue

WORKERS = 4
"""Requests answered at once."""

PENDING_MAX = 64
"""Requests waiting beyond those; more are refused as busy."""

LINGER_MS = 300
"""How long replies under way may still leave when the server stops."""


@dataclass(frozen=True)
class _Call:
    caller: bytes
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
    ) -> None:
        """``fault`` is told, from a worker's thread, of errors that are ours and not the caller's."""
        self._endpoint = endpoint
        self._token = token.encode()
        self._desk = ControlDesk(queue, operations, data_dir, Census(queue.stats), gpus)
        self._fault = fault
        self._pending = _pending()
        self._replies: deque[list[bytes]] = deque()
        self._stopping = threading.Event()
        self._waker, self._wake = socket.socketpair()
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Bind and serve. Raises ``zmq.ZMQError`` when the endpoint cannot be bound. Hold the lock file first."""
        self._context = zmq.Context()
        router = self._context.socket(zmq.ROUTER)
        try:
            _bind(router, self._endpoint)
        except zmq.ZMQError:
            router.close(linger=0)
            self._context.term()
            raise
        self._waker.setblocking(False)
        self._wake.setblocking(False)
        for number in range(WORKERS):
            # Daemons: a query that never returns must not hold up the supervisor's exit.
            threading.Thread(target=self._work, name=f"control-{number}", daemon=True).start()
        self._thread = threading.Thread(target=self._serve, args=(router,), name="control", daemon=True)
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
        if self._context is not None:
            self._context.term()
        self._waker.close()
        self._wake.close()

    def _serve(self, router: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        with router:
            while not self._stopping.is_set():
                ready = dict(poller.poll())
                self._drain_wake()
                self._send_replies(router)
                if router in ready:
                    self._receive(router)
            self._send_replies(router)

    def _receive(self, router: zmq.Socket[bytes]) -> None:
        """Take what is there, at most a handful before replies get their turn."""
        for _ in range(PENDING_MAX):
            try:
                frames = router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(frames) > 1:
                self._admit(frames[0], frames[1], frames[1:])

    def _admit(self, caller: bytes, call_id: bytes, frames: list[bytes]) -> None:
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
            self._replies.append([caller, call_id, encode(refusal)])
            self._rouse()

    def _work(self) -> None:
        while (call := self._pending.get()) is not None:
            reply = self._answer(call.body)
            if self._stopping.is_set():
                return
            self._replies.append([call.caller, call.call_id, reply])
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

    def _send_replies(self, router: zmq.Socket[bytes]) -> None:
        while self._replies:
            # Unreachable or full: that caller is gone or reads nothing. Waiting for it would hold up the others.
            with suppress(zmq.Again, zmq.ZMQError):
                router.send_multipart(self._replies.popleft(), zmq.NOBLOCK)

    def _rouse(self) -> None:
        with suppress(BlockingIOError, OSError):  # full: a wake-up is on its way already
            self._waker.send(b"x")

    def _drain_wake(self) -> None:
        with suppress(BlockingIOError):
            while self._wake.recv(4096):
                pass


def _pending() -> queue.Queue[_Call | None]:
    return queue.Queue(PENDING_MAX)


def _bind(router: zmq.Socket[bytes], endpoint: str) -> None:
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.LINGER, LINGER_MS)
    # Above our own limit, so that a request somewhat too large is answered and not just cut off.
    router.setsockopt(zmq.MAXMSGSIZE, 4 * MAX_REQUEST_BYTES)
    router.bind(endpoint)
