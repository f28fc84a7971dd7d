"""A child's end of the wire: one I/O thread that owns the DEALER, beats, and hands messages over.

The engine holds the main thread for minutes; the I/O thread keeps the supervisor told that the process lives. Whatever
thread has something to say calls :meth:`Link.send`; only :meth:`Link.receive` takes what came down, in the main thread.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time

import zmq

from wan2gp.protocol import Beat, Cancel, Down, ProtocolError, Shutdown, Up, decode_down, encode

SEND_TRIES_S = 5.0
"""How long a full pipe upward may block the last words at the end, seconds."""


class Link:
    """Call :meth:`start` once, from the main thread, after the sandbox is applied; :meth:`close` flushes and ends."""

    def __init__(self, endpoint: str, identity: str, beat_s: float = 2.0) -> None:
        self._endpoint = endpoint
        self._identity = identity.encode()
        self._beat_s = beat_s
        self._inbox: queue.SimpleQueue[Down] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._unsent = b""
        """What the socket did not take yet: it comes before all that is in the outbox."""
        self._cancelled: set[tuple[str, str]] = set()
        self._leaving = threading.Event()
        self._closed = threading.Event()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="link", daemon=True)

    def start(self) -> None:
        """Connect and begin to beat."""
        self._thread.start()

    def receive(self, timeout_s: float | None = None) -> Down | None:
        """The next message, or None when ``timeout_s`` seconds passed. ``Shutdown`` comes through like any other."""
        with contextlib.suppress(queue.Empty):
            return self._inbox.get(timeout=timeout_s)
        return None

    def send(self, message: Up) -> None:
        """Queue a message; never blocks. Raises :class:`ProtocolError` when it is too large or no JSON."""
        self._outbox.put(encode(message))
        self._rouse()

    def cancelled(self, task_id: str, lease_id: str) -> bool:
        """True once this run was cancelled, or the process was asked to leave."""
        return self._leaving.is_set() or (task_id, lease_id) in self._cancelled

    @property
    def leaving(self) -> bool:
        """True once the supervisor asked this process to leave."""
        return self._leaving.is_set()

    def forget(self, task_id: str, lease_id: str) -> None:
        """The run is over: its cancellation, if any, no longer matters."""
        self._cancelled.discard((task_id, lease_id))

    def close(self) -> None:
        """Send what is queued (for a bounded time), then end the thread."""
        self._closed.set()
        self._rouse()
        if self._thread.is_alive():
            self._thread.join(SEND_TRIES_S + 1.0)

    def _rouse(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _serve(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, self._identity)
        dealer.setsockopt(zmq.LINGER, int(SEND_TRIES_S * 1000))
        dealer.setsockopt(zmq.SNDHWM, 10_000)
        dealer.connect(self._endpoint)
        poller = zmq.Poller()
        poller.register(dealer, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        try:
            self._exchange(dealer, poller)
        finally:
            dealer.close()
            context.term()

    def _exchange(self, dealer: zmq.Socket[bytes], poller: zmq.Poller) -> None:
        next_beat = time.monotonic()
        give_up: float | None = None
        while True:
            now = time.monotonic()
            if now >= next_beat:
                if not self._unsent:  # else the next thing that it hears will do as well
                    self._outbox.put(encode(Beat()))
                    self._flush(dealer)
                next_beat = now + self._beat_s
            # While the supervisor does not read, nothing may keep this thread from hearing what it says.
            poller.modify(dealer, zmq.POLLIN | (zmq.POLLOUT if self._unsent else 0))
            ready = dict(poller.poll(max(0, int((next_beat - now) * 1000) + 1)))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if ready.get(dealer, 0) & zmq.POLLIN:
                self._take(dealer)
            closing = self._closed.is_set()  # looked at before the outbox is emptied, so that nothing stays behind
            self._flush(dealer)
            if closing:
                give_up = give_up or time.monotonic() + SEND_TRIES_S
                if not self._unsent or time.monotonic() > give_up:
                    return

    def _flush(self, dealer: zmq.Socket[bytes]) -> None:
        with contextlib.suppress(queue.Empty, zmq.Again):
            while True:
                self._unsent = self._unsent or self._outbox.get_nowait()
                dealer.send(self._unsent, zmq.NOBLOCK)
                self._unsent = b""

    def _take(self, dealer: zmq.Socket[bytes]) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                frame = dealer.recv(zmq.NOBLOCK)
                try:
                    message = decode_down(frame)
                except ProtocolError:
                    # Parent and child are the same release; a frame neither understands is a defect that must be seen.
                    self._leaving.set()
                    self._inbox.put(Shutdown())
                    raise
                if isinstance(message, Cancel):
                    self._cancelled.add((message.task_id, message.lease_id))
                elif isinstance(message, Shutdown):
                    self._leaving.set()
                self._inbox.put(message)
