"""What every task queue must hold, whichever database is behind it. Nothing is lost, nothing is finished twice.

A backend's test module makes a class of :class:`QueueContract` and provides two fixtures: ``task_queue``, and
``admin``, an autocommit connection of the database's owner, for plain SQL as a user writes it and for turning clocks.
"""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from wan2gp.supervisor.queue import (
    ClaimedTask,
    FinishReply,
    LeaseBeat,
    QueueRefused,
    Settlement,
    SpawnedChild,
    TaskQueue,
    Verb,
)

Admin = psycopg.Connection[tuple[Any, ...]]

SPEC_INSERT = """INSERT INTO tasks (task_type, params, status) VALUES ('comfy', '{"workflow": {}}', 'queued')"""


def claim(queue: TaskQueue, *types: str, worker: str = "w", limit: int = 1, lease_s: float = 90) -> list[ClaimedTask]:
    return list(queue.claim(uuid.uuid4().hex, worker, types or ("comfy",), limit, lease_s).tasks)


def take(queue: TaskQueue, *types: str, worker: str = "w", lease_s: float = 90) -> ClaimedTask:
    tasks = claim(queue, *types, worker=worker, lease_s=lease_s)
    assert len(tasks) == 1
    return tasks[0]


def end(queue: TaskQueue, task: ClaimedTask, verb: Verb = Verb.COMPLETE, **fields: Any) -> FinishReply:
    return queue.finish(Settlement(task.id, task.token, verb, **fields))


def row(queue: TaskQueue, task_id: str) -> dict[str, Any]:
    found = queue.task(task_id)
    assert found is not None
    return dict(found)


def status(queue: TaskQueue, task_id: str) -> str:
    return str(row(queue, task_id)["status"])


def event_names(queue: TaskQueue, task_id: str) -> list[str]:
    return [event["name"] for event in row(queue, task_id)["events"]]


def beat(queue: TaskQueue, *tasks: ClaimedTask, worker: str = "w", **fields: Any) -> tuple[list[str], list[str]]:
    reply = queue.heartbeat(worker, [LeaseBeat(task.id, task.token, **fields) for task in tasks], 90, {})
    return list(reply.cancelled), list(reply.lost)


def let_expire(admin: Admin, task: ClaimedTask) -> None:
    admin.execute(
        "UPDATE task_leases SET expires_at = now() - interval '1 s', lease_s = 0.001 WHERE task_id = %s", (task.id,)
    )


def in_contact(queue: TaskQueue, admin: Admin, worker: str) -> None:
    """Makes ``worker`` one that has been in contact for a day."""
    queue.rescue(worker)
    admin.execute(
        "UPDATE worker_contacts SET since = now() - interval '1 day', last_seen = now() WHERE worker_id = %s", (worker,)
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

    def test_a_claim_repeated_while_it_still_runs_takes_nothing_more(self, task_queue: TaskQueue) -> None:
        for _ in range(6):
            task_queue.enqueue("comfy", {})
        with ThreadPoolExecutor(6) as pool:
            replies = list(pool.map(lambda _: task_queue.claim("same", "w", ["comfy"], 1, 90).tasks, range(6)))
        assert len({reply[0].token for reply in replies}) == 1

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


class FinishContract:
    def test_complete_writes_the_artifact(self, task_queue: TaskQueue) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        artifact = {"name": "a.mp4", "bytes": 3}
        reply = end(task_queue, task, output_location="/o/a.mp4", result_data={"artifacts": [artifact]})
        assert reply == FinishReply(True, "Complete")
        found = row(task_queue, task.id)
        assert (found["output_location"], found["result_data"]) == ("/o/a.mp4", {"artifacts": [artifact]})
        assert found["error_message"] is None and found["generation_processed_at"] is not None
        assert event_names(task_queue, task.id) == ["queued", "claimed", "completed"]

    @pytest.mark.parametrize("verb", list(Verb))
    def test_a_finish_whose_answer_was_lost_may_be_repeated(self, task_queue: TaskQueue, verb: Verb) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        first = end(task_queue, task, verb, error_message="x.y: because")
        before = row(task_queue, task.id)
        assert first.accepted and not first.repeated
        again = end(task_queue, task, verb, error_message="x.y: because")
        assert (again.accepted, again.repeated, again.status) == (True, True, first.status)
        assert row(task_queue, task.id) == before

    @pytest.mark.parametrize("verb", list(Verb))
    def test_a_stale_token_is_refused(self, task_queue: TaskQueue, verb: Verb) -> None:
        task_queue.enqueue("comfy", {})
        stale = take(task_queue)
        end(task_queue, stale, Verb.RELEASE)
        fresh = take(task_queue, worker="other")
        before = task_queue.tasks(), event_names(task_queue, fresh.id)
        if verb is not Verb.RELEASE:
            assert end(task_queue, stale, verb) == FinishReply(False, "In Progress")
        assert end(task_queue, dataclasses.replace(stale, token="0" * 32), verb) == FinishReply(False, "In Progress")
        assert (task_queue.tasks(), event_names(task_queue, fresh.id)) == before
        assert end(task_queue, fresh).accepted

    def test_the_end_of_a_task_that_is_gone_is_refused(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        admin.execute("DELETE FROM tasks WHERE id = %s", (task.id,))
        assert beat(task_queue, task) == ([], [task.id])
        assert end(task_queue, task) == FinishReply(False, None)
        assert claim(task_queue) == []

    def test_fail_is_final_and_keeps_its_cause(self, task_queue: TaskQueue) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        end(task_queue, task, Verb.FAIL, error_message="comfy.validation: no", cause={"exit_code": 3})
        found = row(task_queue, task.id)
        assert (found["status"], found["error_message"]) == ("Failed", "comfy.validation: no")
        assert found["output_location"] is None
        (attempt,) = found["result_data"]["attempts"]
        assert (attempt["attempt"], attempt["exit_code"], attempt["worker"]) == (1, 3, "w")

    def test_retry_waits_and_fails_after_max_attempts_failures(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_id = task_queue.enqueue("comfy", {}, max_attempts=2)
        assert end(task_queue, take(task_queue), Verb.RETRY, error_message="a.b: 1", retry_in_s=60).status == "Queued"
        found = row(task_queue, task_id)
        assert (found["error_message"], found["worker_id"], found["failures"]) == ("a.b: 1", None, 1)
        assert claim(task_queue) == []
        admin.execute("UPDATE tasks SET run_after = now() - interval '1 s'")
        second = take(task_queue)
        assert (second.attempt, second.failures) == (2, 1)
        assert row(task_queue, task_id)["error_message"] is None
        assert end(task_queue, second, Verb.RETRY, error_message="a.b: 2", retry_in_s=60).status == "Failed"
        found = row(task_queue, task_id)
        assert (found["error_message"], found["attempts"]) == ("a.b: 2", 2)
        assert [attempt["error_message"] for attempt in found["result_data"]["attempts"]] == ["a.b: 1", "a.b: 2"]
        assert event_names(task_queue, task_id) == ["queued", "claimed", "retried", "claimed", "failed"]

    def test_two_losses_quarantine_a_task_with_every_cause(self, task_queue: TaskQueue) -> None:
        task_id = task_queue.enqueue("comfy", {}, max_attempts=9)
        assert end(task_queue, take(task_queue), Verb.LOSS, cause={"signal": "SIGSEGV"}).status == "Queued"
        last = end(
            task_queue, take(task_queue), Verb.LOSS, error_message="handler.died: x", cause={"signal": "SIGKILL"}
        )
        assert last.status == "Failed"
        found = row(task_queue, task_id)
        assert found["error_message"].startswith("task.poisoned: ") and "handler.died: x" in found["error_message"]
        assert [attempt["signal"] for attempt in found["result_data"]["attempts"]] == ["SIGSEGV", "SIGKILL"]

    def test_failures_losses_and_interruptions_are_counted_apart(self, task_queue: TaskQueue) -> None:
        task_id = task_queue.enqueue("comfy", {}, max_attempts=2)
        for verb in (Verb.RETRY, Verb.LOSS, Verb.RELEASE, Verb.RELEASE, Verb.RELEASE):
            assert end(task_queue, take(task_queue), verb).status == "Queued"
        found = row(task_queue, task_id)
        assert (found["failures"], found["losses"], found["interruptions"]) == (1, 1, 3)
        assert found["attempts"] == 2
        end(task_queue, take(task_queue))
        assert status(task_queue, task_id) == "Complete"

    def test_a_release_is_free_and_says_why_until_the_next_claim(self, task_queue: TaskQueue) -> None:
        task_id = task_queue.enqueue("comfy", {})
        end(task_queue, take(task_queue), Verb.RELEASE, error_message="comfy.start_failed: no torch")
        found = row(task_queue, task_id)
        assert (found["status"], found["attempts"], found["worker_id"]) == ("Queued", 0, None)
        assert found["error_message"] == "comfy.start_failed: no torch"
        assert take(task_queue).attempt == 1
        assert row(task_queue, task_id)["error_message"] is None

    def test_a_hundred_releases_keep_a_bounded_history(self, task_queue: TaskQueue) -> None:
        task_id = task_queue.enqueue("comfy", {})
        for _ in range(30):
            end(task_queue, take(task_queue), Verb.RELEASE)
        end(task_queue, take(task_queue), Verb.FAIL)
        assert len(row(task_queue, task_id)["result_data"]["attempts"]) == 20

    def test_several_settlements_are_answered_in_order(self, task_queue: TaskQueue) -> None:
        for _ in range(3):
            task_queue.enqueue("comfy", {})
        one, two, three = claim(task_queue, limit=3)
        end(task_queue, two, Verb.FAIL)
        verbs = [(one, Verb.COMPLETE), (two, Verb.COMPLETE), (three, Verb.RELEASE), (one, Verb.COMPLETE)]
        replies = task_queue.finish_many([Settlement(task.id, task.token, verb) for task, verb in verbs])
        assert [reply.accepted for reply in replies] == [True, False, True, True]
        assert [reply.status for reply in replies] == ["Complete", "Failed", "Queued", "Complete"]
        assert [reply.repeated for reply in replies] == [False, False, False, True]
        assert task_queue.finish_many([]) == ()

    def test_threads_that_settle_the_same_tasks_in_opposite_order_all_get_through(self, task_queue: TaskQueue) -> None:
        for _ in range(20):
            task_queue.enqueue("comfy", {})
        settlements = [Settlement(task.id, task.token, Verb.COMPLETE) for task in claim(task_queue, limit=20)]
        with ThreadPoolExecutor(4) as pool:
            orders = [settlements, settlements[::-1]] * 2
            answers = list(pool.map(task_queue.finish_many, orders))
        assert all(reply.accepted for answer in answers for reply in answer)
        assert sum(not reply.repeated for answer in answers for reply in answer) == 20

    def test_text_that_postgres_cannot_hold_does_not_keep_a_result_from_being_written(
        self, task_queue: TaskQueue
    ) -> None:
        task_queue.enqueue("comfy", {"nul": "a\0b", "half": "\ud800", "nan": float("nan")})
        task = take(task_queue)
        assert task.params == {"nul": "a\ufffdb", "half": "\ufffd", "nan": None}
        odd = {"line\0": ["\udfff", float("inf")]}
        assert end(task_queue, task, Verb.FAIL, error_message="a.b: \0\ud800", result_data=odd, cause=odd).accepted
        found = row(task_queue, task.id)
        assert found["error_message"] == "a.b: \ufffd\ufffd"
        assert found["result_data"]["line\ufffd"] == ["\ufffd", None]

    def test_an_outcome_that_the_database_will_not_have_holds_up_no_other(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        """A foreign trigger on completed rows raised an error; every later outcome waited behind that one for ever."""
        admin.execute("""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no credit'; END $$;
            CREATE TRIGGER refuse BEFORE UPDATE ON tasks FOR EACH ROW
                WHEN (NEW.status = 'Complete' AND OLD.task_type = 'cursed') EXECUTE FUNCTION refuse()""")
        task_queue.enqueue("cursed", {})
        task_queue.enqueue("comfy", {})
        tasks = [take(task_queue, "cursed"), take(task_queue)]
        replies = task_queue.finish_many([Settlement(task.id, task.token, Verb.COMPLETE) for task in tasks])
        assert replies == (FinishReply(False, "Failed", error="no credit"), FinishReply(True, "Complete"))
        assert row(task_queue, tasks[0].id)["error_message"] == (
            "queue.refused: the database refused to store the outcome: no credit"
        )


class CancelContract:
    def test_a_queued_task_is_cancelled_and_never_claimed(self, task_queue: TaskQueue) -> None:
        task_id = task_queue.enqueue("comfy", {})
        assert task_queue.cancel(task_id) == "Queued"
        assert task_queue.cancel(task_id) == "Cancelled"
        assert claim(task_queue) == []

    def test_nobody_knows_such_a_task(self, task_queue: TaskQueue) -> None:
        for task_id in (str(uuid.uuid4()), "nonsense", ""):
            assert task_queue.cancel(task_id) is None
            assert task_queue.retry(task_id) is None
            assert task_queue.task(task_id) is None
            task_queue.event(task_id, "x", {})
            assert task_queue.finish(Settlement(task_id, "t", Verb.COMPLETE)) == FinishReply(False, None)

    @pytest.mark.parametrize("by_hand", [True, False])
    @pytest.mark.parametrize("verb", list(Verb))
    def test_a_cancelled_task_never_completes(
        self, task_queue: TaskQueue, admin: Admin, verb: Verb, by_hand: bool
    ) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        if by_hand:
            admin.execute("UPDATE tasks SET status = 'Cancelled' WHERE id = %s", (task.id,))
        else:
            assert task_queue.cancel(task.id) == "In Progress"
        assert beat(task_queue, task) == ([task.id], [])
        reply = end(task_queue, task, verb, output_location="/late")
        assert reply == FinishReply(verb is Verb.CANCEL, "Cancelled")
        assert end(task_queue, task, verb, output_location="/late").accepted is (verb is Verb.CANCEL)
        found = row(task_queue, task.id)
        assert (found["status"], found["output_location"]) == ("Cancelled", None)
        assert claim(task_queue) == []
        assert beat(task_queue, task) == ([], [task.id])

    def test_a_worker_may_end_its_task_as_cancelled(self, task_queue: TaskQueue) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        assert end(task_queue, task, Verb.CANCEL, error_message="a.b: c") == FinishReply(True, "Cancelled")
        assert event_names(task_queue, task.id).count("cancelled") == 1

    def test_what_has_ended_is_not_cancelled(self, task_queue: TaskQueue) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        end(task_queue, task, output_location="/o")
        assert task_queue.cancel(task.id) == "Complete"
        assert status(task_queue, task.id) == "Complete"


class RequeueContract:
    @pytest.mark.parametrize("written", ["Queued", "queued"])
    def test_a_failed_row_set_to_queued_by_hand_starts_afresh(
        self, task_queue: TaskQueue, admin: Admin, written: str
    ) -> None:
        task_id = task_queue.enqueue("comfy", {}, max_attempts=1)
        end(task_queue, take(task_queue), Verb.RETRY, error_message="a.b: c")
        assert status(task_queue, task_id) == "Failed"
        admin.execute("UPDATE tasks SET status = %s WHERE id = %s", (written, task_id))
        found = row(task_queue, task_id)
        assert (found["status"], found["error_message"], found["worker_id"]) == ("Queued", None, None)
        assert (found["failures"], found["generation_processed_at"]) == (0, None)
        task = take(task_queue)
        assert end(task_queue, task, output_location="/o").status == "Complete"

    def test_retry_queues_what_has_ended(self, task_queue: TaskQueue) -> None:
        task_id = task_queue.enqueue("comfy", {})
        assert task_queue.retry(task_id) == "Queued"
        assert end(task_queue, take(task_queue), output_location="/o").accepted
        assert task_queue.retry(task_id) == "Complete"
        assert row(task_queue, task_id)["output_location"] is None
        task = take(task_queue)
        assert task_queue.retry(task_id) == "In Progress"
        assert beat(task_queue, task) == ([], [])

    def test_a_running_row_that_a_scaler_requeues_is_lost_to_its_worker(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        admin.execute("UPDATE tasks SET status = 'Queued', worker_id = NULL WHERE id = %s", (task.id,))
        assert beat(task_queue, task) == ([], [task.id])
        again = take(task_queue, worker="other")
        assert again.id == task.id and again.token != task.token
        assert end(task_queue, task, output_location="/late") == FinishReply(False, "In Progress")
        assert beat(task_queue, task) == ([], [task.id])
        assert end(task_queue, again, worker_output := Verb.COMPLETE).accepted and worker_output is Verb.COMPLETE

    @pytest.mark.parametrize("written", ["Complete", "Failed"])
    def test_a_running_row_that_somebody_else_ends_is_lost(
        self, task_queue: TaskQueue, admin: Admin, written: str
    ) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        admin.execute("UPDATE tasks SET status = %s WHERE id = %s", (written, task.id))
        assert beat(task_queue, task) == ([], [task.id])
        assert end(task_queue, task, Verb.RETRY) == FinishReply(False, written)
        assert claim(task_queue) == []

    def test_all_rows_may_be_deleted_at_any_time(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        for wipe in ("DELETE FROM tasks", "TRUNCATE tasks"):
            admin.execute(wipe)
            assert beat(task_queue, task) == ([], [task.id])
            assert claim(task_queue) == []
        task_queue.enqueue("comfy", {})
        assert end(task_queue, take(task_queue)).accepted


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
            admin.execute("UPDATE tasks SET priority = 1 WHERE id = %s", (one.id,))
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
        admin.execute("UPDATE task_leases SET lease_s = 90")
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


class PeopleContract:
    def test_an_unknown_status_is_refused_with_the_valid_ones(self, task_queue: TaskQueue, admin: Admin) -> None:
        with pytest.raises(psycopg.errors.Error) as refused:
            admin.execute("INSERT INTO tasks (task_type, params, status) VALUES ('comfy', '{}', 'ready')")
        if refused.value.sqlstate != "22P02":  # an enum refuses before any trigger is asked
            assert "Queued, In Progress, Complete, Failed, Cancelled" in str(refused.value)
        with pytest.raises(QueueRefused, match="Queued, In Progress"):
            task_queue.tasks(status="ready")

    def test_lists_are_newest_first_and_without_params(self, task_queue: TaskQueue) -> None:
        ids = [task_queue.enqueue("comfy", {"n": n}) for n in range(3)]
        take(task_queue)
        listed = task_queue.tasks(task_type="comfy")
        assert [task["id"] for task in listed] == ids[::-1]
        assert all("params" not in task for task in listed)
        assert [task["id"] for task in task_queue.tasks(status="in progress", task_type="comfy")] == ids[:1]
        assert len(task_queue.tasks(limit=2, task_type="comfy")) == 2

    def test_stats_count_what_there_is(self, task_queue: TaskQueue, admin: Admin) -> None:
        first = task_queue.enqueue("comfy", {})
        task_queue.enqueue("comfy", {}, depends_on=[first])
        task_queue.enqueue("comfy", {}, run_after_s=100)
        admin.execute("UPDATE tasks SET created_at = now() - interval '60 s' WHERE id = %s", (first,))
        end(task_queue, take(task_queue), Verb.RELEASE)
        task_queue.heartbeat("w", [], 90, {"gpu": "x"})
        stats = task_queue.stats()
        assert {"task_type": "comfy", "status": "Queued", "count": 3} in stats["counts"]
        assert 59 < stats["oldest_queued_s"]["comfy"] < 600
        assert {"task_type": "comfy", "for_tasks": 1, "for_time": 1} in stats["waiting"]
        (worker,) = stats["workers"]
        assert (worker["id"], worker["metadata"]) == ("w", {"gpu": "x"}) and worker["silent_s"] < 600

    def test_events_are_kept_in_order_and_the_old_ones_go(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_id = task_queue.enqueue("comfy", {})
        task_queue.event(task_id, "seen", {"by": "me"})
        event = row(task_queue, task_id)["events"][-1]
        assert (event["name"], event["detail"]) == ("seen", {"by": "me"})
        admin.execute("UPDATE task_events SET at = at - interval '15 days' WHERE name = 'queued'")
        task_queue.rescue("w")
        assert event_names(task_queue, task_id) == ["seen"]

    def test_a_check_passes(self, task_queue: TaskQueue) -> None:
        task_queue.check()


class QueueContract(
    ClaimContract,
    FinishContract,
    CancelContract,
    RequeueContract,
    HeartbeatContract,
    RescueContract,
    DependencyContract,
    SpawnContract,
    PeopleContract,
):
    """All of it."""
