"""Tasks that wait for tasks, by the contract: dependants, parents and children."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.contract_bench import Admin, beat, claim, end, in_contact, row, status, take, until_blocked
from wan2gp.supervisor.queue import (
    ClaimedTask,
    QueueRefused,
    SpawnedChild,
    TaskQueue,
    Verb,
)


class DependencyContract:
    def test_a_dependant_waits_for_the_end_of_what_it_names(self, task_queue: TaskQueue, admin: Admin) -> None:
        first = task_queue.enqueue("comfy", {})
        admin.execute(
            "INSERT INTO tasks (task_type, params, status, dependant_on) VALUES ('comfy', '{}', 'queued', %s)", (first,)
        )
        (task,) = claim(task_queue, limit=5)
        assert task.id == first
        end(task_queue, task, Verb.RELEASE)
        (task,) = claim(task_queue, limit=5)
        end(task_queue, task)
        assert len(claim(task_queue, limit=5)) == 1

    def test_a_join_waits_for_all_its_parents(self, task_queue: TaskQueue) -> None:
        parents = [task_queue.enqueue("part", {}) for _ in range(3)]
        join = task_queue.enqueue("join", {}, depends_on=parents)
        assert {item["id"] for item in row(task_queue, join)["depends_on"]} == set(parents)
        tasks = claim(task_queue, "part", limit=3)
        with ThreadPoolExecutor(3) as pool:
            for reply in pool.map(lambda task: end(task_queue, task), tasks[:2]):
                assert reply.accepted
        assert claim(task_queue, "join") == []
        end(task_queue, tasks[2])
        assert take(task_queue, "join").id == join

    def test_parents_that_end_at_once_release_the_join_exactly_once(self, task_queue: TaskQueue) -> None:
        for _ in range(5):
            parents = [task_queue.enqueue("part", {}) for _ in range(6)]
            join = task_queue.enqueue("join", {}, depends_on=parents)
            with ThreadPoolExecutor(6) as pool:
                list(pool.map(lambda task: end(task_queue, task), claim(task_queue, "part", limit=6)))
            assert take(task_queue, "join").id == join

    def test_what_depends_on_a_finished_task_is_claimable_at_once(self, task_queue: TaskQueue) -> None:
        first = task_queue.enqueue("comfy", {})
        end(task_queue, take(task_queue))
        second = task_queue.enqueue("comfy", {}, depends_on=[first])
        assert take(task_queue).id == second

    @pytest.mark.parametrize("how", ["fail", "cancel", "delete", "by hand", "lost"])
    def test_the_dependants_of_a_task_without_a_result_end_too_all_the_way_down(
        self, task_queue: TaskQueue, admin: Admin, how: str
    ) -> None:
        first = task_queue.enqueue("comfy", {}, max_attempts=1)
        chain = [first]
        for _ in range(3):
            chain.append(task_queue.enqueue("comfy", {}, depends_on=[chain[-1]]))
        task = take(task_queue)
        ways: dict[str, Callable[[], object]] = {
            "fail": lambda: end(task_queue, task, Verb.RETRY, error_message="a.b: why"),
            "cancel": lambda: task_queue.cancel(first),
            "delete": lambda: admin.execute("DELETE FROM tasks WHERE id = %s", (first,)),
            "by hand": lambda: admin.execute("UPDATE tasks SET status = 'Failed' WHERE id = %s", (first,)),
            "lost": lambda: [end(task_queue, task, Verb.LOSS), end(task_queue, take(task_queue), Verb.LOSS)],
        }
        ways[how]()
        for before, task_id in zip(chain, chain[1:], strict=False):
            found = row(task_queue, task_id)
            assert found["status"] == "Failed"
            assert found["error_message"].startswith("task.dependency_failed: ") and before in found["error_message"]
        assert claim(task_queue, limit=9) == []

    def test_what_is_made_to_wait_for_a_task_that_ends_at_that_moment_is_not_forgotten(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        first = task_queue.enqueue("comfy", {})
        with ThreadPoolExecutor(1) as pool:
            with admin.transaction():
                admin.execute("UPDATE tasks SET status = 'Complete' WHERE id = %s", (first,))
                late = pool.submit(task_queue.enqueue, "comfy", {}, depends_on=[first])
                until_blocked(admin, late)
            task_id = late.result(30)
            assert take(task_queue).id == task_id

    def test_what_depends_on_a_failed_task_ends_at_once(self, task_queue: TaskQueue) -> None:
        first = task_queue.enqueue("comfy", {})
        end(task_queue, take(task_queue), Verb.FAIL, error_message="a.b: why")
        late = task_queue.enqueue("comfy", {}, depends_on=[first])
        assert "a.b: why" in row(task_queue, late)["error_message"]

    def test_a_chain_of_three_hundred_ends_in_one_go(self, task_queue: TaskQueue, admin: Admin) -> None:
        ids = [str(uuid.uuid4()) for _ in range(300)]
        with admin.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO tasks (id, task_type, params, dependant_on) VALUES (%s, 'comfy', '{}', %s)",
                list(zip(ids, [None, *ids], strict=False)),
            )
        task_queue.cancel(ids[0])
        counts = admin.execute("SELECT count(*) FROM tasks WHERE status = 'Failed' AND task_type = 'comfy'").fetchone()
        assert counts == (299,)

    def test_a_task_may_be_inserted_before_the_one_that_it_waits_for(self, task_queue: TaskQueue, admin: Admin) -> None:
        later = str(uuid.uuid4())
        early = task_queue.enqueue("comfy", {}, depends_on=[later])
        assert claim(task_queue) == []
        admin.execute("INSERT INTO tasks (id, task_type, params) VALUES (%s, 'comfy', '{}')", (later,))
        task = take(task_queue)
        assert task.id == later
        end(task_queue, task)
        assert take(task_queue).id == early

    def test_a_task_that_waits_for_nobody_ends_after_ten_minutes(self, task_queue: TaskQueue, admin: Admin) -> None:
        lonely = task_queue.enqueue("comfy", {}, depends_on=[str(uuid.uuid4())])
        task_queue.rescue("w")
        assert status(task_queue, lonely) == "Queued"
        admin.execute("UPDATE task_dependencies SET missing_since = missing_since - interval '11 minutes'")
        task_queue.rescue("w")
        assert "does not exist" in row(task_queue, lonely)["error_message"]

    def test_after_a_retry_of_both_the_dependant_waits_again(self, task_queue: TaskQueue) -> None:
        first = task_queue.enqueue("comfy", {})
        second = task_queue.enqueue("comfy", {}, depends_on=[first])
        end(task_queue, take(task_queue), Verb.FAIL)
        assert task_queue.retry(second) == "Failed"
        assert status(task_queue, second) == "Failed", "what it waits for has still failed"
        assert task_queue.retry(first) == "Failed" and task_queue.retry(second) == "Failed"
        (task,) = claim(task_queue, limit=5)
        assert task.id == first
        end(task_queue, task)
        assert take(task_queue).id == second

    def test_a_circle_is_refused(self, task_queue: TaskQueue, admin: Admin) -> None:
        first = task_queue.enqueue("comfy", {})
        second = task_queue.enqueue("comfy", {}, depends_on=[first])
        with pytest.raises(psycopg.errors.CheckViolation, match="wait for itself"):
            admin.execute("UPDATE tasks SET dependant_on = %s WHERE id = %s", (second, first))
        with pytest.raises(psycopg.errors.CheckViolation, match="wait for itself"):
            admin.execute("INSERT INTO task_dependencies (task_id, depends_on) VALUES (%s, %s)", (first, first))
        assert take(task_queue).id == first

    def test_a_circle_that_only_closes_when_both_are_queued_again_ends_one_of_them(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        first = task_queue.enqueue("comfy", {})
        second = task_queue.enqueue("comfy", {}, depends_on=[first])
        for _ in range(2):
            end(task_queue, take(task_queue))
        admin.execute("UPDATE tasks SET dependant_on = %s WHERE id = %s", (second, first))
        assert task_queue.retry(first) == "Complete" and status(task_queue, first) == "Queued"
        assert task_queue.retry(second) == "Complete" and status(task_queue, second) == "Queued"
        end(task_queue, take(task_queue), Verb.FAIL)
        task_queue.retry(first)
        assert "wait for itself" in row(task_queue, first)["error_message"]

    def test_a_dependency_that_is_changed_by_hand_counts(self, task_queue: TaskQueue, admin: Admin) -> None:
        first, second = task_queue.enqueue("a", {}), task_queue.enqueue("b", {})
        third = task_queue.enqueue("c", {}, depends_on=[first])
        admin.execute("UPDATE tasks SET dependant_on = %s WHERE id = %s", (second, third))
        end(task_queue, take(task_queue, "a"))
        assert claim(task_queue, "c") == []
        admin.execute("UPDATE tasks SET dependant_on = NULL WHERE id = %s", (third,))
        assert take(task_queue, "c").id == third

    def test_a_running_task_that_was_told_to_wait_does_so_when_it_comes_back(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        first, second = task_queue.enqueue("a", {}), task_queue.enqueue("b", {})
        running = take(task_queue, "b")
        admin.execute("UPDATE tasks SET dependant_on = %s WHERE id = %s", (first, second))
        task_queue.cancel(first)
        assert status(task_queue, second) == "In Progress"
        end(task_queue, running, Verb.RELEASE)
        assert status(task_queue, second) == "Failed", "it would wait for ever"

    def test_an_enqueue_that_names_no_task_id_is_refused(self, task_queue: TaskQueue) -> None:
        with pytest.raises(QueueRefused, match="must be a task id"):
            task_queue.enqueue("comfy", {}, depends_on=["nonsense"])


SEGMENTS = (
    SpawnedChild("seg", {"n": 0}),
    SpawnedChild("seg", {"n": 1}),
    SpawnedChild("stitch", {}, depends_on=(0, 1)),
    SpawnedChild("thumb", {}, depends_on=(0,)),
)
"""Two segments, their join, and one that nobody waits for either: the last of the sinks is the final one."""


class SpawnContract:
    @staticmethod
    def parked(queue: TaskQueue, children: Sequence[SpawnedChild]) -> tuple[ClaimedTask, tuple[str, ...]]:
        queue.enqueue("travel", {}, priority=7)
        parent = take(queue, "travel")
        return parent, queue.spawn(parent.id, parent.token, children)

    def test_a_parent_completes_with_the_final_artifact(self, task_queue: TaskQueue, admin: Admin) -> None:
        parent, ids = self.parked(task_queue, SEGMENTS[:3])
        found = row(task_queue, parent.id)
        assert (found["status"], found["lease"], found["worker_id"]) == ("In Progress", None, None)
        assert [child["id"] for child in found["children"]] == list(ids)
        for n, task in enumerate(claim(task_queue, "seg", "stitch", limit=9)):
            assert (task.id, task.params, row(task_queue, task.id)["priority"]) == (ids[n], {"n": n}, 7)
            assert end(task_queue, task, output_location=f"/seg{n}").accepted
        assert status(task_queue, parent.id) == "In Progress"
        stitch = take(task_queue, "stitch")
        end(task_queue, stitch, output_location="/whole.mp4", result_data={"artifacts": [{"name": "whole.mp4"}]})
        found = row(task_queue, parent.id)
        assert (found["status"], found["output_location"]) == ("Complete", "/whole.mp4")
        assert found["result_data"] == {"artifacts": [{"name": "whole.mp4"}], "children": list(ids)}

    def test_the_final_artifact_is_not_that_of_whoever_ends_last(self, task_queue: TaskQueue) -> None:
        parent, _ids = self.parked(task_queue, [SEGMENTS[0], SpawnedChild("thumb", {}), SpawnedChild("final", {})])
        for kind in ("final", "seg", "thumb"):
            end(task_queue, take(task_queue, kind), output_location=f"/{kind}")
        assert row(task_queue, parent.id)["output_location"] == "/final"

    def test_spawn_may_be_repeated_and_the_parents_token_is_spent(self, task_queue: TaskQueue) -> None:
        parent, ids = self.parked(task_queue, SEGMENTS)
        assert task_queue.spawn(parent.id, parent.token, SEGMENTS) == ids
        assert len(task_queue.tasks(limit=50, status="Queued", task_type="seg")) == 2
        assert beat(task_queue, parent) == ([], [parent.id])
        assert not end(task_queue, parent).accepted
        assert claim(task_queue, "travel") == []

    def test_who_has_lost_the_lease_spawns_nothing(self, task_queue: TaskQueue) -> None:
        task_queue.enqueue("travel", {})
        parent = take(task_queue, "travel")
        end(task_queue, parent, Verb.RELEASE)
        take(task_queue, "travel")
        with pytest.raises(QueueRefused) as refused:
            task_queue.spawn(parent.id, parent.token, SEGMENTS)
        assert refused.value.code == "W2001"
        assert claim(task_queue, "seg") == []

    @pytest.mark.parametrize("children", [(), (SpawnedChild("a", {}, depends_on=(0,)),)])
    def test_children_that_make_no_sense_are_refused(
        self, task_queue: TaskQueue, children: Sequence[SpawnedChild]
    ) -> None:
        task_queue.enqueue("travel", {})
        parent = take(task_queue, "travel")
        with pytest.raises(QueueRefused):
            task_queue.spawn(parent.id, parent.token, children)
        assert end(task_queue, parent).accepted

    def test_a_child_that_fails_for_good_fails_the_parent_and_stops_what_has_not_started(
        self, task_queue: TaskQueue
    ) -> None:
        parent, ids = self.parked(task_queue, SEGMENTS)
        first, second = claim(task_queue, "seg", limit=2)
        assert end(task_queue, first, Verb.RETRY).status == "Queued"
        assert status(task_queue, parent.id) == "In Progress"
        end(task_queue, take(task_queue, "seg"), Verb.FAIL, error_message="a.b: why")
        found = row(task_queue, parent.id)
        assert found["status"] == "Failed" and "a.b: why" in found["error_message"]
        assert [status(task_queue, child) for child in ids] == ["Failed", "In Progress", "Cancelled", "Cancelled"]
        assert end(task_queue, second, output_location="/kept").accepted
        assert status(task_queue, parent.id) == "Failed"

    @pytest.mark.parametrize("by_hand", [True, False])
    def test_cancelling_a_parked_parent_cancels_its_children(
        self, task_queue: TaskQueue, admin: Admin, by_hand: bool
    ) -> None:
        parent, ids = self.parked(task_queue, SEGMENTS)
        running = take(task_queue, "seg")
        if by_hand:
            admin.execute("UPDATE tasks SET status = 'Cancelled' WHERE id = %s", (parent.id,))
        else:
            assert task_queue.cancel(parent.id) == "In Progress"
        assert {status(task_queue, child) for child in ids} == {"Cancelled"}
        assert beat(task_queue, running) == ([running.id], [])
        assert not end(task_queue, running).accepted
        assert status(task_queue, parent.id) == "Cancelled"

    @pytest.mark.parametrize("how", ["cancel", "delete"])
    def test_a_child_that_is_taken_away_fails_the_parent(self, task_queue: TaskQueue, admin: Admin, how: str) -> None:
        parent, ids = self.parked(task_queue, SEGMENTS)
        if how == "cancel":
            task_queue.cancel(ids[1])
        else:
            admin.execute("DELETE FROM tasks WHERE id = %s", (ids[1],))
        assert status(task_queue, parent.id) == "Failed"
        assert claim(task_queue, "seg", "stitch", "thumb") == []

    def test_a_circle_through_a_parent_and_its_child_is_refused(self, task_queue: TaskQueue, admin: Admin) -> None:
        """A child was made to wait for a task that waited for the child's parent, and all three waited for ever."""
        parent, (child,) = self.parked(task_queue, [SpawnedChild("seg", {})])
        after = task_queue.enqueue("after", {}, depends_on=[parent.id])
        for circle in (after, parent.id):
            with pytest.raises(psycopg.errors.CheckViolation, match="wait for itself"):
                admin.execute("UPDATE tasks SET dependant_on = %s WHERE id = %s", (circle, child))
        end(task_queue, take(task_queue, "seg"))
        assert take(task_queue, "after").id == after

    def test_a_parent_within_a_parent_completes_both(self, task_queue: TaskQueue) -> None:
        outer, _ = self.parked(task_queue, [SpawnedChild("inner", {})])
        inner = take(task_queue, "inner")
        task_queue.spawn(inner.id, inner.token, [SpawnedChild("leaf", {})])
        end(task_queue, take(task_queue, "leaf"), output_location="/leaf")
        assert [row(task_queue, task.id)["output_location"] for task in (inner, outer)] == ["/leaf", "/leaf"]

    def test_the_last_two_children_that_end_at_once_complete_the_parent(self, task_queue: TaskQueue) -> None:
        for _ in range(8):
            parent, _ids = self.parked(task_queue, SEGMENTS[:2])
            gate = threading.Barrier(2)

            def finish(task: ClaimedTask, gate: threading.Barrier = gate) -> bool:
                gate.wait(10)
                return end(task_queue, task).accepted

            with ThreadPoolExecutor(2) as pool:
                assert all(pool.map(finish, claim(task_queue, "seg", limit=2)))
            assert status(task_queue, parent.id) == "Complete"

    def test_the_last_two_children_completed_by_hand_at_once_complete_the_parent(
        self, task_queue: TaskQueue, admin: Admin, database: str
    ) -> None:
        parent, (one, two) = self.parked(task_queue, SEGMENTS[:2])
        done = "UPDATE tasks SET status = 'Complete', output_location = '/o' WHERE id = %s"
        with psycopg.connect(database, autocommit=True) as other, ThreadPoolExecutor(1) as pool:
            with admin.transaction():
                admin.execute(done, (one,))
                second = pool.submit(other.execute, done, (two,))
                until_blocked(admin, second)
            second.result(30)
        assert status(task_queue, parent.id) == "Complete"

    def test_cancelling_the_parent_while_children_end_hangs_nobody(self, task_queue: TaskQueue) -> None:
        for _ in range(5):
            parent, ids = self.parked(task_queue, [SpawnedChild("seg", {})] * 6)
            tasks = claim(task_queue, "seg", limit=6)
            with ThreadPoolExecutor(4) as pool:
                cancelled = pool.submit(task_queue.cancel, parent.id)
                replies = list(pool.map(lambda task: end(task_queue, task), tasks))
                cancelled.result()
            ended = [status(task_queue, child) for child in ids]
            assert [reply.accepted for reply in replies] == [one == "Complete" for one in ended]
            assert status(task_queue, parent.id) == ("Complete" if set(ended) == {"Complete"} else "Cancelled")

    def test_a_parent_that_is_queued_again_spawns_anew_and_forgets_the_old_children(
        self, task_queue: TaskQueue
    ) -> None:
        parent, old = self.parked(task_queue, SEGMENTS[:2])
        task_queue.cancel(parent.id)
        assert task_queue.retry(parent.id) == "Cancelled"
        again = take(task_queue, "travel")
        new = task_queue.spawn(again.id, again.token, SEGMENTS[:1])
        assert not set(new) & set(old)
        end(task_queue, take(task_queue, "seg"), output_location="/new")
        assert row(task_queue, parent.id)["output_location"] == "/new"

    def test_a_parked_parent_is_left_alone_by_rescue_and_by_its_workers_return(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        parent, _ids = self.parked(task_queue, SEGMENTS)
        admin.execute("UPDATE task_leases SET expires_at = now() - interval '1 day', lease_s = 0.001")
        in_contact(task_queue, admin, "alive")
        assert task_queue.rescue("alive") == 0 and task_queue.reclaim_own("w") == ()
        assert status(task_queue, parent.id) == "In Progress"
