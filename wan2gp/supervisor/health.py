"""Why this worker takes no tasks at the moment although its handlers could: the obstacles, by code.

A handler that is broken stops its own types (:mod:`wan2gp.supervisor.lifecycle`); an obstacle stops all claiming and
turns the worker's readiness off. What runs goes on.
"""

from __future__ import annotations

from wan2gp.logs import Facts


class Health:
    """Only the loop's thread changes it; other threads may read :attr:`reasons`."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._reasons: dict[str, str] = {}

    @property
    def ready(self) -> bool:
        """True when nothing keeps this worker from claiming."""
        return not self._reasons

    @property
    def reasons(self) -> dict[str, str]:
        """Code of :mod:`wan2gp.errors` to sentence, of everything that stands in the way."""
        return dict(self._reasons)

    def block(self, code: str, sentence: str) -> None:
        """Claim nothing from now on. Said once, until it is cleared."""
        if code not in self._reasons:
            self._facts("worker.unhealthy", code=code, reason=sentence)
        self._reasons = {**self._reasons, code: sentence}

    def clear(self, code: str) -> None:
        """The obstacle is gone."""
        if code in self._reasons:
            self._reasons = {key: value for key, value in self._reasons.items() if key != code}
            self._facts("worker.healthy", code=code)
