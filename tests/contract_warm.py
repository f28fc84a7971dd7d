"""Preference in the queue contract: what needs nothing loaded goes first, and whom it may pass."""

from __future__ import annotations

import uuid

import pytest

from tests.contract_bench import Admin
from wan2gp.supervisor.queue import ClaimReply, TaskQueue, Warm

LOADED = Warm({"t2v": "small", "i2v": "large"}, "small", ("comfy",))
"""The engine of t2v and i2v has a small model loaded, which ComfyUI would have to do without."""


def preferring(queue: TaskQueue, *types: str, prefer: Warm = LOADED, limit: int = 1, worker: str = "w") -> ClaimReply:
    queue.check()
    assert queue.prefers
    return queue.claim(uuid.uuid4().hex, worker, types or ("t2v", "i2v", "comfy", "stitch"), limit, 90, [prefer])


def order(queue: TaskQueue, count: int, prefer: Warm = LOADED) -> list[tuple[str, int | None]]:
    """(id, how many it passed) of claim after claim."""
    replies = [preferring(queue, prefer=prefer) for _ in range(count)]
    return [(reply.tasks[0].id, reply.passed) for reply in replies]


class WarmContract:
    """What a claim prefers, when it is told what is loaded."""

    def test_a_task_of_the_loaded_model_goes_before_older_ones_of_others(self, task_queue: TaskQueue) -> None:
        other = task_queue.enqueue("i2v", {})
        engine = task_queue.enqueue("comfy", {})
        named = task_queue.enqueue("i2v", {"model": "small"})
        by_type = task_queue.enqueue("t2v", {"model": ""})
        assert order(task_queue, 4) == [(named, 1), (by_type, 1), (other, 0), (engine, 0)]

    def test_what_was_queued_first_of_the_loaded_model_passes_nobody(self, task_queue: TaskQueue) -> None:
        first, second = task_queue.enqueue("t2v", {}), task_queue.enqueue("i2v", {})
        assert order(task_queue, 2) == [(first, 0), (second, 0)]

    def test_a_model_that_the_row_names_is_not_that_of_its_type(self, task_queue: TaskQueue) -> None:
        other, small = task_queue.enqueue("t2v", {"model": "large"}), task_queue.enqueue("t2v", {})
        assert order(task_queue, 2) == [(small, 1), (other, 0)]

    def test_priority_is_never_passed(self, task_queue: TaskQueue) -> None:
        small = task_queue.enqueue("t2v", {})
        urgent = task_queue.enqueue("comfy", {}, priority=1)
        assert order(task_queue, 2) == [(urgent, 0), (small, 0)]

    def test_who_needs_no_gpu_is_never_passed(self, task_queue: TaskQueue) -> None:
        stitch = task_queue.enqueue("stitch", {})
        large, small = task_queue.enqueue("i2v", {}), task_queue.enqueue("t2v", {})
        assert order(task_queue, 3) == [(stitch, 0), (small, 1), (large, 0)]

    def test_an_engine_that_names_no_model_is_warm_for_all_it_takes(self, task_queue: TaskQueue) -> None:
        small, graph = task_queue.enqueue("t2v", {}), task_queue.enqueue("comfy", {"model": "its own"})
        assert order(task_queue, 2, Warm({"comfy": None}, None, ("t2v", "i2v"))) == [(graph, 1), (small, 0)]

    def test_only_the_types_that_were_asked_for_are_preferred(self, task_queue: TaskQueue) -> None:
        large, _small = task_queue.enqueue("i2v", {}), task_queue.enqueue("t2v", {})
        assert [task.id for task in preferring(task_queue, "i2v").tasks] == [large]
        assert preferring(task_queue, "i2v").tasks == ()

    def test_what_cannot_be_claimed_yet_is_not_preferred(self, task_queue: TaskQueue) -> None:
        large = task_queue.enqueue("i2v", {})
        task_queue.enqueue("t2v", {}, run_after_s=600)
        task_queue.enqueue("t2v", {}, depends_on=[large])
        assert order(task_queue, 1) == [(large, 0)]

    def test_several_at_once_say_how_many_went_first(self, task_queue: TaskQueue) -> None:
        large = task_queue.enqueue("i2v", {})
        small = {task_queue.enqueue("t2v", {}) for _ in range(2)}
        reply = preferring(task_queue, limit=5)
        assert {task.id for task in reply.tasks} == {large, *small} and reply.passed == 2

    def test_two_workers_of_one_model_take_two_tasks_of_it(self, task_queue: TaskQueue, admin: Admin) -> None:
        """Each was to have the first of them; the one that came second went for another model instead."""
        task_queue.enqueue("i2v", {})
        first, second = task_queue.enqueue("t2v", {}), task_queue.enqueue("t2v", {})
        with admin.transaction():
            admin.execute("SELECT FROM tasks WHERE id = %s FOR NO KEY UPDATE", (first,))
            assert order(task_queue, 1) == [(second, 1)]

    def test_a_repeat_gives_the_same_rows_and_forgets_whom_they_passed(self, task_queue: TaskQueue) -> None:
        task_queue.check()
        task_queue.enqueue("i2v", {})
        task_queue.enqueue("t2v", {})
        first, again = (task_queue.claim("same", "w", ["t2v", "i2v"], 1, 90, [LOADED]) for _ in range(2))
        assert again.tasks == first.tasks and (first.passed, again.passed) == (1, None)

    @pytest.mark.parametrize("stored", ["7", "[]", "null", '"no json"', '{"model": 7}', '{"model": {"a": 1}}'])
    def test_params_of_any_shape_are_no_model(self, task_queue: TaskQueue, admin: Admin, stored: str) -> None:
        large = task_queue.enqueue("i2v", {})
        admin.execute("INSERT INTO tasks (task_type, params) VALUES ('odd', %s::jsonb)", (stored,))
        assert preferring(task_queue, "i2v", "odd", prefer=Warm({"odd": None}, "small", ("i2v",))).tasks[0].id == large

    def test_params_that_arrived_as_a_string_name_their_model(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("t2v", {"model": "large"})
        admin.execute("""INSERT INTO tasks (task_type, params) VALUES ('i2v', '"{\\"model\\": \\"small\\"}"')""")
        reply = preferring(task_queue)
        assert reply.tasks[0].params == {"model": "small"} and reply.passed == 1

    def test_megabytes_of_params_are_not_read_for_the_sake_of_a_model(self, task_queue: TaskQueue) -> None:
        large = task_queue.enqueue("i2v", {})
        noise = "".join(uuid.uuid4().hex for _ in range(5000))
        small = task_queue.enqueue("t2v", {"model": "small", "noise": noise})
        assert order(task_queue, 2) == [(large, 0), (small, 0)]

    def test_a_worker_that_prefers_nothing_goes_by_age(self, task_queue: TaskQueue) -> None:
        ids = [task_queue.enqueue("i2v", {}), task_queue.enqueue("t2v", {})]
        replies = [task_queue.claim(uuid.uuid4().hex, "w", ["i2v", "t2v"], 1, 90) for _ in ids]
        assert [reply.tasks[0].id for reply in replies] == ids
        assert [reply.passed for reply in replies] == [None, None]
