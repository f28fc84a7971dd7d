"""How tasks end, by the contract: settled, cancelled, queued again, and what people see of it."""

from __future__ import annotations

import dataclasses
import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.contract_bench import Admin, beat, claim, end, event_names, row, status, take
from wan2gp.supervisor.queue import (
    FinishReply,
    QueueRefused,
    Settlement,
    TaskQueue,
    Verb,
)


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

    @pytest.mark.parametrize("by_hand", [True, False])
    def test_a_cancelled_row_does_not_show_what_an_attempt_before_died_of(
        self, task_queue: TaskQueue, admin: Admin, by_hand: bool
    ) -> None:
        waiting, running = task_queue.enqueue("comfy", {}), task_queue.enqueue("comfy", {})
        end(task_queue, take(task_queue), Verb.RETRY, error_message="handler.died: killed", retry_in_s=60)
        assert take(task_queue).id == running
        if by_hand:
            admin.execute("UPDATE tasks SET status = 'Cancelled'")
        else:
            assert [task_queue.cancel(one) for one in (waiting, running)] == ["Queued", "In Progress"]
        for one in (waiting, running):
            assert row(task_queue, one)["error_message"] == "task.cancelled: cancelled by its user"
        assert row(task_queue, waiting)["history"][0]["error_message"] == "handler.died: killed"
        assert task_queue.retry(waiting) == "Cancelled" and row(task_queue, waiting)["error_message"] is None

    def test_the_reason_that_somebody_gives_for_a_cancel_is_kept(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_id = task_queue.enqueue("comfy", {})
        admin.execute("UPDATE tasks SET status = 'Cancelled', error_message = 'refunded'")
        assert row(task_queue, task_id)["error_message"] == "refunded"

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
