"""How long tasks of the loaded model may go before older ones. Pure; times are monotonic seconds, given by the caller.

A claim that passes an older task counts. After ``claims`` of them in a row, or ``seconds`` after the first of them, one
claim is made in plain order, and that takes the oldest: so the oldest never waits longer than that for younger ones.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Fairness:
    """The count of one claimer. A limit of 0 switches the preference off: then nobody is ever passed."""

    claims: int
    seconds: float
    _passed: int = 0
    _since: float | None = None

    def may_pass(self, now: float) -> bool:
        """Whether the next claim may pass older tasks."""
        if not self.claims or not self.seconds:
            return False
        return self._passed < self.claims and (self._since is None or now - self._since < self.seconds)

    def claimed(self, passed: bool, now: float) -> None:
        """A task was claimed, and older ones were passed, or may have been; or it was the oldest."""
        if not passed:
            self._passed, self._since = 0, None
            return
        self._passed += 1
        self._since = now if self._since is None else self._since
