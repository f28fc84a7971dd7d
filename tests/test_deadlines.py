"""A hang is looked for when its limit is over, not at the next look around: what the loop is told to wake up for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wan2gp.supervisor.desk import Surroundings
from wan2gp.supervisor.handler_desk import DANGER_GRACE_S, HandlerDesk
from wan2gp.supervisor.queue import ClaimedTask
from wan2gp.supervisor.running import Running, Why


def unasked(*_: Any) -> None:
    raise AssertionError("nothing of this is needed to tell the time")


def desk_with(facts: Any, **differently: Any) -> tuple[HandlerDesk, Running]:
    """A desk at time 100, whose task has just made progress in its phase `step`, limited to 7 s."""
    around = Surroundings(None, facts, Path("/nowhere"), None, unasked, unasked, unasked, unasked, lambda: 100.0)  # type: ignore[arg-type]
    desk = HandlerDesk("h", "m:C", {}, around, 1.0, 1.0, limits_s={"step": 7.0}, cancel_grace_s=3.0, **differently)
    task = ClaimedTask("t", "h", {}, 1, 3, "secret", "lease-id-1")
    desk.current = running = Running(task, "h", "/nowhere/t", 90.0, progressed_at=100.0, phase="step")
    return desk, running


class Silence:
    """Facts that nobody hears."""

    def __call__(self, name: str, /, **fields: Any) -> None: ...

    def bind(self, **who: str) -> Silence:
        return self


def test_the_loop_wakes_when_a_phase_has_lasted_too_long() -> None:
    desk, running = desk_with(Silence())
    assert desk.next_tick() == 107.0
    running.progressed_at = 105.0
    assert desk.next_tick() == 112.0
    running.phase = "unheard of"
    assert desk.next_tick() == 105.0 + 1800.0


@pytest.mark.parametrize(("why", "grace"), [(Why.USER, 3.0), (Why.STOP, 3.0), (Why.DANGER, DANGER_GRACE_S)])
def test_the_loop_wakes_when_a_cancelled_run_has_had_its_grace(why: Why, grace: float) -> None:
    desk, running = desk_with(Silence())
    running.why, running.interrupted_at = why, 101.0
    assert desk.next_tick() == 101.0 + grace


def test_what_hangs_already_wakes_nobody_again() -> None:
    """Its deadline is past: the loop would spin until the process is gone."""
    desk, _ = desk_with(Silence())
    desk._hung = "no progress"
    assert desk.next_tick() is None


def test_an_idle_desk_without_a_process_wakes_nobody() -> None:
    desk, _ = desk_with(Silence())
    desk.current = None
    assert desk.next_tick() is None
