"""How much a peer may say: so much at once, so much a second after that, and not for ever. Time is a parameter."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """``burst`` at once, then ``per_s`` each second; who goes on so until ``flood``, without a pause in which the burst
    grows back, is flooding."""

    per_s: float
    burst: float
    flood: float


class Allowance:
    """What is left for one peer, of one kind: messages, bytes, or our time."""

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._left = rate.burst
        self._at = now
        self._spent = 0.0

    def spend(self, cost: float, now: float) -> None:
        """It may go below nothing: a message is heard whole, and paid for by a longer pause."""
        self._refill(now)
        self._left -= cost
        self._spent += cost

    def pause_s(self, now: float) -> float:
        """Seconds until it may say more."""
        self._refill(now)
        return max(0.0, -self._left / self._rate.per_s)

    @property
    def flooding(self) -> bool:
        """True once it has said too much without a pause."""
        return self._spent > self._rate.flood

    def pass_over(self, now: float) -> None:
        """What has passed up to now was our own work for it, and no pause of its own: nothing grows back for that, or
        who sends what is slow to understand would never be seen to flood."""
        self._at = max(self._at, now)

    def _refill(self, now: float) -> None:
        if now <= self._at:
            return
        self._left += (now - self._at) * self._rate.per_s
        self._at = now
        if self._left >= self._rate.burst:
            self._left, self._spent = self._rate.burst, 0.0
