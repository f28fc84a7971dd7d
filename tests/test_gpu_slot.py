"""Two engines on one card: the table of turns, walked exhaustively, and each way in which they ran out of memory."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from wan2gp.supervisor.gpu_slot import Effect, Go, Phase, Restart, Slot, SlotLimits, Told, Turn, Unload

A, B, C = "comfy", "wan", "other"
NAMES = (A, B)
FULL, LITTLE = 20 << 30, 500 << 20
LIMITS = SlotLimits(clear_s=30, fade_s=10)


def deeds(effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if not isinstance(effect, Told)]


def facts(effects: list[Effect]) -> list[str]:
    return [effect.fact for effect in effects if isinstance(effect, Told)]


def used_by(name: str) -> Slot:
    """Its engine has run and is idle."""
    slot = Slot(LIMITS)
    assert slot.wants(name, 0) == [Go(name)]
    slot.began(name)
    assert slot.done(name, 0) == []
    return slot


def clearing(name: str = A, following: str = B) -> Slot:
    slot = used_by(name)
    assert deeds(slot.wants(following, 1)) == [Unload(name)]
    return slot


# -- one after the other -----------------------------------------------------------------------------------------------


def test_an_engine_that_has_the_card_goes_on_without_asking() -> None:
    slot = used_by(A)
    for n in range(3):
        assert slot.wants(A, n) == [Go(A)]
        slot.began(A)
        slot.done(A, n)


def test_the_idle_engine_must_unload_and_the_driver_must_see_it() -> None:
    slot = clearing()
    assert slot.holds({A: LITTLE}, 2, 2) == []  # it has not said so yet: it may be about to load
    assert slot.freed(A, 3) == []
    assert slot.holds({A: LITTLE}, 2.9, 3) == []  # seen before it said so
    assert slot.holds({A: FULL}, 3.1, 3.2) == []
    found = slot.holds({A: LITTLE}, 3.5, 3.6)
    assert deeds(found) == [Go(B)] and facts(found) == ["gpu.cleared"]
    assert not slot.may_run(A) and slot.may_run(B)


def test_where_the_driver_tells_nothing_the_engines_word_is_enough() -> None:
    slot = clearing()
    slot.freed(A, 3)
    assert deeds(slot.holds(None, 3, 3)) == [Go(B)]


def test_who_runs_is_never_asked_to_unload() -> None:
    slot = Slot(LIMITS)
    slot.wants(A, 0)
    slot.began(A)
    assert slot.wants(B, 1) == [] and slot.tick(1000) == [] and slot.phase is Phase.HELD
    assert deeds(slot.done(A, 1001)) == [Unload(A)]


def test_who_waits_longest_is_next_and_not_who_has_the_card() -> None:
    """A handler with a task ahead had the card for ever."""
    slot = Slot(LIMITS)
    slot.wants(A, 0)
    slot.began(A)
    slot.wants(B, 1)
    slot.wants(A, 2)
    assert deeds(slot.done(A, 3)) == [Unload(A)]
    slot.freed(A, 4)
    assert deeds(slot.holds(None, 4, 4)) == [Go(B)]
    slot.began(B)
    assert deeds(slot.done(B, 5)) == [Unload(B)]


# -- who does not give it back -----------------------------------------------------------------------------------------


def test_an_engine_that_never_says_it_has_unloaded_is_ended() -> None:
    slot = clearing()
    assert slot.tick(30.9) == []
    found = slot.tick(31)
    assert isinstance(found[1], Restart) and "did not unload within 30 s" in found[1].reason
    assert facts(found) == ["gpu.forced"] and slot.holds({}, 32, 32) == []
    assert slot.gone(A, 33) == []
    assert deeds(slot.holds({}, 33, 33)) == [Go(B)]


def test_an_engine_that_says_it_has_unloaded_and_has_not_is_ended() -> None:
    slot = clearing()
    slot.freed(A, 2)
    slot.holds({A: FULL}, 2, 2)
    restart = slot.tick(31)[1]
    assert isinstance(restart, Restart) and "holds 20480 MiB of GPU memory" in restart.reason


def test_an_engine_that_cannot_unload_is_ended_at_once() -> None:
    slot = clearing()
    restart = slot.freed(A, 2, "RuntimeError: no")[1]
    assert isinstance(restart, Restart) and "RuntimeError: no" in restart.reason


def test_a_crash_is_no_free_card_while_the_driver_still_counts_the_dead() -> None:
    """Its context outlived the process for two seconds, and the next engine ran out of memory."""
    slot = Slot(LIMITS)
    slot.wants(A, 0)
    slot.began(A)
    slot.wants(B, 1)
    assert slot.gone(A, 2) == [] and slot.phase is Phase.FADING
    assert slot.holds({A: FULL}, 3, 3) == []
    assert slot.holds({A: 0}, 1.9, 3) == []
    assert slot.gone(A, 4) == []  # the process after it, which never had the card
    assert deeds(slot.holds({A: 0}, 4, 4)) == [Go(B)]


def test_memory_of_the_dead_that_never_goes_away_is_waited_for_no_longer_than_the_limit() -> None:
    slot = clearing()
    slot.gone(A, 2)
    slot.holds({A: FULL}, 3, 3)
    found = slot.tick(12)
    assert facts(found) == ["gpu.lingering"] and deeds(found) == [Go(B)]


def test_its_own_next_process_waits_for_the_dead_too() -> None:
    slot = used_by(A)
    slot.gone(A, 1)
    assert slot.wants(A, 1) == [] and not slot.may_run(A)
    assert deeds(slot.holds({}, 2, 2)) == [Go(A)]


# -- who changes his mind ----------------------------------------------------------------------------------------------


def test_a_task_cancelled_while_the_card_is_cleared_leaves_it_to_who_had_it() -> None:
    slot = clearing()
    assert slot.withdrawn(B, 2) == [] and (slot.phase, slot.holder) == (Phase.HELD, A)
    assert slot.freed(A, 3) == [] and slot.tick(1000) == []
    assert slot.wants(A, 1001) == [Go(A)]


def test_the_third_takes_the_place_of_one_who_gave_up() -> None:
    slot = clearing()
    slot.wants(C, 2)
    assert slot.withdrawn(B, 3) == []
    slot.freed(A, 4)
    assert deeds(slot.holds(None, 4, 4)) == [Go(C)]


def test_a_turn_that_never_began_has_put_nothing_on_the_card() -> None:
    slot = Slot(LIMITS)
    slot.wants(A, 0)
    slot.wants(B, 1)
    assert slot.withdrawn(A, 2) == [Go(B)]
    assert slot.withdrawn(B, 3) == [] and slot.phase is Phase.FREE


def test_a_process_that_died_before_its_turn_began_is_not_waited_for() -> None:
    slot = Slot(LIMITS)
    slot.wants(A, 0)
    slot.wants(B, 1)
    assert slot.gone(A, 2) == [Go(B)]


# -- the whole table ---------------------------------------------------------------------------------------------------


Step = tuple[str, Callable[[Slot], list[Effect]]]


def steps() -> Iterator[Step]:
    """Everything that can happen, at the time 0 at which nothing is due, and when all that waits is overdue."""

    def began(slot: Slot, name: str) -> list[Effect]:
        slot.began(name)
        return []

    for name in NAMES:
        yield f"wants {name}", lambda slot, name=name: slot.wants(name, 0)  # type: ignore[misc]
        yield f"withdrawn {name}", lambda slot, name=name: slot.withdrawn(name, 0)  # type: ignore[misc]
        yield f"began {name}", lambda slot, name=name: began(slot, name)  # type: ignore[misc]
        yield f"done {name}", lambda slot, name=name: slot.done(name, 0)  # type: ignore[misc]
        yield f"freed {name}", lambda slot, name=name: slot.freed(name, 0)  # type: ignore[misc]
        yield f"failed {name}", lambda slot, name=name: slot.freed(name, 0, "no")  # type: ignore[misc]
        yield f"gone {name}", lambda slot, name=name: slot.gone(name, 0)  # type: ignore[misc]
    yield "full", lambda slot: slot.holds(dict.fromkeys(NAMES, FULL), 0, 0)
    yield "little", lambda slot: slot.holds({}, 0, 0)
    yield "time", lambda slot: slot.tick(1000)


STEPS = list(steps())


def key(slot: Slot) -> tuple[object, ...]:
    return slot.phase, slot.holder, slot.turn, slot.queue, slot.used, slot._freed_at is None, bool(slot._bytes)


def everything() -> dict[tuple[object, ...], Slot]:
    """Every state that can be reached, by what tells it from others."""
    first = Slot(LIMITS)
    found, todo = {key(first): first}, deque([first])
    while todo:
        slot = todo.popleft()
        for _, step in STEPS:
            after = copy.copy(slot)
            step(after)
            after.since = 0.0
            if key(after) not in found:
                found[key(after)] = after
                todo.append(after)
    return found


STATES = list(everything().values())


def test_the_walk_reaches_every_phase_and_turn() -> None:
    assert {slot.phase for slot in STATES} == set(Phase) and {slot.turn for slot in STATES} == set(Turn)
    assert 20 < len(STATES) < 500


@pytest.mark.parametrize("number", range(len(STATES)))
def test_every_step_from_every_state_keeps_the_laws(number: int) -> None:
    before = STATES[number]
    for name, step in STEPS:
        slot = copy.copy(before)
        effects = step(slot)
        what = f"{name} in {before}"
        # The law: who gets the card meets no engine there that was not seen to have left.
        for go in (effect for effect in effects if isinstance(effect, Go)):
            assert slot.may_run(go.handler), what
            if before.used and before.holder != go.handler:
                assert name in ("little", "time", "full"), what
                assert before.looks or before.phase is Phase.FADING, what
        assert sum(isinstance(effect, (Go, Unload, Restart)) for effect in effects) <= 1, what
        assert sum(slot.may_run(each) for each in NAMES) <= 1, what
        if slot.turn is not Turn.NONE:
            assert slot.phase is Phase.HELD and slot.holder is not None, what
        assert (slot.phase is Phase.FREE) == (slot.holder is None), what
        if slot.phase is Phase.FREE:  # nobody waits for nothing
            assert not slot.queue, what
        if slot.phase in (Phase.CLEARING, Phase.FORCED):
            assert slot.used, what
        if slot.phase is Phase.CLEARING:
            assert slot.queue and slot.queue[0] != slot.holder, what
        if slot.phase is Phase.HELD and slot.turn is Turn.NONE:
            assert not slot.queue, what
        if before.turn is Turn.BEGUN and name.split()[0] not in ("done", "gone"):
            assert slot.turn is Turn.BEGUN, what
        for effect in effects:
            if isinstance(effect, (Unload, Restart)):
                assert effect.handler == slot.holder and slot.turn is Turn.NONE, what


@pytest.mark.parametrize("number", range(len(STATES)))
def test_from_every_state_who_waits_gets_the_card(number: int) -> None:
    """Whatever the others do, time and deaths alone lead there."""
    slot = copy.copy(STATES[number])
    now = 0.0
    slot.wants(B, now)
    for _ in range(12):
        if slot.may_run(B) or (slot.holder == B and slot.turn is Turn.BEGUN):
            return
        now += 100
        if slot.phase is Phase.FORCED and slot.holder is not None:
            slot.gone(slot.holder, now)
        elif slot.phase is Phase.HELD and slot.holder is not None:
            slot.began(slot.holder)
            slot.done(slot.holder, now)
        slot.tick(now)
    raise AssertionError(f"{slot} waits for ever")


def test_limits_are_given() -> None:
    slot = clearing()
    slot.limits = replace(LIMITS, clear_s=0.5, residue_bytes=0)
    slot.freed(A, 1.1)
    assert slot.holds({A: 1}, 1.2, 1.2) == [] and deeds(slot.tick(1.5)) != []
