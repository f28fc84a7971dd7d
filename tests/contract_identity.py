"""What the queue contract says of a worker's id: one living instance has it, and who takes it over ends the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.contract_bench import Admin, in_contact, let_expire, row, take
from tests.turned_clock import turn_clock
from wan2gp.supervisor.queue import ClaimedTask, LeaseBeat, TaskQueue


def says(queue: TaskQueue, instance: str, *tasks: ClaimedTask, worker: str = "w", **more: Any) -> bool:
    """A heartbeat of one instance; whether it was told that the id is another's."""
    beats = [LeaseBeat(task.id, task.token, 0.5, "step") for task in tasks]
    reply = queue.heartbeat(worker, beats, 90, {"instance": instance, **more})
    assert not reply.superseded or (reply.cancelled, reply.lost) == ((), ())
    return reply.superseded


def metadata(admin: Admin) -> Any:
    found = admin.execute("SELECT metadata FROM workers WHERE id = 'w'").fetchone()
    assert found is not None
    return found[0]


class IdentityContract:
    def test_a_second_instance_of_a_living_worker_is_refused_and_changes_nothing(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        assert not says(task_queue, "first")
        before = admin.execute("SELECT * FROM workers").fetchall()
        assert says(task_queue, "second", version="2")
        assert says(task_queue, "second", version="2", takeover=False)
        assert admin.execute("SELECT * FROM workers").fetchall() == before
        assert not says(task_queue, "first") and not says(task_queue, "second", worker="other")

    def test_who_is_taken_over_is_told_and_keeps_nothing(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("comfy", {})
        assert not says(task_queue, "first")
        task = take(task_queue)
        assert not says(task_queue, "second", takeover=True)
        assert metadata(admin) == {"instance": "second"}
        let_expire(admin, task)
        assert says(task_queue, "first", task)
        assert row(task_queue, task.id)["lease"]["expires_in_s"] < 0 and row(task_queue, task.id)["phase"] is None
        assert not says(task_queue, "second") and says(task_queue, "first", task)

    def test_who_has_stopped_or_is_not_heard_of_any_more_gives_the_id_free(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        assert not says(task_queue, "first") and not says(task_queue, "first", state="stopped")
        assert not says(task_queue, "second", state="running") and says(task_queue, "first")
        turn_clock(admin, 91)
        assert not says(task_queue, "third")
        turn_clock(admin, -3600)  # heard of in an hour: the clock was set back
        assert not says(task_queue, "fourth")
        assert not says(task_queue, "fourth") and says(task_queue, "third")

    def test_of_several_that_come_at_once_one_gets_the_id(self, task_queue: TaskQueue, admin: Admin) -> None:
        def comes(name: str) -> bool:
            return not says(task_queue, name, state="running")

        names = [f"instance {n}" for n in range(6)]
        for _ in range(5):
            with ThreadPoolExecutor(len(names)) as pool:
                first = dict(zip(names, pool.map(comes, names), strict=True))
            holder = metadata(admin)["instance"]
            assert first[holder]
            assert [name for name in names if comes(name)] == [holder]
            assert not says(task_queue, holder, state="stopped")

    def test_a_worker_that_names_no_instance_shares_its_id(self, task_queue: TaskQueue) -> None:
        assert not says(task_queue, "first")
        assert not task_queue.heartbeat("w", [], 90, {}).superseded

    def test_a_lease_that_its_living_worker_does_not_know_costs_the_task_nothing(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        """The database was restored from a time at which that worker had it: nobody has died."""
        task_queue.enqueue("comfy", {})
        task = take(task_queue, worker="well")
        for worker in ("well", "alive"):
            in_contact(task_queue, admin, worker)
        let_expire(admin, task)
        assert task_queue.rescue("alive") == 1
        assert row(task_queue, task.id)["losses"] == 0 and row(task_queue, task.id)["interruptions"] == 1
        found = row(task_queue, task.id)
        assert (found["status"], found["attempts"]) == ("Queued", 0)
        assert found["error_message"].startswith("worker.lease_lost: the worker well is well and ")
        assert found["history"][0]["kind"] == "lease_forgotten"
        assert take(task_queue, worker="alive").attempt == 1

    def test_a_row_whose_claims_never_reach_its_living_worker_does_not_go_round_for_ever(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        task_id = task_queue.enqueue("comfy", {})
        for worker in ("well", "alive"):
            in_contact(task_queue, admin, worker)

        def expires() -> tuple[str, int, int]:
            let_expire(admin, take(task_queue, worker="well"))
            assert task_queue.rescue("alive") == 1
            found = row(task_queue, task_id)
            return found["status"], found["interruptions"], found["losses"]

        assert [expires() for _ in range(5)] == [
            ("Queued", 1, 0),
            ("Queued", 2, 0),
            ("Queued", 3, 0),
            ("Queued", 3, 1),
            ("Failed", 3, 2),
        ]
        reason = row(task_queue, task_id)["error_message"]
        assert reason.startswith("task.poisoned: ") and "died" not in reason
        task_queue.retry(task_id)
        assert expires() == ("Queued", 1, 0)

    def test_what_a_living_worker_ran_costs_nothing_when_its_name_is_taken_over(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        task_id = task_queue.enqueue("comfy", {})

        def taken_back() -> tuple[int, int, int, str]:
            assert task_queue.reclaim_own("w") == (task_id,)
            found = row(task_queue, task_id)
            assert found["status"] == "Queued" and found["error_message"].startswith("worker.lease_lost: ")
            return found["attempts"], found["interruptions"], found["losses"], found["history"][-1]["kind"]

        assert not says(task_queue, "first")
        take(task_queue)
        assert not says(task_queue, "second", takeover=True)
        assert taken_back() == (0, 1, 0, "taken_over")
        take(task_queue)  # and this one really dies
        assert taken_back() == (1, 1, 1, "worker_died")

    def test_a_task_under_whose_silent_worker_the_name_is_taken_over_counts_a_loss(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        task_id = task_queue.enqueue("comfy", {})
        assert not says(task_queue, "first")
        take(task_queue)
        admin.execute("UPDATE workers SET last_heartbeat = now() - interval '91 s'")
        assert not says(task_queue, "second", takeover=True)
        assert task_queue.reclaim_own("w") == (task_id,)
        assert row(task_queue, task_id)["losses"] == 1

    def test_a_task_that_ends_one_machine_after_the_other_is_not_spared_for_ever(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        """Each next machine takes the name at once, while the last heartbeat is fresh."""
        task_id = task_queue.enqueue("comfy", {})
        assert not says(task_queue, "machine 0")
        for n in range(1, 6):
            take(task_queue)
            assert not says(task_queue, f"machine {n}", takeover=True)
            assert task_queue.reclaim_own("w") == (task_id,)
        found = row(task_queue, task_id)
        assert (found["status"], found["interruptions"], found["losses"]) == ("Failed", 3, 2)
