"""How other threads reach the loop: they post what is to be done, and the loop does it in its own thread."""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class Inbox:
    """Thread-safe. :attr:`descriptor` becomes readable when something was posted."""

    def __init__(self) -> None:
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def post(self, action: Callable[[], None]) -> None:
        """Have the loop call ``action``, in order. Never blocks; also fit for a signal handler's follow-up."""
        self._posted.put(action)
        os.eventfd_write(self.descriptor, 1)

    def ask(self, question: Callable[[], T], timeout_s: float) -> T:
        """Have the loop call ``question`` and wait for the answer. Raises :class:`TimeoutError`, or what it raised."""
        future: Future[T] = Future()

        def answer() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(question())
            except Exception as error:  # belongs to whoever asked, not to the loop
                future.set_exception(error)

        self.post(answer)
        try:
            return future.result(timeout_s)
        finally:
            future.cancel()

    def drain(self) -> None:
        """Called by the loop: do all that was posted, but not what is posted meanwhile: a storm of signals, say, must
        not keep the loop from its other duties."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)
        # Whoever posts later writes to the descriptor later, too: nothing is forgotten.
        with contextlib.suppress(queue.Empty):
            for _ in range(self._posted.qsize()):
                self._posted.get_nowait()()

    def close(self) -> None:
        os.close(self.descriptor)
