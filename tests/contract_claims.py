"""Claims and leases of the queue contract: who has a task, and until when."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.contract_bench import (
    SPEC_INSERT,
    Admin,
    beat,
    claim,
    end,
    event_names,
    in_contact,
    let_expire,
    row,
    status,
    take,
    until_blocked,
)
from wan2gp.supervisor.queue import (
    FinishReply,
    TaskQueue,
)


class ClaimContract:
    def test_the_insert_of_the_spec_is_claimed_as_it_is_written(self, task_queue: TaskQueue, admin: Admin) -> None:
        admin.execute(SPEC_INSERT)
        task = take(task_queue)
        assert (task.task_type, task.params, task.attempt, task.max_attempts) == ("comfy", {"workflow": {}}, 1, 3)
        assert len(task.lease_id) >= 8 and int(task.lease_id, 16) >= 0
        assert task.token != task.lease_id and task.token not in repr(task)
        found = row(task_queue, task.id)
        assert (found["status"], found["worker_id"], found["attempts"]) == ("In Progress", "w", 1)
        assert found["generation_started_at"] is not None
        assert task.token not in str(found)

    @pytest.mark.parametrize("written", ["Queued", "queued", "QUEUED", None])
    def test_a_status_in_any_case_is_folded(self, task_queue: TaskQueue, admin: Admin, written: str | None) -> None:
        if written == "QUEUED" and admin.execute("SELECT to_regtype('task_status')").fetchone() != (None,):
            pytest.skip("an enum knows its own values only")
        admin.execute("INSERT INTO tasks (task_type, params, status) VALUES ('comfy', '{}', %s)", (written,))
        assert take(task_queue).params == {}

    @pytest.mark.parametrize(
        ("stored", "read"),
        [('"{\\"a\\": 1}"', {"a": 1}), ('"[1]"', [1]), ('"not json"', "not json"), ("[]", []), ("7", 7)],
    )
    def test_params_that_arrived_as_a_string_are_read_as_what_is_in_it(
        self, task_queue: TaskQueue, admin: Admin, stored: str, read: Any
    ) -> None:
        admin.execute("INSERT INTO tasks (task_type, params) VALUES ('comfy', %s::jsonb)", (stored,))
        assert take(task_queue).params == read

    def test_the_higher_priority_comes_first_then_the_older(self, task_queue: TaskQueue) -> None:
        ids = [
            task_queue.enqueue("comfy", {}),
            task_queue.enqueue("wan", {}),
            task_queue.enqueue("wan", {}, priority=5),
        ]
        order = [take(task_queue, "comfy", "wan").id for _ in ids]
        assert order == [ids[2], ids[0], ids[1]]

    def test_only_the_types_that_were_asked_for(self, task_queue: TaskQueue) -> None:
        wanted = task_queue.enqueue("wan", {})
        task_queue.enqueue("comfy", {})
        assert [task.id for task in claim(task_queue, "wan", "other", limit=10)] == [wanted]
        assert claim(task_queue, "wan") == []

    def test_several_at_once_in_order(self, task_queue: TaskQueue) -> None:
        ids = [task_queue.enqueue("comfy", {"n": n}) for n in range(4)]
        assert [task.id for task in claim(task_queue, "comfy", limit=3)] == ids[:3]

    def test_a_claim_whose_answer_was_lost_gives_the_same_rows_again(self, task_queue: TaskQueue) -> None:
        for _ in range(3):
            task_queue.enqueue("comfy", {})
        first = task_queue.claim("lost", "w", ["comfy"], 2, 90)
        assert task_queue.claim("lost", "w", ["comfy"], 2, 90).tasks == first.tasks
        assert [row(task_queue, task.id)["attempts"] for task in first.tasks] == [1, 1]
        assert len(claim(task_queue, limit=5)) == 1

    def test_a_claim_repeated_while_it_still_runs_takes_nothing_more(self, task_queue: TaskQueue, admin: Admin) -> None:
        """Its caller had given up waiting; the server had not."""
        first, _second = task_queue.enqueue("comfy", {}), task_queue.enqueue("comfy", {})
        with ThreadPoolExecutor(1) as pool:
            with admin.transaction():
                admin.execute("SELECT wan2gp_claim('same', 'w', ARRAY['comfy'], 1, 90)")
                repeat = pool.submit(task_queue.claim, "same", "w", ["comfy"], 1, 90)
                until_blocked(admin, repeat)
            assert [task.id for task in repeat.result(30).tasks] == [first]

    def test_a_claim_id_is_spent_when_its_task_has_ended(self, task_queue: TaskQueue) -> None:
        first, second = task_queue.enqueue("comfy", {}), task_queue.enqueue("comfy", {})
        (task,) = task_queue.claim("x", "w", ["comfy"], 1, 90).tasks
        assert task.id == first
        end(task_queue, task)
        assert [task.id for task in task_queue.claim("x", "w", ["comfy"], 1, 90).tasks] == [second]

    def test_run_after_holds_a_row_back_and_says_when(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_id = task_queue.enqueue("comfy", {}, run_after_s=60)
        reply = task_queue.claim("a", "w", ["comfy"], 1, 90)
        assert reply.tasks == () and reply.next_due_s is not None and 50 < reply.next_due_s <= 60
        admin.execute("UPDATE tasks SET run_after = now() - interval '1 s'")
        assert take(task_queue).id == task_id
        assert task_queue.claim("b", "w", ["comfy"], 1, 90).next_due_s is None

    def test_eight_threads_claim_three_hundred_rows_each_exactly_once(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        admin.execute("INSERT INTO tasks (task_type, params) SELECT 'comfy', '{}' FROM generate_series(1, 300)")

        def work(worker: str) -> list[str]:
            done = []
            while tasks := claim(task_queue, "comfy", "wan", worker=worker, limit=2):
                for task in tasks:
                    assert end(task_queue, task).accepted
                    done.append(task.id)
            return done

        with ThreadPoolExecutor(8) as pool:
            done = [task_id for ids in pool.map(work, [f"w{n}" for n in range(8)]) for task_id in ids]
        assert len(done) == len(set(done)) == 300
        counts = admin.execute(
            "SELECT count(*), min(attempts), max(attempts) FROM tasks WHERE status = 'Complete' AND task_type = 'comfy'"
        ).fetchone()
        assert counts == (300, 1, 1)


class HeartbeatContract:
    def test_progress_is_stored_and_the_row_is_touched(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        admin.execute("UPDATE tasks SET updated_at = now() - interval '1 hour'")
        assert beat(task_queue, task, progress=0.1, phase="load") == ([], [])
        assert beat(task_queue, task, progress=0.6, phase="step", detail="12/20") == ([], [])
        found = row(task_queue, task.id)
        assert (found["progress"], found["phase"], found["detail"]) == (0.6, "step", "12/20")
        assert admin.execute("SELECT updated_at > now() - interval '1 minute' FROM tasks").fetchone() == (True,)
        assert event_names(task_queue, task.id)[2:] == ["progress", "progress"]
        assert beat(task_queue, task, progress=0.61, phase="step") == ([], [])
        assert len(event_names(task_queue, task.id)) == 4

    def test_it_moves_the_expiry(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        let_expire(admin, task)
        beat(task_queue, task)
        assert row(task_queue, task.id)["lease"]["expires_in_s"] > 80

    def test_the_workers_row_is_written_and_foreign_metadata_survives(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        admin.execute(
            "INSERT INTO workers (id, instance_type, status, metadata) VALUES ('w', 'H100', 'spawning', '{\"pod\": 1}')"
        )
        task_queue.heartbeat("w", [], 90, {"version": "1"})
        task_queue.heartbeat("w", [], 90, {"version": "2"})
        task_queue.heartbeat("new", [], 90, {})
        rows = admin.execute(
            "SELECT id, instance_type, status, metadata FROM workers WHERE last_heartbeat > now() - interval '1 minute'"
            " ORDER BY id"
        ).fetchall()
        assert rows == [("new", "external", "active", {}), ("w", "H100", "active", {"pod": 1, "version": "2"})]

    def test_a_row_that_a_user_holds_locked_does_not_stop_the_others(self, task_queue: TaskQueue, admin: Admin) -> None:
        ids = [task_queue.enqueue("comfy", {}) for _ in range(2)]
        one, two = claim(task_queue, limit=2)
        assert [one.id, two.id] == ids
        let_expire(admin, two)
        with admin.transaction():
            admin.execute("UPDATE tasks SET status = 'Queued' WHERE id = %s", (one.id,))
            admin.execute("SELECT FROM workers FOR UPDATE")
            admin.execute("SELECT FROM worker_contacts FOR UPDATE")
            assert beat(task_queue, one, two) == ([], [])
        assert row(task_queue, two.id)["lease"]["expires_in_s"] > 80


class RescueContract:
    def test_an_expired_lease_is_valid_until_somebody_takes_it(self, task_queue: TaskQueue, admin: Admin) -> None:
        for _ in range(2):
            task_queue.enqueue("comfy", {})
        one, two = claim(task_queue, limit=2)
        let_expire(admin, one)
        let_expire(admin, two)
        assert beat(task_queue, one) == ([], [])
        assert end(task_queue, two).accepted

    def test_the_lease_of_a_dead_worker_is_taken(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue, worker="dead")
        let_expire(admin, task)
        in_contact(task_queue, admin, "alive")
        assert task_queue.rescue("alive") == 1
        assert task_queue.rescue("alive") == 0
        assert beat(task_queue, task, worker="dead") == ([], [task.id])
        found = row(task_queue, task.id)
        assert (found["status"], found["losses"], found["attempts"]) == ("Queued", 1, 1)
        assert found["error_message"].startswith("worker.lease_lost: the worker dead ")
        again = take(task_queue, worker="alive")
        assert (again.attempt, again.losses) == (2, 1)
        assert end(task_queue, task, output_location="/late") == FinishReply(False, "In Progress")
        assert end(task_queue, again).accepted

    def test_a_claim_rescues_by_itself(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue, worker="dead")
        let_expire(admin, task)
        in_contact(task_queue, admin, "alive")
        admin.execute("UPDATE worker_contacts SET rescued_at = now() - interval '1 hour'")
        assert take(task_queue, worker="alive").id == task.id

    def test_who_has_just_come_back_from_an_outage_robs_nobody(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue, worker="other")
        admin.execute("UPDATE task_leases SET expires_at = now() - interval '1 s', lease_s = 0.001")
        assert task_queue.rescue("stranger") == 0  # its first contact: none before
        in_contact(task_queue, admin, "back")
        admin.execute("UPDATE worker_contacts SET last_seen = now() - interval '70 s' WHERE worker_id = 'back'")
        assert task_queue.rescue("back") == 0
        assert end(task_queue, task).accepted

    def test_a_server_that_has_just_started_lets_nobody_be_robbed(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue, worker="other")
        admin.execute("UPDATE task_leases SET expires_at = now() - interval '1 s', lease_s = 40000000")
        in_contact(task_queue, admin, "alive")
        admin.execute("UPDATE worker_contacts SET since = now() - interval '10 years'")
        assert task_queue.rescue("alive") == 0
        assert end(task_queue, task).accepted

    def test_a_row_in_progress_without_a_lease_is_never_touched(self, task_queue: TaskQueue, admin: Admin) -> None:
        admin.execute(
            "INSERT INTO tasks (task_type, params, status, worker_id, updated_at)"
            " VALUES ('comfy', '{}', 'In Progress', 'foreign', now() - interval '1 day')"
        )
        in_contact(task_queue, admin, "alive")
        assert task_queue.rescue("alive") == 0 and claim(task_queue) == []
        assert task_queue.reclaim_own("foreign") == ()

    def test_a_task_that_kills_two_workers_is_quarantined(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_id = task_queue.enqueue("comfy", {})
        in_contact(task_queue, admin, "alive")
        for worker in ("one", "two"):
            let_expire(admin, take(task_queue, worker=worker))
            assert task_queue.rescue("alive") == 1
        found = row(task_queue, task_id)
        assert found["status"] == "Failed" and found["error_message"].startswith("task.poisoned: ")
        assert [attempt["worker"] for attempt in found["result_data"]["attempts"]] == ["one", "two"]

    def test_a_cancelled_task_of_a_dead_worker_stays_cancelled(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue, worker="dead")
        task_queue.cancel(task.id)
        let_expire(admin, task)
        in_contact(task_queue, admin, "alive")
        task_queue.rescue("alive")
        assert status(task_queue, task.id) == "Cancelled" and claim(task_queue) == []

    def test_a_worker_that_starts_again_gets_its_tasks_back_into_the_queue(self, task_queue: TaskQueue) -> None:
        ids = {task_queue.enqueue("comfy", {}) for _ in range(2)}
        foreign = task_queue.enqueue("wan", {})
        claim(task_queue, worker="me", limit=2)
        take(task_queue, "wan", worker="other")
        assert set(task_queue.reclaim_own("me")) == ids
        assert task_queue.reclaim_own("me") == ()
        assert status(task_queue, foreign) == "In Progress"
        assert {task.id for task in claim(task_queue, limit=5)} == ids

    def test_what_only_waits_to_be_published_is_not_taken_back(self, task_queue: TaskQueue) -> None:
        for _ in range(2):
            task_queue.enqueue("comfy", {})
        done, cut_short = claim(task_queue, worker="me", limit=2)
        assert task_queue.reclaim_own("me", [done.token]) == (cut_short.id,)
        assert beat(task_queue, done, worker="me") == ([], [])
        assert end(task_queue, done).accepted

    def test_a_row_that_a_user_holds_locked_is_not_rescued_and_stops_no_claim(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        for _ in range(2):
            task_queue.enqueue("comfy", {})
        held, free = claim(task_queue, worker="dead", limit=2)
        waiting = task_queue.enqueue("join", {}, depends_on=[free.id])
        for task in (held, free):
            let_expire(admin, task)
        in_contact(task_queue, admin, "alive")
        with admin.transaction():
            admin.execute("SELECT FROM tasks WHERE id = ANY(%s::uuid[]) FOR UPDATE", ([held.id, waiting],))
            assert task_queue.rescue("alive") == 1
            assert take(task_queue, worker="alive").id == free.id
        assert task_queue.rescue("alive") == 1

    def test_housekeeping_that_cannot_work_stops_no_claim(self, task_queue: TaskQueue, admin: Admin) -> None:
        """A foreign trigger raised an error on the row that was to be rescued, and every claim with it."""
        admin.execute("""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
            CREATE TRIGGER refuse BEFORE UPDATE ON tasks FOR EACH ROW
                WHEN (NEW.status = 'Queued' AND OLD.task_type = 'cursed') EXECUTE FUNCTION refuse()""")
        cursed, task_id = task_queue.enqueue("cursed", {}), task_queue.enqueue("comfy", {})
        let_expire(admin, take(task_queue, "cursed", worker="dead"))
        let_expire(admin, take(task_queue, worker="dead"))
        in_contact(task_queue, admin, "alive")
        admin.execute("UPDATE worker_contacts SET rescued_at = now() - interval '1 hour'")
        assert take(task_queue, worker="alive").id == task_id
        assert status(task_queue, cursed) == "In Progress"
