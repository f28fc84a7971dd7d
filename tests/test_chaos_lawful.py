"""What lawful workers do is found right by the books of `make chaos`, and what is changed in their books is noticed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.history import Deed, Event, History, Life, Sample, check
from tests.chaos_tales import BEGAN, DIED, LEASE_S, Tale, lives


def broken(history: History) -> set[str]:
    return {violation.rule for violation in check(history)}


# -- what is right ----------------------------------------------------------------------------------------------------


def plain(tale: Tale) -> None:
    tale.insert("a", makes=2)
    tale.claim("a").beat("a").wait(1).beat("a", 0.9).finish("a", "11", "22")


def second_try(tale: Tale) -> None:
    tale.insert("b", makes=1)
    tale.claim("b").retry("b", 2.0).wait(2).claim("b", "w2").finish("b", "33")


def handed_back(tale: Tale) -> None:
    """A drain costs no attempt: the next one has the same number."""
    tale.insert("c")
    tale.claim("c").release("c").claim("c", "w2").finish("c")


def poison(tale: Tale) -> None:
    tale.insert("d")
    tale.claim("d").lose("d").claim("d", "w2").lose("d")


def given_up(tale: Tale) -> None:
    tale.insert("e", max_attempts=2)
    tale.claim("e").retry("e", 0.0).claim("e").fail("e")


def rescued(tale: Tale) -> None:
    tale.insert("f", makes=1)
    tale.claim("f").wait(LEASE_S + 0.1).lose("f", "lease_expired", taken_by="w2")
    tale.claim("f", "w2").finish("f", "44")


def cancelled_in_the_queue(tale: Tale) -> None:
    tale.insert("g")
    tale.cancel("g")


def cancelled_at_work(tale: Tale) -> None:
    """The worker hears of it a moment later; what it says of its work until then harms nobody."""
    tale.insert("h")
    tale.claim("h").cancel("h").beat("h").stop("h").cancel("h")


def cancelled_and_completed_too_late(tale: Tale) -> None:
    tale.insert("i")
    tale.claim("i").cancel("i").end("i", "refused", "Cancelled")


def done_again_by_hand(tale: Tale) -> None:
    tale.insert("j", makes=1)
    tale.claim("j").finish("j", "55").again("j").claim("j", "w2").finish("j", "66")
    tale.insert("k")
    tale.claim("k").retry("k", 0.0).claim("k").fail("k").again("k").claim("k").finish("k")


def published_late(tale: Tale) -> None:
    """The storage was away for too long; the row failed, and was completed when it came back."""
    one = tale.insert("l", makes=1)
    tale.claim("l").end("l", "withheld", "Failed", {"kind": "failed", "code": "output.publish_failed"})
    tale.note("l", "completed", "w1", 1, **{"from": "Failed"})
    one.status = "Complete"
    tale.publish("l", "w1", "77")


def parked_parent(tale: Tale) -> None:
    parent = tale.insert("m")
    tale.claim("m").note("m", "spawned", "w1", 1, children=["n"])
    tale.insert("n", makes=1)
    tale.claim("n", "w2").finish("n", "88")
    tale.note("m", "completed", **{"from": "In Progress"})
    parent.status, parent.result = "Complete", {"artifacts": [{"sha256": "88"}]}


def bereaved(tale: Tale) -> None:
    tale.insert("o").status = "Failed"
    tale.note("o", "failed", **{"from": "Queued", "error_message": "task.dependency_failed: …"})


def taken_back(tale: Tale) -> None:
    """Its worker died and was started again under its name."""
    tale.insert("p")
    tale.claim("p")
    tale.lives[0] = replace(tale.lives[0], ended=tale.now)
    tale.lives.append(Life("w1", tale.now + 0.2))
    tale.wait(1.0).lose("p", "worker_died").claim("p").finish("p")


RIGHT = (
    plain,
    second_try,
    handed_back,
    poison,
    given_up,
    rescued,
    cancelled_in_the_queue,
    cancelled_at_work,
    cancelled_and_completed_too_late,
    done_again_by_hand,
    published_late,
    parked_parent,
    bereaved,
    taken_back,
)


@pytest.mark.parametrize("told", RIGHT, ids=lambda told: told.__name__)
def test_a_task_with_which_all_went_right_is_found_so(told: Callable[[Tale], None]) -> None:
    tale = lives(Tale())
    told(tale)
    assert check(tale.history()) == []


def test_a_run_in_which_all_of_that_happened_is_found_right_in_whatever_order_its_events_are_read() -> None:
    tale = lives(Tale())
    for told in RIGHT:
        told(tale)
    shuffled = tuple(random.Random(7).sample(tale.events, len(tale.events)))
    assert check(tale.history()) == []
    assert check(tale.history(events=shuffled)) == []


# -- what is nobody's fault --------------------------------------------------------------------------------------------


def test_a_lease_that_ran_out_while_the_database_was_away_may_be_taken_late() -> None:
    tale = lives(Tale())
    tale.insert("x")
    tale.claim("x")
    tale.lives[0] = replace(tale.lives[0], ended=tale.now)
    tale.outages.append((tale.now + 1, tale.now + 16))
    tale.wait(20).lose("x", "lease_expired")
    assert broken(tale.claim("x", "w2").finish("x").history()) == set()


def test_work_that_nobody_was_there_to_take_waits_for_whoever_comes() -> None:
    tale = Tale()
    tale.insert("x")
    tale.claim("x")
    tale.lives += [Life("w1", BEGAN - 9, tale.now), Life("w2", tale.now + 60)]
    tale.wait(60 + LEASE_S + 2).lose("x", "lease_expired")
    assert broken(tale.claim("x", "w2").finish("x").history()) == set()


def test_a_worker_that_takes_long_to_start_takes_back_what_it_held_when_it_claims() -> None:
    tale = Tale()
    tale.insert("x")
    tale.claim("x")
    lost = tale.now
    tale.lives += [
        Life("w1", BEGAN - 9, lost),
        Life("w1", lost + 1, able=lost + 14),
        Life("w2", lost + 1, able=math.inf),
    ]
    tale.wait(15).lose("x", "worker_died")
    assert broken(tale.claim("x").finish("x").history()) == set()


def test_a_result_that_waited_in_the_spool_of_a_dead_worker_was_not_lost() -> None:
    tale = Tale()
    tale.insert("x", makes=1)
    tale.claim("x")
    tale.lives += [Life("w1", BEGAN - 9, tale.now), Life("w1", tale.now + 1)]
    tale.wait(30).finish("x", "11")
    assert broken(tale.history()) == set()


def test_a_worker_that_thaws_before_its_lease_is_taken_goes_on() -> None:
    tale = lives(Tale())
    tale.insert("x")
    tale.claim("x")
    tale.lives[0] = replace(tale.lives[0], pauses=((tale.now, tale.now + 2),))
    assert broken(tale.wait(15).finish("x").history()) == set()


def test_a_task_that_waited_for_its_handler_to_start_survives_the_handlers_death() -> None:
    tale = lives(Tale())
    tale.insert("x")
    tale.claim("x").beat("x", 0.0, "start").wait(0.1)
    tale.deeds.append(Deed(tale.now, "kill handler", "handler", "w1", 1, "x", "t"))
    assert broken(tale.wait(20).finish("x").history()) == set()


def test_a_start_that_takes_its_memory_once_is_no_leak() -> None:
    memory = tuple(Sample(BEGAN + at, "supervisor", (20 if at < 5 else 150) << 20) for at in range(60))
    assert check(Tale().history(lives=(Life("w1", BEGAN, memory=memory),))) == []


# -- by chance ---------------------------------------------------------------------------------------------------------


def by_chance(seed: int) -> Tale:
    """Two workers and a user, all of whom keep to the contract."""
    dice, tale = random.Random(seed), lives(Tale())
    for number in range(dice.randint(1, 4)):
        tale.insert(f"t{number}", makes=1)
    for _ in range(30):
        tale.wait(dice.choice((0.1, 0.5)))
        _move(tale, dice, dice.choice(sorted(tale.tasks)))
    for name in sorted(tale.tasks):
        if tale.tasks[name].status == "Queued":
            tale.wait(6).claim(name)
        if tale.tasks[name].holder is not None:
            _settle(tale, dice, name, final=True)
    return tale


def _move(tale: Tale, dice: random.Random, name: str) -> None:
    one = tale.tasks[name]
    if one.holder is not None:
        _settle(tale, dice, name, final=False)
    elif one.status == "Queued":
        if dice.random() < 0.1:
            tale.cancel(name)
        else:
            tale.wait(2.1).claim(name, dice.choice(("w1", "w2")))
    elif dice.random() < 0.1:
        tale.again(name)


def _settle(tale: Tale, dice: random.Random, name: str, *, final: bool) -> None:
    one = tale.tasks[name]
    if one.status == "Cancelled":
        tale.end(name, dice.choice(("stopped", "refused")), "Cancelled")
        return
    moves: list[Callable[[], object]] = [lambda: tale.finish(name, f"{len(tale.events)}"), lambda: tale.fail(name)]
    if not final:
        moves += [lambda: tale.beat(name, round(dice.random(), 2)), lambda: tale.release(name)]
        moves += [
            lambda: tale.lose(name),
            lambda: tale.wait(3.1).lose(name, "lease_expired"),
            lambda: tale.cancel(name),
        ]
        if one.counts["failures"] < one.max_attempts - 1:
            moves.append(lambda: tale.retry(name, 2.0))
    dice.choice(moves)()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_whatever_lawful_workers_do_is_found_right(seed: int) -> None:
    assert check(by_chance(seed).history()) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_an_event_that_is_taken_out_of_the_books_is_missed(seed: int, which: int) -> None:
    tale = by_chance(seed)
    weighty = [one for one in tale.events if one.name in ("claimed", "completed", "failed", "retried", "released")]
    if weighty:
        tale.events.remove(weighty[which % len(weighty)])
        assert check(tale.history())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_an_accepted_write_out_of_nowhere_is_noticed(seed: int, which: int) -> None:
    tale = by_chance(seed)
    name = ("completed", "failed", "retried", "released", "claimed", "withheld")[which % 6]
    at = which % (len(tale.events) + 1)
    task = sorted(tale.tasks)[which % len(tale.tasks)]
    ghost = Event(task, tale.now, name, "w3", 99, {"cause": DIED})
    events = [*tale.events[:at], ghost, *tale.events[at:]]
    tale.events = [replace(event, id=number) for number, event in enumerate(events, 1)]
    assert check(tale.history())
