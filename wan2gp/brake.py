"""Ends a blocking download at once, from another thread or at a deadline, whatever call it is in.

A time-out on a socket bounds one read only: a server that sends a byte a second never meets it. So whoever blocks
registers how to be woken (a socket is shut down), and :meth:`Brake.check` then says why it was.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator


class Brake:
    """One download's. The first :meth:`pull` counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: Exception | None = None
        self._stoppers: list[Callable[[], None]] = []

    def pull(self, reason: Exception) -> None:
        """Wake what blocks; ``reason`` is what :meth:`check` raises from now on."""
        with self._lock:
            if self._reason is None:
                self._reason = reason
            for stop in self._stoppers:
                stop()

    def check(self) -> None:
        """Raise the reason if the brake was pulled."""
        if self._reason is not None:
            raise self._reason

    @contextlib.contextmanager
    def within(self, seconds: float, reason: Exception) -> Iterator[None]:
        """Pull with ``reason`` when the block takes longer than ``seconds``."""
        timer = threading.Timer(seconds, self.pull, [reason])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def stops(self, stop: Callable[[], None]) -> Iterator[None]:
        """While inside, a pull calls ``stop``; at once when it was pulled before. ``stop`` must not block."""
        with self._lock:
            self._stoppers.append(stop)
            if self._reason is not None:
                stop()
        try:
            yield
        finally:
            with self._lock:
                self._stoppers.remove(stop)

    @contextlib.contextmanager
    def stops_socket(self, connected: socket.socket) -> Iterator[None]:
        """While inside, a pull shuts the connection down in both directions."""
        # A duplicate: TLS takes the descriptor out of the first object, and closing must not race with shutting down.
        with connected.dup() as handle:

            def shut() -> None:
                with contextlib.suppress(OSError):  # not connected any more, or not yet
                    handle.shutdown(socket.SHUT_RDWR)

            with self.stops(shut):
                yield
