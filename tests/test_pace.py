"""Polling without a wake-up: quick where work was, cheap where none is, never in step with others."""

from __future__ import annotations

import random
from collections.abc import Callable

import psycopg
import pytest

from tests.conftest_worker import Worker
from tests.supabase_stack import Stack
from wan2gp.config_options import OPTIONS
from wan2gp.supervisor.pace import FIRST_S, Pace

POLL_S = float(OPTIONS["poll_interval_s"].default)
RENEW_S = float(OPTIONS["renew_s"].default)


def middle(low: float, high: float) -> float:
    return (low + high) / 2


def lowest(low: float, high: float) -> float:
    return low


def pauses(pace: Pace, count: int) -> list[float]:
    return [pace.pause(listening=False, due_s=None) for _ in range(count)]


def claims_in(seconds: float, pace: Pace) -> int:
    """How often an idle worker asks, its first question at 0."""
    now, asked = 0.0, 0
    while now <= seconds:
        asked += 1
        now += pace.pause(listening=False, due_s=None)
    return asked


def test_it_is_quick_right_after_work_and_slows_down_to_the_interval() -> None:
    pace = Pace(POLL_S, middle)
    pace.worked()
    found = pauses(pace, 12)
    assert found[0] == FIRST_S and found == sorted(found)
    assert found[-1] == POLL_S and sum(found[:8]) < 3 * POLL_S


def test_work_makes_it_quick_again() -> None:
    pace = Pace(POLL_S, middle)
    assert pauses(pace, 3) == [POLL_S] * 3
    pace.worked()
    assert pauses(pace, 1) == [FIRST_S]


def test_an_interval_shorter_than_the_first_pause_is_kept_to() -> None:
    pace = Pace(0.2, middle)
    pace.worked()
    assert pauses(pace, 3) == [0.2] * 3


def test_an_idle_worker_makes_at_most_ten_requests_a_minute_whatever_chance_says() -> None:
    heartbeats = 60 / RENEW_S
    chances: tuple[Callable[[float, float], float], ...] = (lowest, middle, random.Random(4).uniform)
    for chance in chances:
        for minutes in (1, 60):
            asked = claims_in(minutes * 60, Pace(POLL_S, chance)) - 1  # the first belongs to the minute before
            assert asked / minutes + heartbeats <= 10


def test_who_is_woken_does_not_ask_more_often_after_work() -> None:
    pace = Pace(POLL_S, middle)
    pace.worked()
    assert pace.pause(listening=True, due_s=None) == POLL_S
    assert pace.pause(listening=True, due_s=0.25) == 0.25
    assert pace.pause(listening=True, due_s=1000) == POLL_S
    assert pace.pause(listening=True, due_s=-1) == 0


def test_many_workers_are_not_in_step() -> None:
    """Neither by their intervals nor at the moment when something is known to be due."""
    workers = [Pace(POLL_S, random.Random(seed).uniform) for seed in range(200)]
    for due_s in (None, 3.0):
        moments = sorted(pace.pause(listening=False, due_s=due_s) for pace in workers)
        busiest = max(sum(1 for other in moments if 0 <= other - one < 0.05) for one in moments)
        assert busiest < 60
        assert due_s is None or moments[0] >= due_s


@pytest.mark.long
def test_a_worker_that_polls_once_an_hour_finds_what_comes_right_after_its_last_task(
    supabase_stack: Stack, start_supabase_worker: Callable[..., Worker]
) -> None:
    insert = "INSERT INTO tasks (task_type, params, status) VALUES ('noop', '{}', 'queued') RETURNING id"
    with psycopg.connect(supabase_stack.database, autocommit=True) as connection:
        first = str((connection.execute(insert).fetchone() or [""])[0])
    worker = start_supabase_worker("--poll-interval", "3600")
    assert worker.ended(first)["status"] == "Complete"
    for _ in range(2):
        assert worker.ended(worker.insert("noop"))["status"] == "Complete"
