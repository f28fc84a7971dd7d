"""How long a call over HTTP is tried, on a clock of the test's own."""

from __future__ import annotations

import random

import pytest

from wan2gp.supervisor.rest_errors import Again
from wan2gp.supervisor.rest_patience import LEAST_S, RETRY_AFTER_MAX_S, Patience

CALL_S = 15.0


def rounds(again: Again, *, retry_after_s: float | None = None, takes_s: float = 0.0, seed: int = 0) -> list[float]:
    """When each try of a call begins that always fails alike, after ``takes_s`` seconds each."""
    patience = Patience(CALL_S, random.Random(seed).uniform)
    now, began = 0.0, [0.0]
    while (pause := patience.pause(again, now + takes_s, retry_after_s)) is not None:
        now += takes_s + pause
        began.append(now)
    return began


def test_what_no_repeat_can_cure_is_not_repeated() -> None:
    assert rounds(Again.NEVER) == [0.0]


@pytest.mark.parametrize("again", list(Again))
@pytest.mark.parametrize("takes_s", [0.0, 4.0, CALL_S - LEAST_S, CALL_S])
@pytest.mark.parametrize("retry_after_s", [None, 1.0, 9.0, 86400.0])
def test_every_try_begins_early_enough_to_end_in_time(
    again: Again, takes_s: float, retry_after_s: float | None
) -> None:
    for seed in range(20):
        began = rounds(again, retry_after_s=retry_after_s, takes_s=takes_s, seed=seed)
        assert began[-1] <= CALL_S - LEAST_S and len(began) <= 7


def test_a_deadlock_is_over_at_once_and_an_outage_is_not() -> None:
    assert rounds(Again.AT_ONCE)[-1] < 0.5 and rounds(Again.SOON)[1] > 0.1
    assert rounds(Again.AFRESH)[1] < 0.1 < rounds(Again.AFRESH)[-1]


def test_a_pause_that_is_asked_for_is_kept_but_not_for_ever() -> None:
    for seed in range(20):
        (first, second, *_) = rounds(Again.SOON, retry_after_s=3.0, seed=seed)
        assert second - first >= 3.0
        capped = rounds(Again.SOON, retry_after_s=86400.0, seed=seed)
        assert len(capped) == 2 and RETRY_AFTER_MAX_S <= capped[1] < CALL_S


def test_those_that_failed_together_do_not_come_back_in_step() -> None:
    assert len({rounds(Again.SOON, seed=seed)[1] for seed in range(50)}) == 50
    assert len({rounds(Again.AT_ONCE, seed=seed)[1] for seed in range(50)}) == 50
