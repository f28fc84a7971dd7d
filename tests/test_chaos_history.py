"""The books of `make chaos` bite: whatever could go wrong is planted in a history, and found by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.history import Artifact, Deed, History, Inserted, Life, Rule, Sample, check
from tests.chaos_tales import BEGAN, FAILED, Tale, lives


def plain(tale: Tale) -> None:
    """A bystander with which all went right."""
    tale.insert("a", makes=2)
    tale.claim("a").beat("a").wait(1).beat("a", 0.9).finish("a", "11", "22")


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


def never_taken_back_by_one_that_claims(tale: Tale) -> History:
    """It took its time to start; but then it claimed other tasks, and its own was forgotten."""
    tale.insert("x")
    tale.claim("x")
    tale.lives[:] = [Life("w1", BEGAN - 100, tale.now), Life("w1", tale.now + 0.2, able=tale.now + 12)]
    tale.wait(20).lose("x", "worker_died")
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
    (Rule.RESCUED, never_taken_back_by_one_that_claims),
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
