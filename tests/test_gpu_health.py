"""Whose fault a broken CUDA context is: a task that breaks it ends by itself, a machine that breaks all rests."""

from __future__ import annotations

import pytest

from wan2gp.supervisor.gpu_health import LEAVE_TO_OTHERS_S, GpuHealth, Standing

HALF = 100.0
ROOMS = {"wan": 2, "comfy": 2, "media": 1}


def blocked() -> GpuHealth:
    """After three broken runs of three tasks, at time 0."""
    subject = GpuHealth()
    for task in "abc":
        subject.broke("wan", task, 0.0, HALF)
    assert subject.standing is Standing.BLOCKED
    return subject


def half_open() -> GpuHealth:
    subject = blocked()
    assert subject.tick(HALF)
    return subject


def test_a_task_that_breaks_the_gpu_every_time_counts_only_against_itself() -> None:
    subject = GpuHealth()
    for _ in range(9):
        assert subject.broke("wan", "poison", 0.0, HALF) is None
        assert subject.standing is Standing.FIT
    subject.proved("wan")
    assert subject.broke("wan", "poison", 0.0, HALF) is None


def test_the_second_task_in_a_row_is_not_to_blame_and_the_third_blocks_the_machine() -> None:
    subject = GpuHealth()
    assert subject.broke("wan", "a", 0.0, HALF) is None
    assert subject.broke("wan", "b", 1.0, HALF) == LEAVE_TO_OTHERS_S
    assert subject.standing is Standing.FIT
    assert subject.broke("wan", "c", 2.0, HALF) == LEAVE_TO_OTHERS_S
    assert subject.standing is Standing.BLOCKED
    assert subject.half_open_at == 2.0 + HALF
    assert subject.slots(ROOMS, ()) == {}
    assert not subject.admits("wan", "late") and not subject.admits("media", "late")


def test_two_handlers_share_one_gpu() -> None:
    subject = GpuHealth()
    assert subject.broke("wan", "a", 0.0, HALF) is None
    assert subject.broke("comfy", "b", 0.0, HALF) is not None
    subject.broke("wan", "c", 0.0, HALF)
    assert subject.standing is Standing.BLOCKED


def test_a_success_between_forgives_its_own_handler_and_no_other() -> None:
    subject = GpuHealth()
    subject.broke("comfy", "a", 0.0, HALF)
    assert not subject.proved("media")
    assert subject.broke("comfy", "b", 0.0, HALF) is not None
    assert not subject.proved("comfy")  # nothing was blocked
    assert subject.broke("comfy", "c", 0.0, HALF) is None
    assert subject.standing is Standing.FIT


def test_a_block_half_opens_for_one_task_of_the_handler_that_broke() -> None:
    subject = blocked()
    assert not subject.tick(HALF - 1)
    assert subject.tick(HALF)
    assert subject.slots(ROOMS, ()) == {"wan": 1}
    assert subject.admits("wan", "one")
    assert subject.slots(ROOMS, ()) == {}
    assert not subject.admits("wan", "two")  # a claim that was on its way


def test_a_try_that_succeeds_opens_everything() -> None:
    subject = half_open()
    subject.admits("wan", "one")
    assert subject.proved("wan")
    assert subject.slots(ROOMS, ()) == ROOMS


def test_a_try_that_breaks_rests_again_and_the_next_one_is_given_another_task() -> None:
    subject = half_open()
    subject.admits("wan", "lease")
    assert subject.broke("wan", "c", HALF, HALF) == 2 * HALF  # it broke before
    subject.ended("lease")
    assert subject.standing is Standing.BLOCKED
    assert subject.tick(2 * HALF)
    assert subject.broke("wan", "d", 2 * HALF, HALF) == LEAVE_TO_OTHERS_S


def test_a_try_that_shows_nothing_lets_another_be_tried() -> None:
    """It was cancelled, or its input was bad."""
    subject = half_open()
    subject.admits("wan", "one")
    subject.ended("of another task")
    assert subject.slots(ROOMS, ()) == {}
    subject.ended("one")
    assert subject.slots(ROOMS, ()) == {"wan": 1}


def test_with_nothing_to_try_the_handlers_that_never_broke_go_on() -> None:
    subject = half_open()
    assert subject.slots(ROOMS, {"wan"}) == {"comfy": 2, "media": 1, "wan": 1}
    assert subject.admits("media", "any")
    assert subject.standing is Standing.HALF_OPEN
    assert subject.slots({"media": 1}, ()) == {}  # the suspect's fresh process is about to start
    assert subject.slots({"media": 1}, {"wan"}) == {"media": 1}  # it cannot run at all


def test_an_operators_restart_of_the_handler_is_a_fresh_beginning() -> None:
    subject = blocked()
    assert not subject.proved("media")
    assert subject.proved("wan")
    assert (subject.standing, subject.half_open_at) == (Standing.FIT, None)
    assert subject.broke("wan", "a", 0.0, HALF) is None


class OneWorker:
    """A worker with one handler on a queue that is served by age, with the usual waits; times are simulated."""

    RUN_S, FRESH_S, FAILURES_MAX = 20.0, 10.0, 3

    def __init__(self, breaks: list[str], fine: list[str]) -> None:
        self.gpu = GpuHealth()
        self.now = 0.0
        self.breaks = set(breaks)
        self.due = dict.fromkeys([*breaks, *fine], 0.0)
        self.failures = dict.fromkeys(breaks, 0)
        self.done: list[str] = []

    def live(self, until_s: float) -> None:
        while self.now < until_s and self.due:
            self.gpu.tick(self.now)
            task = next((name for name, when in self.due.items() if when <= self.now), None)
            if task is None or not self.gpu.slots({"wan": 1}, ()):
                self.now += 1.0
                continue
            assert self.gpu.admits("wan", f"{task}-{self.now}")
            self.now += self.RUN_S
            if task in self.breaks:
                self._broke(task)
            else:
                self.gpu.proved("wan")
                self.done.append(task)
                del self.due[task]

    def _broke(self, task: str) -> None:
        pause_s = self.gpu.broke("wan", task, self.now)
        self.failures[task] += pause_s is None
        if self.failures[task] == self.FAILURES_MAX:
            del self.due[task]
        else:
            self.due[task] = self.now + (2.0 if pause_s is None else pause_s)
        self.now += self.FRESH_S


@pytest.mark.parametrize("poison", [1, 2, 3, 4, 5])
def test_tasks_that_break_the_gpu_by_their_own_fault_do_not_excuse_each_other_for_ever(poison: int) -> None:
    worker = OneWorker([f"poison {number}" for number in range(poison)], ["good 1", "good 2"])
    worker.live(24 * 3600.0)
    assert worker.done == ["good 1", "good 2"]
    assert set(worker.failures.values()) == {worker.FAILURES_MAX} and not worker.due, "each ended by its own count"


def test_poison_alone_ends_too() -> None:
    worker = OneWorker(["a", "b", "c"], [])
    worker.live(24 * 3600.0)
    assert not worker.due


def test_a_gpu_that_is_dead_for_hours_fails_none_of_its_queue_but_the_first() -> None:
    worker = OneWorker([f"task {number}" for number in range(50)], [])
    worker.live(8 * 3600.0)
    assert [task for task, count in worker.failures.items() if count] == ["task 0"]
