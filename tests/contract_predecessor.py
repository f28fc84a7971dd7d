"""What the queue contract says of the predecessor's world: another hand completes rows under our lease, work that could
not be published completes later, workers' lines are kept, a pod scaler reads the workers' rows."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import pytest

from tests.contract_bench import Admin, beat, claim, end, event_names, in_contact, let_expire, row, status, take
from wan2gp.supervisor.queue import ClaimedTask, Completing, FinishReply, Settlement, SpawnedChild, TaskQueue, Verb

ARTIFACT = {"artifacts": [{"name": "a.mp4"}]}
GENERATIONS = """
    CREATE TABLE IF NOT EXISTS generations (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tasks jsonb[], params jsonb, location text, type text,
        project_id uuid, created_at timestamptz DEFAULT now());
    CREATE TABLE IF NOT EXISTS generation_variants (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), generation_id uuid, location text, params jsonb,
        created_at timestamptz DEFAULT now())"""
SYSTEM_LOGS = """
    CREATE TABLE IF NOT EXISTS system_logs (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), "timestamp" timestamptz NOT NULL DEFAULT now(),
        source_type text NOT NULL CHECK (source_type IN ('orchestrator_gpu', 'orchestrator_api', 'worker')),
        source_id text NOT NULL,
        log_level text NOT NULL CHECK (log_level IN ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')),
        message text NOT NULL, task_id uuid, worker_id text, cycle_number int, metadata jsonb DEFAULT '{}');
    DELETE FROM system_logs"""


def their_hand(admin: Admin, task: ClaimedTask, url: str = "https://x/their.mp4") -> int:
    """What complete_task does to the row, and how many rows it changed."""
    return admin.execute(
        "UPDATE tasks SET status = 'Complete', output_location = %s, generation_processed_at = now()"
        " WHERE id = %s AND status = 'In Progress'",
        (url, task.id),
    ).rowcount


class WithholdContract:
    def test_work_that_could_not_be_published_completes_later_under_its_token(self, task_queue: TaskQueue) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        reply = end(task_queue, task, Verb.WITHHOLD, error_message="publish.forbidden: no", cause={"try": 1})
        assert reply == FinishReply(True, "Failed")
        found = row(task_queue, task.id)
        assert (found["status"], found["error_message"], found["lease"]) == ("Failed", "publish.forbidden: no", None)
        assert found["failures"] == 0, "its work was done"
        assert end(task_queue, task, output_location="/o", result_data=ARTIFACT) == FinishReply(True, "Complete")
        found = row(task_queue, task.id)
        assert (found["status"], found["error_message"], found["output_location"]) == ("Complete", None, "/o")
        assert found["result_data"]["artifacts"] == ARTIFACT["artifacts"]
        assert [attempt["verb"] for attempt in found["result_data"]["attempts"]] == ["withhold"]
        assert event_names(task_queue, task.id) == ["queued", "claimed", "withheld", "completed"]
        assert end(task_queue, task, output_location="/o") == FinishReply(True, "Complete", repeated=True)
        assert row(task_queue, task.id) == found

    @pytest.mark.parametrize("verb", [verb for verb in Verb if verb not in (Verb.COMPLETE, Verb.WITHHOLD)])
    def test_withheld_work_ends_in_no_other_way(self, task_queue: TaskQueue, verb: Verb) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        end(task_queue, task, Verb.WITHHOLD, error_message="a.b: c")
        before = row(task_queue, task.id)
        assert end(task_queue, task, verb) == FinishReply(False, "Failed")
        assert row(task_queue, task.id) == before

    def test_withheld_work_is_not_wanted_any_more_once_somebody_wants_the_task_done_again(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        end(task_queue, task, Verb.WITHHOLD, error_message="a.b: c")
        assert task_queue.retry(task.id) == "Failed"
        assert end(task_queue, task, output_location="/late") == FinishReply(False, "Queued")
        again = take(task_queue, worker="other")
        assert end(task_queue, task, output_location="/late") == FinishReply(False, "In Progress")
        end(task_queue, again, Verb.FAIL, error_message="x.y: z")
        assert end(task_queue, task, output_location="/late") == FinishReply(False, "Failed")
        admin.execute("UPDATE tasks SET status = 'Queued'")
        admin.execute("UPDATE tasks SET status = 'Failed'")
        assert not end(task_queue, task, output_location="/late").accepted
        assert not task_queue.completing(task.id, task.token, 90).held

    @pytest.mark.parametrize("by_them", [False, True])
    def test_those_who_failed_for_want_of_it_wait_again(self, task_queue: TaskQueue, by_them: bool) -> None:
        first = task_queue.enqueue("comfy", {})
        other = task_queue.enqueue("never", {})
        second = task_queue.enqueue("next", {}, depends_on=[first])
        third = task_queue.enqueue("last", {}, depends_on=[second])
        both = task_queue.enqueue("next", {}, depends_on=[first, other])
        task = take(task_queue)
        end(task_queue, task, Verb.WITHHOLD, error_message="a.b: c")
        assert {status(task_queue, one) for one in (second, third, both)} == {"Failed"}
        if by_them:
            assert task_queue.completing(task.id, task.token, 90).held
            assert claim(task_queue, "next", limit=9) == []
        assert end(task_queue, task, output_location="/o").accepted
        assert [one.id for one in claim(task_queue, "next", limit=9)] == [second]
        assert [status(task_queue, one) for one in (third, both)] == ["Queued", "Queued"]
        assert row(task_queue, third)["error_message"] is None
        task_queue.cancel(other)
        assert status(task_queue, both) == "Failed"

    def test_a_withheld_child_ends_nobody_of_its_family(self, task_queue: TaskQueue) -> None:
        """Its parent failed and its siblings were cancelled, and no repeat of the publishing brought them back."""
        parent, children = self.family(task_queue)
        first = take(task_queue, "first")
        end(task_queue, first, Verb.WITHHOLD, error_message="publish.no_bucket: x")
        assert [status(task_queue, one) for one in [parent, *children]] == [
            "In Progress",
            "Failed",
            "Failed",
            "Failed",
            "Queued",
        ]
        assert end(task_queue, take(task_queue, "other"), output_location="/other").accepted
        assert end(task_queue, first, output_location="/first").accepted
        assert status(task_queue, parent) == "In Progress"
        self.rest_of_the_family(task_queue, parent)

    @pytest.mark.parametrize("by_them", [False, True])
    def test_a_withheld_child_that_is_last_completes_its_parent(
        self, task_queue: TaskQueue, admin: Admin, by_them: bool
    ) -> None:
        parent, children = self.family(task_queue)
        for kind in ("first", "second", "other"):
            assert end(task_queue, take(task_queue, kind)).accepted
        last = take(task_queue, "last")
        end(task_queue, last, Verb.WITHHOLD, error_message="publish.no_bucket: x")
        assert status(task_queue, parent) == "In Progress"
        if by_them:
            assert task_queue.completing(last.id, last.token, 90).held
            their_hand(admin, last, "/last")
        assert end(task_queue, last, output_location="/last").accepted
        assert [status(task_queue, one) for one in [parent, *children]] == ["Complete"] * 5

    @pytest.mark.parametrize("how", ["retry", "Queued", "In Progress", "Complete"])
    def test_whatever_becomes_of_a_withheld_child_its_family_goes_on(
        self, task_queue: TaskQueue, admin: Admin, how: str
    ) -> None:
        parent, children = self.family(task_queue)
        end(task_queue, take(task_queue, "first"), Verb.WITHHOLD, error_message="publish.no_bucket: x")
        if how == "retry":
            task_queue.retry(children[0])
        else:
            admin.execute("UPDATE tasks SET status = %s WHERE id = %s", (how, children[0]))
        assert [status(task_queue, one) for one in (parent, *children[1:])] == ["In Progress"] + ["Queued"] * 3
        if how in ("retry", "Queued"):
            assert end(task_queue, take(task_queue, "first")).accepted
        elif how == "In Progress":
            admin.execute("UPDATE tasks SET status = 'Complete' WHERE id = %s", (children[0],))
        assert end(task_queue, take(task_queue, "other")).accepted
        self.rest_of_the_family(task_queue, parent)

    @pytest.mark.parametrize("how", ["fail", "cancel", "UPDATE tasks SET status = 'Cancelled'", "DELETE FROM tasks"])
    def test_a_withheld_child_that_ends_without_a_result_ends_its_family(
        self, task_queue: TaskQueue, admin: Admin, how: str
    ) -> None:
        parent, children = self.family(task_queue)
        first = take(task_queue, "first")
        end(task_queue, first, Verb.WITHHOLD, error_message="publish.no_bucket: x")
        if how in ("fail", "cancel"):
            assert task_queue.completing(first.id, first.token, 90).held
            assert status(task_queue, children[1]) == "Queued"
        if how == "fail":
            end(task_queue, first, Verb.FAIL, error_message="x.y: z")
        elif how == "cancel":
            task_queue.cancel(first.id)
        else:
            admin.execute(f"{how} WHERE id = %s".encode(), (first.id,))
        found = row(task_queue, parent)
        assert found["status"] == "Failed" and "task.dependency_failed" in found["error_message"]
        assert status(task_queue, children[3]) == "Cancelled"

    @pytest.mark.parametrize(
        "how",
        [
            "UPDATE tasks SET status = 'Cancelled' WHERE id = %(far)s",
            "DELETE FROM tasks WHERE id = %(far)s",
            "UPDATE tasks SET dependant_on = NULL WHERE id = %(child)s",
            "UPDATE tasks SET status = 'Complete' WHERE id = %(far)s",
        ],
    )
    def test_a_family_that_waits_for_a_withheld_stranger_hears_of_its_end(
        self, task_queue: TaskQueue, admin: Admin, how: str
    ) -> None:
        """A child had failed for want of it, which was no reason to end its parent, until it was one."""
        far = task_queue.enqueue("far", {})
        parent, children = self.family(task_queue)
        names = {"far": far, "child": children[0]}
        admin.execute("UPDATE tasks SET dependant_on = %(far)s WHERE id = %(child)s", names)
        end(task_queue, take(task_queue, "far"), Verb.WITHHOLD, error_message="a.b: c")
        assert [status(task_queue, one) for one in (parent, *children[:3])] == ["In Progress"] + ["Failed"] * 3
        admin.execute(how.encode(), names)
        if "Complete" in how:
            for kind in ("first", "other"):
                assert end(task_queue, take(task_queue, kind)).accepted
            self.rest_of_the_family(task_queue, parent)
        else:
            assert [status(task_queue, one) for one in (parent, children[3])] == ["Failed", "Cancelled"]

    def test_a_sibling_that_fails_on_its_own_still_ends_the_family(self, task_queue: TaskQueue) -> None:
        parent, children = self.family(task_queue)
        first, other = take(task_queue, "first"), take(task_queue, "other")
        end(task_queue, first, Verb.WITHHOLD, error_message="publish.no_bucket: x")
        end(task_queue, other, Verb.FAIL, error_message="x.y: z")
        found = row(task_queue, parent)
        assert found["status"] == "Failed" and other.id in found["error_message"]
        assert end(task_queue, first).accepted, "what it made is its owner's all the same"

    def family(self, queue: TaskQueue) -> tuple[str, tuple[str, ...]]:
        """A parked parent, and three children in a row with one beside them."""
        queue.enqueue("parent", {})
        parent = take(queue, "parent")
        children = [
            SpawnedChild("first", {}),
            SpawnedChild("second", {}, depends_on=(0,)),
            SpawnedChild("last", {}, depends_on=(1,)),
            SpawnedChild("other", {}),
        ]
        return parent.id, queue.spawn(parent.id, parent.token, children)

    def rest_of_the_family(self, queue: TaskQueue, parent: str) -> None:
        for kind in ("second", "last"):
            assert claim(queue, "last" if kind == "second" else "second") == [], "one after the other"
            assert end(queue, take(queue, kind), output_location=f"/{kind}").accepted
        assert status(queue, parent) == "Complete"


class KeptContract:
    """What a refused settlement is told of its files: whether they are what the row, or the app, shows."""

    @staticmethod
    def place(task: ClaimedTask) -> str:
        return f"https://x/u/tasks/{task.id}/{task.attempt}-{task.lease_id[:8]}/a.mp4"

    @pytest.mark.parametrize("verb", [verb for verb in Verb if verb is not Verb.COMPLETE])
    @pytest.mark.parametrize(("many", "marked"), [(False, True), (True, True), (True, False)])
    def test_what_their_function_showed_is_kept_whatever_we_say_then(
        self, task_queue: TaskQueue, admin: Admin, verb: Verb, many: bool, marked: bool
    ) -> None:
        """Its answer was lost, the result was to be withheld, and the file that the app showed was deleted."""
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        task_queue.completing(task.id, task.token, 90)
        their_hand(admin, task, self.place(task) if marked else "https://x/their.mp4")
        said = Settlement(task.id, task.token, verb, error_message="a.b: c")
        for _ in range(2):
            reply = task_queue.finish_many([said])[0] if many else task_queue.finish(said)
            assert reply == FinishReply(False, "Complete", kept=True)
        assert task_queue.completing(task.id, task.token, 90).made
        assert end(task_queue, task, output_location=self.place(task)) == FinishReply(True, "Complete")

    def test_what_their_function_showed_of_another_lease_is_not_ours(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("comfy", {})
        stale = take(task_queue)
        admin.execute("UPDATE tasks SET status = 'Queued'")
        fresh = take(task_queue)
        task_queue.completing(fresh.id, fresh.token, 90)
        their_hand(admin, fresh, self.place(stale))
        for _ in range(2):
            assert end(task_queue, fresh, Verb.WITHHOLD) == FinishReply(False, "Complete")
        assert end(task_queue, stale) == FinishReply(False, "Complete", kept=True)

    def test_what_another_lease_shows_is_not_ours(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("comfy", {})
        stale = take(task_queue)
        admin.execute("UPDATE tasks SET status = 'Queued'")
        fresh = take(task_queue)
        assert end(task_queue, stale, output_location=self.place(stale)) == FinishReply(False, "In Progress")
        assert end(task_queue, fresh, output_location=self.place(fresh)).accepted
        assert end(task_queue, stale, output_location=self.place(stale)) == FinishReply(False, "Complete")
        assert end(task_queue, fresh, Verb.FAIL) == FinishReply(False, "Complete", kept=True)

    @pytest.mark.parametrize("where", ["output_location", "artifacts"])
    def test_a_lease_that_is_long_over_still_knows_its_files(
        self, task_queue: TaskQueue, admin: Admin, where: str
    ) -> None:
        """Frozen in the middle of the call it lost its task, and the function showed its file under the next lease."""
        task_queue.enqueue("comfy", {})
        stale = take(task_queue)
        admin.execute("UPDATE tasks SET status = 'Queued'")
        fresh = take(task_queue)
        place = self.place(stale)
        artifacts = [{"url": place if where == "artifacts" else "elsewhere"}]
        shown = place if where == "output_location" else "/o"
        assert end(task_queue, fresh, output_location=shown, result_data={"artifacts": artifacts}).accepted
        assert end(task_queue, stale) == FinishReply(False, "Complete", kept=True)

    def test_what_a_generation_names_is_kept_though_the_row_went_another_way(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        admin.execute(GENERATIONS.encode())
        task_queue.enqueue("comfy", {})
        stale = take(task_queue)
        task_queue.completing(stale.id, stale.token, 90)
        admin.execute("INSERT INTO generations (location) VALUES (%s)", (self.place(stale),))
        admin.execute("UPDATE tasks SET status = 'Queued'")
        assert end(task_queue, stale) == FinishReply(False, "Queued", kept=True)
        fresh = take(task_queue)
        task_queue.cancel(fresh.id)
        assert end(task_queue, stale) == FinishReply(False, "Cancelled", kept=True)
        assert end(task_queue, fresh) == FinishReply(False, "Cancelled")
        admin.execute("DELETE FROM tasks")
        assert end(task_queue, stale) == FinishReply(False, None, kept=True)

    def test_a_lease_of_an_earlier_contract_knows_its_files(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        admin.execute("UPDATE task_leases SET lease_id = md5('another')")
        lease = admin.execute("SELECT left(md5('another'), 8)").fetchone()
        assert lease is not None
        assert end(task_queue, task, output_location=f"/{task.id}/1-{lease[0]}/a.mp4").accepted
        assert end(task_queue, task, Verb.FAIL) == FinishReply(False, "Complete", kept=True)

    def test_an_outcome_that_cannot_be_stored_is_told_of_what_the_app_shows(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        admin.execute(GENERATIONS.encode())
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        admin.execute("INSERT INTO generations (location) VALUES (%s)", (self.place(task),))
        admin.execute("ALTER TABLE tasks ADD CHECK (output_location <> '/never')")
        said = Settlement(task.id, task.token, Verb.COMPLETE, output_location="/never")
        (reply,) = task_queue.finish_many([said])
        assert (reply.accepted, reply.status, reply.kept) == (False, "Failed", True) and reply.error


class CompletingContract:
    def test_their_function_completes_the_row_and_ours_adds_what_it_knows(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        assert task_queue.completing(task.id, task.token, 90) == Completing(True, "In Progress", False)
        assert their_hand(admin, task) == 1
        assert beat(task_queue, task) == ([], []), "it is neither lost nor cancelled"
        assert task_queue.completing(task.id, task.token, 90) == Completing(True, "Complete", True)
        processed = row(task_queue, task.id)["generation_processed_at"]
        reply = end(task_queue, task, output_location="/ours", result_data={**ARTIFACT, "timings": {"run_s": 1}})
        assert reply == FinishReply(True, "Complete")
        found = row(task_queue, task.id)
        assert (found["output_location"], found["generation_processed_at"]) == ("https://x/their.mp4", processed)
        assert found["result_data"] == {**ARTIFACT, "timings": {"run_s": 1}} and found["lease"] is None
        assert event_names(task_queue, task.id) == ["queued", "claimed", "completing", "completed"]
        assert end(task_queue, task, output_location="/ours") == FinishReply(True, "Complete", repeated=True)
        assert row(task_queue, task.id) == found
        assert beat(task_queue, task) == ([], [task.id])
        assert not task_queue.completing(task.id, task.token, 90).held

    def test_a_function_that_did_nothing_leaves_the_row_to_us(self, task_queue: TaskQueue) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        task_queue.completing(task.id, task.token, 90)
        assert end(task_queue, task, output_location="/ours") == FinishReply(True, "Complete")
        assert row(task_queue, task.id)["output_location"] == "/ours"

    def test_a_foreign_hand_without_the_mark_is_foreign(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        their_hand(admin, task)
        assert task_queue.completing(task.id, task.token, 90) == Completing(False, "Complete", False)
        assert beat(task_queue, task) == ([], [task.id])
        assert end(task_queue, task) == FinishReply(False, "Complete")

    def test_the_mark_ends_with_its_lease(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("comfy", {})
        stale = take(task_queue)
        task_queue.completing(stale.id, stale.token, 90)
        admin.execute("UPDATE tasks SET status = 'Queued'")
        assert not task_queue.completing(stale.id, stale.token, 90).held
        for verb in (Verb.RELEASE, Verb.RETRY):
            task = take(task_queue)
            task_queue.completing(task.id, task.token, 90)
            end(task_queue, task, verb)
        fresh = take(task_queue)
        their_hand(admin, fresh)
        assert beat(task_queue, fresh) == ([], [fresh.id])
        assert end(task_queue, fresh) == FinishReply(False, "Complete")

    def test_it_renews_the_lease_and_stops_at_a_cancelled_row(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        let_expire(admin, task)
        assert task_queue.completing(task.id, task.token, 200).held
        assert row(task_queue, task.id)["lease"]["expires_in_s"] > 190
        task_queue.cancel(task.id)
        assert task_queue.completing(task.id, task.token, 90) == Completing(False, "Cancelled", False)
        assert their_hand(admin, task) == 0
        assert end(task_queue, task) == FinishReply(False, "Cancelled")

    @pytest.mark.parametrize("task_id", ["0b0e7a5c-0000-4000-8000-000000000001", "nonsense"])
    def test_nobody_completes_what_is_not_there(self, task_queue: TaskQueue, task_id: str) -> None:
        assert task_queue.completing(task_id, "t", 90) == Completing(False, None, False)

    def test_a_worker_that_died_after_their_function_lets_nobody_do_the_work_again(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        """Its lease ran out on a row that was Complete; when it came back its finish was refused, and its files with
        it, the very ones that the app showed."""
        task_queue.enqueue("comfy", {})
        task = take(task_queue, worker="gone")
        task_queue.completing(task.id, task.token, 90)
        their_hand(admin, task)
        let_expire(admin, task)
        in_contact(task_queue, admin, "alive")
        task_queue.rescue("alive")
        assert row(task_queue, task.id)["lease"] is None and claim(task_queue) == []
        assert task_queue.reclaim_own("gone") == ()
        assert task_queue.completing(task.id, task.token, 90) == Completing(True, "Complete", True)
        assert end(task_queue, task, output_location="/ours", result_data=ARTIFACT) == FinishReply(True, "Complete")
        found = row(task_queue, task.id)
        assert (found["output_location"], found["result_data"]) == ("https://x/their.mp4", ARTIFACT)
        assert event_names(task_queue, task.id).count("completed") == 1

    def test_what_waits_for_the_row_is_released_by_their_hand(self, task_queue: TaskQueue, admin: Admin) -> None:
        first = task_queue.enqueue("comfy", {})
        second = task_queue.enqueue("next", {}, depends_on=[first])
        task = take(task_queue)
        task_queue.completing(task.id, task.token, 90)
        their_hand(admin, task)
        assert take(task_queue, "next").id == second
        assert end(task_queue, task).accepted

    def test_a_parent_gets_what_its_last_child_knew(self, task_queue: TaskQueue, admin: Admin) -> None:
        task_queue.enqueue("outer", {})
        outer = take(task_queue, "outer")
        task_queue.spawn(outer.id, outer.token, [SpawnedChild("inner", {})])
        inner = take(task_queue, "inner")
        task_queue.spawn(inner.id, inner.token, [SpawnedChild("leaf", {}), SpawnedChild("leaf", {}, depends_on=(0,))])
        for name in ("first", "last"):
            leaf = take(task_queue, "leaf")
            task_queue.completing(leaf.id, leaf.token, 90)
            their_hand(admin, leaf, f"https://x/{name}")
            assert end(task_queue, leaf, result_data={"artifacts": [{"name": name}]}).accepted
        for parent in (inner, outer):
            found = row(task_queue, parent.id)
            assert (found["status"], found["output_location"]) == ("Complete", "https://x/last")
            assert found["result_data"]["artifacts"] == [{"name": "last"}]
            assert found["result_data"]["children"] == [child["id"] for child in found["children"]]

    def test_a_withheld_row_runs_again_for_their_function_and_the_wait_is_not_billed(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        end(task_queue, task, Verb.WITHHOLD, error_message="a.b: c")
        admin.execute(
            "UPDATE tasks SET generation_started_at = now() - interval '3 h',"
            " generation_processed_at = now() - interval '2 h 55 min'"
        )
        assert task_queue.completing(task.id, task.token, 120) == Completing(True, "In Progress", False)
        assert row(task_queue, task.id)["lease"]["expires_in_s"] > 110 and claim(task_queue) == []
        assert beat(task_queue, task) == ([], [])
        assert their_hand(admin, task) == 1
        billed = admin.execute("SELECT generation_processed_at - generation_started_at FROM tasks").fetchone()
        assert billed is not None
        assert datetime.timedelta(minutes=5) <= billed[0] < datetime.timedelta(minutes=15)
        assert end(task_queue, task, output_location="/ours", result_data=ARTIFACT) == FinishReply(True, "Complete")
        found = row(task_queue, task.id)
        assert (found["error_message"], found["output_location"]) == (None, "https://x/their.mp4")

    def test_a_withheld_row_may_be_withheld_again(self, task_queue: TaskQueue) -> None:
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        for _ in range(2):
            assert end(task_queue, task, Verb.WITHHOLD, error_message="a.b: c") == FinishReply(True, "Failed")
            assert task_queue.completing(task.id, task.token, 90).held
        assert end(task_queue, task).accepted

    MADE = (
        "INSERT INTO generations (tasks) VALUES (ARRAY[to_jsonb(%(task)s::text)])",
        "INSERT INTO generations (location) VALUES ('https://x/u/tasks/' || %(task)s || '/1-abc/a.mp4')",
        "INSERT INTO generation_variants (location) VALUES ('https://x/u/tasks/' || %(task)s || '/1-abc/a.mp4')",
        "INSERT INTO generation_variants (params) VALUES (jsonb_build_object('source_task_id', %(task)s::text))",
    )

    @pytest.mark.parametrize("how", MADE, ids=range(len(MADE)))
    def test_what_the_app_shows_already_is_seen(self, task_queue: TaskQueue, admin: Admin, how: str) -> None:
        """Its function died between the generation and the row; called again it made a second generation."""
        admin.execute(GENERATIONS.encode())
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        admin.execute(how.encode(), {"task": str(uuid.uuid4())})
        assert not task_queue.completing(task.id, task.token, 90).made
        admin.execute(how.encode(), {"task": task.id})
        assert task_queue.completing(task.id, task.token, 90) == Completing(True, "In Progress", True)
        assert end(task_queue, task, output_location="/o").accepted
        task_queue.retry(task.id)
        again = take(task_queue)
        assert not task_queue.completing(again.id, again.token, 90).made, "that was made by the attempt before"

    def test_what_a_lease_before_made_is_not_this_ones(self, task_queue: TaskQueue, admin: Admin) -> None:
        """Its function was slow, and ran into the time of the next lease: whose result was then never shown."""
        admin.execute(GENERATIONS.encode())
        task_queue.enqueue("comfy", {})
        stale = take(task_queue)
        task_queue.completing(stale.id, stale.token, 90)
        admin.execute("UPDATE tasks SET status = 'Queued'")
        fresh = take(task_queue)
        for task, made in ((stale, False), (fresh, True)):
            admin.execute(
                "INSERT INTO generations (tasks, location) VALUES (ARRAY[to_jsonb(%s::text)], %s)",
                (task.id, KeptContract.place(task)),
            )
            assert task_queue.completing(fresh.id, fresh.token, 90) == Completing(True, "In Progress", made)

    def test_a_lease_that_is_named_in_another_way_is_found_too(self, task_queue: TaskQueue, admin: Admin) -> None:
        admin.execute(GENERATIONS.encode())
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        where = f"https://x/{task.id}/9-00000000/by-{task.lease_id[:8]}.mp4"
        admin.execute("INSERT INTO generation_variants (location) VALUES (%s)", (where,))
        assert task_queue.completing(task.id, task.token, 90).made

    def test_a_withheld_row_that_runs_again_is_not_forgiven(self, task_queue: TaskQueue) -> None:
        task_queue.enqueue("comfy", {})
        for verb in (Verb.LOSS, Verb.RETRY, Verb.RELEASE):
            end(task_queue, take(task_queue), verb, error_message="a.b: c")
        task = take(task_queue)
        end(task_queue, task, Verb.WITHHOLD, error_message="a.b: c")
        assert task_queue.completing(task.id, task.token, 90).held
        found = row(task_queue, task.id)
        assert (found["losses"], found["failures"], found["interruptions"]) == (1, 1, 1)
        assert end(task_queue, task, Verb.LOSS) == FinishReply(True, "Failed")

    def test_tables_of_another_shape_are_not_asked(self, task_queue: TaskQueue, admin: Admin) -> None:
        admin.execute("DROP TABLE IF EXISTS generation_variants, generations CASCADE")
        admin.execute("CREATE TABLE generations (id int, tasks text); CREATE TABLE generation_variants (id int)")
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        assert task_queue.completing(task.id, task.token, 90) == Completing(True, "In Progress", False)


class ScalerContract:
    @pytest.mark.parametrize(
        ("was", "becomes"),
        [
            ("inactive", "active"),
            ("spawning", "active"),
            ("crashed", "active"),
            ("active", "active"),
            ("terminating", "terminating"),
            ("error", "error"),
            ("terminated", "terminated"),
        ],
    )
    def test_a_heartbeat_overrules_no_verdict_of_the_scaler(
        self, task_queue: TaskQueue, admin: Admin, was: str, becomes: str
    ) -> None:
        admin.execute("INSERT INTO workers (id, instance_type, status) VALUES ('w', 'H100', %s)", (was,))
        task_queue.heartbeat("w", [], 90, {})
        found = admin.execute("SELECT status, last_heartbeat > now() - interval '1 min' FROM workers").fetchone()
        assert found == (becomes, True)

    def test_metadata_is_merged_and_never_replaced(self, task_queue: TaskQueue, admin: Admin) -> None:
        admin.execute(
            "INSERT INTO workers (id, instance_type, metadata) VALUES ('w', 'H100', %s), ('odd', 'H100', 'null')",
            ('{"runpod_id": "pod", "ssh_details": {"ip": "192.0.2.1"}, "vram_used_mb": 1}',),
        )
        vram = {"vram_total_mb": 81559, "vram_used_mb": 1024, "vram_timestamp": 1764000000.5}
        for worker in ("w", "odd"):
            task_queue.heartbeat(worker, [], 90, vram)
        found = dict(admin.execute("SELECT id, metadata FROM workers").fetchall())
        assert found["w"] == {"runpod_id": "pod", "ssh_details": {"ip": "192.0.2.1"}, **vram}
        assert found["odd"] == vram

    def test_a_worker_row_that_cannot_be_written_lets_no_lease_expire(
        self, task_queue: TaskQueue, admin: Admin
    ) -> None:
        admin.execute("""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
            CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON workers FOR EACH ROW EXECUTE FUNCTION refuse()""")
        task_queue.enqueue("comfy", {})
        task = take(task_queue)
        let_expire(admin, task)
        assert beat(task_queue, task) == ([], [])
        assert row(task_queue, task.id)["lease"]["expires_in_s"] > 80


class SystemLogContract:
    def line(self, **fields: Any) -> dict[str, Any]:
        return {"at": "2026-01-02T03:04:05.678+00:00", "level": "INFO", "message": "m", "task_id": None, **fields}

    def test_lines_are_stored_as_the_table_wants_them(self, task_queue: TaskQueue, admin: Admin) -> None:
        admin.execute(SYSTEM_LOGS.encode())
        task_id = str(uuid.uuid4())
        levels = {"info": "INFO", "warn": "WARNING", "SUCCESS": "INFO", "critical": "CRITICAL", "x" * 99: "INFO"}
        lines = [self.line(level=level, task_id=task_id, metadata={"n": n}) for n, level in enumerate(levels)]
        assert task_queue.log("w", lines) == len(lines)
        found = admin.execute(
            "SELECT source_type, source_id, worker_id, log_level, message, task_id::text, metadata"
            " FROM system_logs ORDER BY metadata ->> 'n'"
        ).fetchall()
        assert found == [("worker", "w", "w", level, "m", task_id, {"n": n}) for n, level in enumerate(levels.values())]
        assert admin.execute("SELECT DISTINCT \"timestamp\" AT TIME ZONE 'UTC' FROM system_logs").fetchall() == [
            (datetime.datetime(2026, 1, 2, 3, 4, 5, 678000),)
        ]

    def test_a_bad_line_loses_no_other(self, task_queue: TaskQueue, admin: Admin) -> None:
        admin.execute(SYSTEM_LOGS.encode())
        bad: list[Any] = [
            self.line(message="long " * 5000),
            self.line(task_id="not a uuid", message="odd task"),
            self.line(at="yesterday, perhaps", message="odd time"),
            self.line(level=None, message=None, metadata=[1]),
            {},
            self.line(message="nul \0 half \ud800"),
            "no line",
        ]
        assert task_queue.log("w", bad) == 6
        counts = admin.execute("SELECT max(length(message)), count(*), count(task_id) FROM system_logs").fetchone()
        assert counts == (4000, 6, 0)
        assert task_queue.log("w", []) == 0

    def test_a_line_that_the_table_refuses_loses_no_other(self, task_queue: TaskQueue, admin: Admin) -> None:
        admin.execute(SYSTEM_LOGS.encode())
        known = str(uuid.uuid4())
        admin.execute("CREATE TABLE known (id uuid PRIMARY KEY)")
        admin.execute("INSERT INTO known VALUES (%s)", (known,))
        admin.execute("""ALTER TABLE system_logs ADD FOREIGN KEY (task_id) REFERENCES known (id),
                         ADD CHECK (message <> 'never')""")
        lines = [
            self.line(message="first"),
            self.line(message="never"),
            self.line(message="stranger", task_id=str(uuid.uuid4())),
            self.line(message="last", task_id=known),
        ]
        assert task_queue.log("w", lines) == 3
        found = admin.execute("SELECT message, task_id::text FROM system_logs ORDER BY message").fetchall()
        assert found == [("first", None), ("last", known), ("stranger", None)]

    def test_a_batch_whose_answer_was_lost_is_stored_once(self, task_queue: TaskQueue, admin: Admin) -> None:
        admin.execute(SYSTEM_LOGS.encode())
        lines = [self.line(id=str(uuid.uuid4())) for _ in range(3)]
        for _ in range(2):
            assert task_queue.log("w", lines) == 3
        assert task_queue.log("w", [self.line(), self.line()]) == 2
        assert admin.execute("SELECT count(*) FROM system_logs").fetchone() == (5,)

    def test_a_table_that_has_no_line_of_ours_is_told_from_a_repeat(self, task_queue: TaskQueue, admin: Admin) -> None:
        admin.execute(SYSTEM_LOGS.encode())
        admin.execute("ALTER TABLE system_logs ADD CHECK (source_id <> 'w')")
        assert task_queue.log("w", [self.line(), self.line()]) == 0
        assert task_queue.log("other", [self.line()]) == 1

    def test_a_database_without_the_table_keeps_nothing_and_says_so(self, task_queue: TaskQueue, admin: Admin) -> None:
        admin.execute("DROP TABLE IF EXISTS system_logs CASCADE")
        assert task_queue.facts()["system_logs"] is False
        assert task_queue.log("w", [self.line()]) == 0

    def test_facts_say_whose_database_this_is(self, task_queue: TaskQueue, admin: Admin) -> None:
        theirs = admin.execute("SELECT to_regtype('task_status') IS NOT NULL").fetchone() == (True,)
        assert task_queue.facts() == {"predecessor": theirs, "system_logs": theirs}
        admin.execute("CREATE TABLE IF NOT EXISTS projects (id uuid)")
        assert task_queue.facts()["predecessor"] is theirs, "anybody may have projects"
        admin.execute(GENERATIONS.encode())
        assert task_queue.facts()["predecessor"] is True


class PredecessorContract(WithholdContract, KeptContract, CompletingContract, ScalerContract, SystemLogContract):
    """All of it."""
