"""How long an idle worker waits before it asks again: a pure policy, with the chance given to it."""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST_S = 0.5
"""Pause right after work, seconds: where one task was there is often the next."""
GROWTH = 1.5
SPREAD = 0.1
"""Many workers must not ask in step: a pause is so much shorter or longer, as a share of it."""


class Pace:
    """Of one worker that polls. ``slowest_s``: the pause of one that is idle, seconds."""

    def __init__(self, slowest_s: float, chance: Callable[[float, float], float] = random.uniform) -> None:
        self._slowest_s = slowest_s
        self._chance = chance
        self._next_s = slowest_s

    def worked(self) -> None:
        """A task was found, or one of ours has ended: more may be there."""
        self._next_s = min(FIRST_S, self._slowest_s)

    def pause(self, *, listening: bool, due_s: float | None) -> float:
        """Seconds until the next question. ``listening``: the database wakes us, so nothing is gained by asking often.
        ``due_s``: when something is known to become claimable."""
        own = self._slowest_s if listening else self._grown()
        own *= self._chance(1.0 - SPREAD, 1.0 + SPREAD)
        if due_s is None:
            return own
        # Nobody else is told by the clock where nobody is woken: all would come at the same moment.
        late = 0.0 if listening else self._chance(0.0, min(FIRST_S, self._slowest_s))
        return max(0.0, min(own, due_s + late))

    def _grown(self) -> float:
        now_s, self._next_s = self._next_s, min(self._slowest_s, self._next_s * GROWTH)
        return now_s
