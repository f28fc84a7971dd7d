"""What ends the waits of a queue that nobody wakes from outside."""

from __future__ import annotations

import threading


class Bell:
    """Rings are counted, so that one which comes just before a wait is not slept over, nor taken for two."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._rung = 0
        self._answered = 0
        self._stopped = False

    @property
    def rung(self) -> int:
        """How often it has rung."""
        return self._rung

    def is_stopped(self) -> bool:
        return self._stopped

    def ring(self) -> None:
        """From any thread."""
        with self._change:
            self._rung += 1
            self._change.notify_all()

    def stop(self) -> None:
        """Ends all waits, also those to come."""
        with self._change:
            self._stopped = True
            self._change.notify_all()

    def wait(self, timeout_s: float) -> None:
        """Until it rings, or has rung since the last wait. For one thread."""
        with self._change:
            self._change.wait_for(lambda: self._stopped or self._rung != self._answered, timeout_s)
            self._answered = self._rung

    def heard(self, timeout_s: float, *, since: int | None) -> bool:
        """Waits; True when it was stopped, or has rung more often than ``since`` (None: rings do not matter)."""
        with self._change:
            return self._change.wait_for(lambda: self._stopped or since not in (None, self._rung), timeout_s)
