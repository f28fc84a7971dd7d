"""The books of `make chaos` bite: whatever could go wrong is planted in a history and found, and nothing else is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.history import Artifact, Deed, Event, History, Inserted, Life, Rule, Sample, check
from tests.chaos_tales import BEGAN, DIED, FAILED, LEASE_S, Tale


def broken(history: History) -> set[str]:
    return {violation.rule for violation in check(history)}


def lives(tale: Tale, *workers: str) -> Tale:
    """Workers that were there long before and still are."""
    tale.lives += [Life(name, BEGAN - 100) for name in workers or ("w1", "w2")]
    return tale


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


# -- what is wrong ----------------------------------------------------------------------------------------------------


def row_is_gone(tale: Tale) -> History:
    tale.inserted.append(Inserted("gone", tale.now))
    return tale.history()


def row_never_ends(tale: Tale) -> History:
    tale.insert("x")
    return tale.claim("x").history()


def completed_twice(tale: Tale) -> History:
    tale.insert("x")
    tale.claim("x").finish("x").note("x", "completed", "w2", 1)
    return tale.history()


def failed_after_completion(tale: Tale) -> History:
    tale.insert("x")
    tale.claim("x").finish("x").note("x", "failed", **{"from": "Complete"})
    return tale.history()


def end_without_an_event(tale: Tale) -> History:
    tale.insert("x").status = "Failed"
    return tale.history()


def stale_completion(tale: Tale) -> History:
    """w1 stalled, its lease was taken, w2 is at work: and w1's late result is accepted."""
    tale.insert("x")
    tale.claim("x").wait(4).lose("x", "lease_expired").claim("x", "w2")
    tale.note("x", "completed", "w1", 1)
    tale.tasks["x"].status = "Complete"
    return tale.history()


def stale_retry(tale: Tale) -> History:
    tale.insert("x")
    tale.claim("x").wait(4).lose("x", "lease_expired").claim("x", "w2")
    tale.note("x", "retried", "w1", 1, cause=FAILED)
    return tale.finish("x").history()


def stale_release(tale: Tale) -> History:
    tale.insert("x")
    tale.claim("x").release("x").note("x", "released", "w1", 1)
    return tale.claim("x").finish("x").history()


def stale_progress(tale: Tale) -> History:
    tale.insert("x")
    tale.claim("x").lose("x").claim("x", "w2").note("x", "progress", "w1", phase="step")
    return tale.finish("x").history()


def stale_children(tale: Tale) -> History:
    tale.insert("x")
    tale.claim("x").lose("x").claim("x", "w2").note("x", "spawned", "w1", 1)
    return tale.finish("x").history()


def completed_by_nobody(tale: Tale) -> History:
    tale.insert("x").status = "Complete"
    tale.note("x", "completed")
    return tale.history()


def stopped_though_nobody_cancelled(tale: Tale) -> History:
    tale.insert("x")
    tale.claim("x").note("x", "stopped", "w1", 1)
    return tale.claim("x").finish("x").history()


def two_holders(tale: Tale) -> History:
    tale.insert("x")
    return tale.claim("x").claim("x", "w2").finish("x").history()


def attempt_falls(tale: Tale) -> History:
    one = tale.insert("x")
    tale.claim("x").lose("x")
    one.attempts = 0
    return tale.claim("x").finish("x").history()


def attempt_is_skipped(tale: Tale) -> History:
    one = tale.insert("x")
    tale.claim("x").lose("x")
    one.attempts = 2
    return tale.claim("x").finish("x").history()


def robbed(tale: Tale) -> History:
    tale.insert("x")
    tale.claim("x").wait(2).beat("x").wait(1.5).lose("x", "lease_expired")
    return tale.claim("x", "w2").finish("x").history()


def never_rescued(tale: Tale) -> History:
    tale.insert("x")
    tale.claim("x")
    tale.lives[0] = replace(tale.lives[0], ended=tale.now)
    tale.wait(20).lose("x", "lease_expired")
    return tale.claim("x", "w2").finish("x").history()


def never_taken_back(tale: Tale) -> History:
    """The only worker died and was back at once; it knew nothing of its task for half a minute."""
    tale.insert("x")
    tale.claim("x")
    tale.lives[:] = [Life("w1", BEGAN - 100, tale.now), Life("w1", tale.now + 0.2)]
    tale.wait(30).lose("x", "worker_died")
    return tale.claim("x").finish("x").history()


def frozen_for_ever_and_left_alone(tale: Tale) -> History:
    """It completes when it thaws, and somebody else should have done so long before."""
    tale.insert("x")
    tale.claim("x")
    tale.lives[0] = replace(tale.lives[0], pauses=((tale.now, tale.now + 20),))
    return tale.wait(20.5).finish("x").history()


def dead_process_unnoticed(tale: Tale) -> History:
    tale.insert("x")
    tale.claim("x").beat("x").wait(0.1)
    tale.deeds.append(Deed(tale.now, "kill handler", "handler", "w1", 1, "x", "t"))
    tale.wait(10).lose("x")
    return tale.claim("x").finish("x").wait(10).history()


def claimed_before_its_time(tale: Tale) -> History:
    tale.insert("x")
    return tale.claim("x").retry("x", 5.0).wait(1).claim("x").finish("x").history()


def completed_though_cancelled(tale: Tale) -> History:
    tale.insert("x")
    tale.claim("x").cancel("x").finish("x")
    return tale.history()


def claimed_though_cancelled(tale: Tale) -> History:
    tale.insert("x")
    tale.cancel("x").claim("x").release("x").tasks["x"].status = "Cancelled"
    return tale.history()


def cancellation_forgotten(tale: Tale) -> History:
    """The client was told that it is cancelled, and no event knows of it."""
    tale.insert("x")
    tale.claim("x").cancel("x")
    tale.events.pop()
    return tale.finish("x").history()


def file_is_missing(tale: Tale) -> History:
    tale.insert("x", makes=1)
    tale.claim("x").finish("x", "11")
    return tale.history(artifacts=())


def file_is_doubled(tale: Tale) -> History:
    tale.insert("x", makes=1)
    tale.claim("x").lose("x").claim("x", "w2").finish("x", "11")
    tale.artifacts.append(Artifact("x", "w1", "outputs/x_1_0.txt", "11", True))
    return tale.history()


def too_few_are_told_of(tale: Tale) -> History:
    tale.insert("x", makes=2)
    return tale.claim("x").finish("x", "11").history()


def failed_with_a_file(tale: Tale) -> History:
    tale.insert("x")
    tale.claim("x").fail("x")
    tale.artifacts.append(Artifact("x", "w1", "outputs/x_1_0.txt", "11", True))
    return tale.history()


def cancelled_with_a_file(tale: Tale) -> History:
    tale.insert("x")
    tale.claim("x").cancel("x").stop("x")
    tale.artifacts.append(Artifact("x", "w1", "outputs/x_1_0.txt", "11", True))
    return tale.history()


def file_of_nobody(tale: Tale) -> History:
    return tale.history(artifacts=(Artifact("nobody", "w1", "outputs/y", "11", True),))


def another_file(tale: Tale) -> History:
    tale.insert("x", makes=1)
    tale.claim("x").finish("x", "11")
    return tale.history(artifacts=tuple(replace(one, sha256="99") for one in tale.artifacts))


def not_what_was_asked_for(tale: Tale) -> History:
    tale.insert("x", makes=1)
    tale.claim("x").finish("x", "11")
    return tale.history(artifacts=tuple(replace(one, expected="99") for one in tale.artifacts))


def cut_off_file(tale: Tale) -> History:
    tale.insert("x", makes=1)
    tale.claim("x").finish("x", "11")
    return tale.history(artifacts=tuple(replace(one, decodable=False) for one in tale.artifacts))


def loss_without_a_cause(tale: Tale) -> History:
    one = tale.insert("x")
    one.counts["failures"] += 1
    return tale.claim("x").end("x", "retried", "Queued").claim("x").finish("x").history()


def _with_attempts(tale: Tale, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> History:
    one = tale.insert("x")
    tale.claim("x").lose("x").claim("x", "w2").finish("x")
    one.result = {**one.result, "attempts": change([dict(entry) for entry in one.result["attempts"]])}
    return tale.history()


def loss_is_not_on_the_row(tale: Tale) -> History:
    return _with_attempts(tale, lambda entries: [])


def loss_is_twice_on_the_row(tale: Tale) -> History:
    return _with_attempts(tale, lambda entries: entries * 2)


def row_gives_another_cause(tale: Tale) -> History:
    return _with_attempts(tale, lambda entries: [{**entries[0], "code": "engine.out_of_memory"}])


def row_blames_another_worker(tale: Tale) -> History:
    return _with_attempts(tale, lambda entries: [{**entries[0], "worker": "w2"}])


def row_calls_it_otherwise(tale: Tale) -> History:
    return _with_attempts(tale, lambda entries: [{**entries[0], "verb": "release"}])


def miscounted(name: str) -> Callable[[Tale], History]:
    def told(tale: Tale) -> History:
        tale.insert("x")
        tale.claim("x").lose("x").claim("x", "w2").finish("x")
        return tale.history(rows=(replace(tale.tasks["x"].row(), **{name: 7}),))

    told.__name__ = f"miscounted_{name}"
    return told


def three_losses(tale: Tale) -> History:
    one = tale.insert("x")
    for _ in range(3):
        one.counts["losses"] = 0
        tale.claim("x").lose("x")
    one.counts["losses"] = 3
    return tale.claim("x").finish("x").history()


def left(name: str) -> Callable[[Tale], History]:
    def told(tale: Tale) -> History:
        return tale.history(**{name: ("something",)})

    told.__name__ = f"left_{name}"
    return told


def grows(role: str) -> Callable[[Tale], History]:
    def told(tale: Tale) -> History:
        sizes = [100 if number < 30 else 100 + 5 * number for number in range(60)]
        memory = tuple(Sample(BEGAN + number, role, size << 20) for number, size in enumerate(sizes))
        return tale.history(lives=(Life("w1", BEGAN, memory=memory),))

    told.__name__ = f"{role}_grows"
    return told


WRONG: tuple[tuple[Rule, Callable[[Tale], History]], ...] = (
    (Rule.ACKNOWLEDGED, row_is_gone),
    (Rule.FINAL, row_never_ends),
    (Rule.COMPLETED_ONCE, completed_twice),
    (Rule.ONE_END, failed_after_completion),
    (Rule.ONE_END, end_without_an_event),
    (Rule.STALE, stale_completion),
    (Rule.STALE, stale_retry),
    (Rule.STALE, stale_release),
    (Rule.STALE, stale_progress),
    (Rule.STALE, stale_children),
    (Rule.STALE, completed_by_nobody),
    (Rule.STALE, stopped_though_nobody_cancelled),
    (Rule.ALONE, two_holders),
    (Rule.RISING, attempt_falls),
    (Rule.RISING, attempt_is_skipped),
    (Rule.ROBBED, robbed),
    (Rule.RESCUED, never_rescued),
    (Rule.RESCUED, never_taken_back),
    (Rule.RESCUED, frozen_for_ever_and_left_alone),
    (Rule.RESCUED, dead_process_unnoticed),
    (Rule.BACK_OFF, claimed_before_its_time),
    (Rule.CANCELLED, completed_though_cancelled),
    (Rule.CANCELLED, claimed_though_cancelled),
    (Rule.CANCELLED, cancellation_forgotten),
    (Rule.PUBLISHED, file_is_missing),
    (Rule.PUBLISHED, file_is_doubled),
    (Rule.PUBLISHED, too_few_are_told_of),
    (Rule.UNPUBLISHED, failed_with_a_file),
    (Rule.UNPUBLISHED, cancelled_with_a_file),
    (Rule.UNPUBLISHED, file_of_nobody),
    (Rule.CONTENT, another_file),
    (Rule.CONTENT, not_what_was_asked_for),
    (Rule.DECODABLE, cut_off_file),
    (Rule.CAUSES, loss_without_a_cause),
    (Rule.CAUSES, loss_is_not_on_the_row),
    (Rule.CAUSES, loss_is_twice_on_the_row),
    (Rule.CAUSES, row_gives_another_cause),
    (Rule.CAUSES, row_blames_another_worker),
    (Rule.CAUSES, row_calls_it_otherwise),
    (Rule.COUNTERS, miscounted("attempts")),
    (Rule.COUNTERS, miscounted("failures")),
    (Rule.COUNTERS, miscounted("losses")),
    (Rule.COUNTERS, miscounted("interruptions")),
    (Rule.COUNTERS, three_losses),
    (Rule.LEASE_LEFT, left("leases_left")),
    (Rule.SPOOL_LEFT, left("spools")),
    (Rule.ORPHAN, left("orphans")),
    (Rule.PORT_LEFT, left("open_ports")),
    (Rule.FILE_LEFT, left("leftover_files")),
    (Rule.MEMORY, grows("supervisor")),
    (Rule.MEMORY, grows("comfy")),
)


@pytest.mark.parametrize(("rule", "told"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_promise_is_found_and_named(rule: Rule, told: Callable[[Tale], History]) -> None:
    tale = lives(Tale())
    plain(tale)
    found = [violation for violation in check(told(tale)) if violation.rule == rule.value]
    assert found, "nothing of it was found"
    assert {violation.task_id for violation in found} & {"x", "gone", "nobody", None}, "somebody else is blamed"
    assert "a" not in {violation.task_id for violation in check(told(lives(Tale())))}


def test_every_rule_is_seen_to_bite() -> None:
    assert {rule for rule, _ in WRONG} == set(Rule)


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
