"""The life-cycle table, walked exhaustively: no pair is undecided by accident, no state is a trap."""

from __future__ import annotations

import itertools

import pytest

from wan2gp.supervisor.lifecycle import (
    BACKOFF_MAX_S,
    DEATHS_MAX,
    HALF_OPEN_S,
    STABLE_S,
    WITHOUT_PROCESS,
    Do,
    Life,
    On,
    Patience,
    State,
    decided,
)

PAIRS = list(itertools.product(State, On))


def life(state: State = State.STOPPED, jitter: float = 1.0) -> Life:
    made = Life(jitter=lambda: jitter)
    made.state = state
    return made


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda value: value.value)
def test_every_pair_keeps_the_laws(state: State, event: On) -> None:
    subject = life(state)
    effects = subject.on(event, 0.0)
    if not decided(state, event):
        assert (subject.state, effects) == (state, ())
    if Do.SPAWN in effects:  # never two processes at once
        assert state in WITHOUT_PROCESS and subject.state is State.STARTING
    if event is On.DIED and state not in WITHOUT_PROCESS:  # a death is never overlooked, and its task neither
        assert subject.state in WITHOUT_PROCESS
        if state in (State.BUSY, State.DRAINING, State.STOPPING, State.RECYCLING):
            assert Do.LOSE_TASK in effects
    if Do.KILL in effects:
        assert event is On.OVERDUE and state not in WITHOUT_PROCESS
    if subject.state in (State.BACKOFF, State.BROKEN) and state is not subject.state:  # no silent latch
        assert Do.WAIT in effects and subject.delay_s >= 0


@pytest.mark.parametrize("state", State, ids=lambda value: value.value)
def test_whatever_happens_it_can_be_stopped(state: State) -> None:
    subject = life(state)
    for event in (On.STOP, On.STOP, On.FINISHED, On.DIED):
        subject.on(event, 0.0)
    assert subject.state is State.STOPPED


@pytest.mark.parametrize("state", State, ids=lambda value: value.value)
def test_from_every_state_it_can_serve_again(state: State) -> None:
    subject = life(state)
    for event in (On.RESTART, On.DIED, On.TIME_UP, On.WANTED, On.HELLO):
        subject.on(event, 0.0)
    assert subject.state is State.IDLE


def die(subject: Life, now: float) -> None:
    subject.on(On.WANTED, now)
    subject.on(On.TIME_UP, now)
    subject.on(On.DIED, now)


def test_deaths_in_a_row_wait_longer_and_longer_and_then_break_it() -> None:
    subject, delays = life(), []
    for _ in range(DEATHS_MAX):
        die(subject, 0.0)
        delays.append(subject.delay_s)
    assert delays == [0.5, 1.0, 2.0, 4.0, HALF_OPEN_S]
    assert subject.state is State.BROKEN


def test_a_broken_handler_half_opens_and_one_more_death_breaks_it_again() -> None:
    subject = life()
    for _ in range(DEATHS_MAX):
        die(subject, 0.0)
    assert subject.on(On.TIME_UP, 0.0) == (Do.SPAWN,)
    subject.on(On.DIED, 0.0)
    assert subject.state is State.BROKEN


def test_the_operator_clears_the_count() -> None:
    subject = life()
    for _ in range(DEATHS_MAX):
        die(subject, 0.0)
    assert subject.on(On.RESTART, 0.0) == (Do.SPAWN,)
    subject.on(On.DIED, 0.0)
    assert (subject.state, subject.deaths) == (State.BACKOFF, 1)


def test_alive_is_not_started_only_a_stable_period_forgets_deaths() -> None:
    subject = life()
    die(subject, 0.0)
    die(subject, 0.0)
    subject.on(On.TIME_UP, 100.0)
    subject.on(On.HELLO, 100.0)
    subject.on(On.DIED, 100.0 + STABLE_S - 1)
    assert subject.deaths == 3
    subject.on(On.TIME_UP, 200.0)
    subject.on(On.HELLO, 200.0)
    subject.on(On.DIED, 200.0 + STABLE_S)
    assert subject.deaths == 1


def test_a_task_that_succeeded_forgets_deaths_too() -> None:
    """Poison tasks that each end a process do not break a handler that does the others' work in between."""
    subject = life(State.IDLE)
    for now in range(20):
        die(subject, float(now))
        assert subject.state is State.BACKOFF, now
        subject.on(On.TIME_UP, float(now))
        subject.on(On.HELLO, float(now))
        subject.worked()


def test_a_long_start_is_no_stable_period() -> None:
    subject = life()
    die(subject, 0.0)
    subject.on(On.TIME_UP, 0.0)
    subject.on(On.DIED, 10 * STABLE_S)
    assert subject.deaths == 2


def test_recycling_is_no_death_unless_the_engine_is_to_blame() -> None:
    subject = life(State.BUSY)
    subject.on(On.WORN, 0.0)
    subject.on(On.DIED, 0.0)
    assert (subject.state, subject.deaths, subject.delay_s) == (State.BACKOFF, 0, 0.0)
    subject = life(State.BUSY)
    subject.blamed = True
    subject.on(On.WORN, 0.0)
    subject.on(On.DIED, 0.0)
    assert (subject.state, subject.deaths) == (State.BACKOFF, 1)


def test_a_handlers_own_patience_is_kept() -> None:
    hasty = Patience(backoff_first_s=0.1, backoff_max_s=0.15, stable_s=1.0, deaths_max=3, half_open_s=7.0)
    subject, delays = Life(jitter=lambda: 1.0, patience=hasty), []
    for _ in range(3):
        die(subject, 0.0)
        delays.append(subject.delay_s)
    assert delays == [0.1, 0.15, 7.0] and subject.state is State.BROKEN


def test_a_process_is_proven_only_after_a_stable_period() -> None:
    subject = life()
    assert subject.proven(0.0)
    die(subject, 0.0)
    subject.on(On.TIME_UP, 1.0)
    assert not subject.proven(STABLE_S * 9)
    subject.on(On.HELLO, 1.0)
    assert not subject.proven(STABLE_S)
    assert subject.proven(1.0 + STABLE_S)


def test_back_off_is_jittered_and_bounded() -> None:
    subject = life(jitter=1.2)
    subject.deaths = 3
    subject.state = State.STARTING
    subject.on(On.DIED, 0.0)
    assert subject.delay_s == pytest.approx(4.8)
    assert subject.delay_s <= BACKOFF_MAX_S * 1.2
