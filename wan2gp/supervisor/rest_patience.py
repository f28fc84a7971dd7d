"""How long one call over HTTP is tried: a pure policy, with the time and the chance given to it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from wan2gp.supervisor.rest_errors import Again

ROUNDS = {Again.NEVER: 0, Again.AT_ONCE: 5, Again.AFRESH: 3, Again.SOON: 2, Again.RELOADED: 3}
"""How often a call is repeated at most, for each kind of failure."""
SOON_S = 0.3
"""Pause before the first repeat, doubled for each further one, seconds."""
RELOAD_S = 0.4
"""What PostgREST takes to look at the schema again, seconds."""
AT_ONCE_S = 0.03
RETRY_AFTER_MAX_S = 10.0
"""A server may ask for more patience than a lease has, seconds."""
LEAST_S = 0.5
"""A try that has less time than this is not worth it, seconds."""


class Patience:
    """Of one call, which must be over at ``deadline``."""

    def __init__(self, deadline: float, chance: Callable[[float, float], float] = random.uniform) -> None:
        self.deadline = deadline
        self._chance = chance
        self._failed: Counter[Again] = Counter()

    def pause(self, again: Again, now: float, retry_after_s: float | None) -> float | None:
        """Seconds to wait before the next try; None when there shall be none."""
        self._failed[again] += 1
        tries = self._failed[again]
        if tries > ROUNDS[again]:
            return None
        pause = self._own_pause(again, tries)
        if retry_after_s is not None:
            pause = max(pause, min(retry_after_s, RETRY_AFTER_MAX_S) + self._chance(0.0, SOON_S))
        return None if now + pause + LEAST_S > self.deadline else pause

    def _own_pause(self, again: Again, tries: int) -> float:
        """With chance in it, for those that failed together must not come back in step."""
        if again is Again.AT_ONCE or (again is Again.AFRESH and tries == 1):
            return self._chance(0.0, AT_ONCE_S * tries)
        if again is Again.RELOADED:
            return RELOAD_S * tries
        return float(SOON_S * 2.0 ** (tries - 1) * self._chance(0.5, 1.5))
