"""How tasks end by the predecessor's functions: one generation for one result, whatever is lost on the way, and no row
changed that is not ours any more. ``service`` opens the tables too, ``pat`` only the functions."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.edge_functions import RIVAL
from tests.edge_projects import BUCKET, USER, WORKER, Clock, EdgeProject, Heard, claim, claimed
from tests.front_faults import Fault
from tests.storage_stand_in import BucketSpec
from wan2gp.protocol import Artifact
from wan2gp.supervisor.edge_calls import EdgeCalls
from wan2gp.supervisor.edge_complete import LOOK_AGAIN_S
from wan2gp.supervisor.edge_ends import HOLD_MAX_S, Sight
from wan2gp.supervisor.edge_queue import EdgeQueue
from wan2gp.supervisor.edge_store import EdgeStore
from wan2gp.supervisor.patience import Patience
from wan2gp.supervisor.publish import PublishFailed, Staged, outcome_of
from wan2gp.supervisor.queue import ClaimedTask, FinishReply, QueueRefused, QueueUnavailable, Settlement, Verb
from wan2gp.supervisor.spool import Ending

ALL = pytest.mark.parametrize("key", ["service", pytest.param("pat", marks=pytest.mark.long)])
COMPLETE, UPDATE, UPLOAD_URL = "complete_task", "update-task-status", "generate-upload-url"


def end(task: ClaimedTask, verb: Verb, text: str | None = None, **more: Any) -> Settlement:
    return Settlement(task.id, task.token, verb, error_message=text, project_id=task.project_id, **more)


class Result:
    """A claimed task with its files in the spool, the queue that it came from, and the store that publishes it."""

    def __init__(self, edge: EdgeProject, key: str, folder: Path, **files: bytes) -> None:
        self.edge, self.key = edge, key
        self.id = edge.insert()
        self.heard = Heard()
        self.queue = self.new_queue()
        self.task = claimed(self.queue)
        self.work, self.spool = folder / "work", folder / "spool"
        self.work.mkdir()
        self.spool.mkdir()
        artifacts = tuple(
            self._artifact(name.replace("_", "."), content)
            for name, content in (files or {"film_mp4": b"film"}).items()
        )
        task = self.task
        self.ending = Ending(
            task.id,
            task.task_type,
            task.attempt,
            task.lease_id,
            task.token,
            Verb.COMPLETE,
            str(self.work),
            artifacts=artifacts,
            project_id=task.project_id,
        )
        self.store = self.new_store()
        self.staged: list[Staged] = []

    def new_queue(self) -> EdgeQueue:
        queue = self.edge.queue(self.key)
        queue.speak(self.heard)
        return queue

    def new_store(self) -> EdgeStore:
        project = self.edge.project(self.key)
        patience = Patience(first_s=0.02, max_s=0.1, answer_s=10.0)
        return EdgeStore(project, calls=EdgeCalls(project, pause_s=0.02), patience=patience)

    def _artifact(self, name: str, content: bytes) -> Artifact:
        (self.work / name).write_bytes(content)
        video = name.endswith("mp4")
        return Artifact(
            path=name,
            name=name,
            kind="video" if video else "poster",
            mime="video/mp4" if video else "image/jpeg",
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            primary=video,
            poster="film.jpg" if video else None,
        )

    def upload(self, stop: threading.Event | None = None) -> Settlement:
        """Send all; what the queue is told then."""
        self.staged = self.store.stage(self.ending, self.spool)
        self.staged = self.store.upload(self.ending, self.staged, stop or threading.Event())
        return self.ending.settlement(**outcome_of(self.ending, self.staged))

    def insist(self, settlement: Settlement, queue: EdgeQueue | None = None) -> FinishReply:
        """As the publisher does: again, while it fails for now."""
        for _ in range(6):
            try:
                return (queue or self.queue).finish(settlement)
            except PublishFailed as failure:
                assert not failure.permanent, failure.message
        raise AssertionError("it never ends")

    @property
    def paths(self) -> list[str]:
        return [path for path in self.edge.stack.storage.paths(BUCKET) if self.id in path]

    def is_complete_once(self) -> None:
        row = self.edge.row(self.id)
        assert (row["status"], row["output_location"]) == ("Complete", self.staged[0].url)
        (generation,) = self.edge.generations(self.id)
        assert generation["location"] == row["output_location"]


@pytest.fixture
def result(edge: EdgeProject, tmp_path: Path) -> Callable[..., Result]:
    return lambda key, **files: Result(edge, key, tmp_path, **files)


Make = Callable[..., Result]


class TestCompleting:
    @ALL
    def test_the_row_its_generation_and_its_poster(self, edge: EdgeProject, result: Make, key: str) -> None:
        one = result(key, film_mp4=b"film", film_jpg=b"still")
        settlement = one.upload()
        assert one.queue.finish(settlement) == FinishReply(True, "Complete")
        assert one.queue.finish(settlement) == FinishReply(True, "Complete", repeated=True)
        name = f"{USER}/tasks/{one.id}/1-{one.task.lease_id[:8]}-film"
        storage = edge.stack.storage
        assert (storage.content(BUCKET, f"{name}.mp4"), storage.mime(BUCKET, f"{name}.mp4")) == (b"film", "video/mp4")
        assert storage.mime(BUCKET, f"{name}.jpg") == "image/jpeg"
        one.is_complete_once()
        assert edge.generations(one.id)[0]["thumbnail_url"].endswith(f"{name}.jpg")
        assert not one.heard

    @pytest.mark.parametrize(("key", "how"), [("service", "cut"), ("pat", "cut"), ("pat", "500"), ("service", "504")])
    def test_an_answer_lost_after_all_was_done(self, edge: EdgeProject, result: Make, key: str, how: str) -> None:
        one = result(key)
        settlement = one.upload()
        if how == "cut":
            edge.stack.front.faults.add(Fault(COMPLETE, "cut_after"))
        else:
            edge.functions.faults.after[COMPLETE] = [int(how)]
        assert one.insist(settlement).accepted
        one.is_complete_once()
        assert len(edge.functions.called(COMPLETE)) == 1 and not one.heard

    @ALL
    def test_an_answer_lost_and_the_worker_dead_too(self, edge: EdgeProject, result: Make, key: str) -> None:
        one = result(key)
        settlement = one.upload()
        edge.stack.front.faults.add(Fault(COMPLETE, "cut_after"))
        away = edge.stack.front.faults.add(
            Fault("rest/v1/tasks" if key == "service" else "task-counts", "status", skip=1, times=None)
        )
        with pytest.raises(PublishFailed):
            one.queue.finish(settlement)
        edge.stack.front.faults.remove(away)
        again = one.new_queue() if key == "service" else one.queue
        assert again.reclaim_own(WORKER, [one.task.token]) == ()
        reply = one.insist(settlement, again)
        assert (reply.accepted, reply.status, reply.repeated) == (True, "Complete", True)
        one.is_complete_once()

    @ALL
    def test_it_died_between_the_generation_and_the_row(self, edge: EdgeProject, result: Make, key: str) -> None:
        one = result(key)
        settlement = one.upload()
        edge.functions.faults.dies_before_row = 1
        assert one.insist(settlement).accepted
        one.is_complete_once()
        assert one.heard.names == ([] if key == "service" else ["publish.unsure"])

    def test_a_generation_that_an_earlier_life_made_is_not_made_again(self, edge: EdgeProject, result: Make) -> None:
        one = result("service")
        settlement = one.upload()
        edge.functions.faults.dies_before_row = 1
        one.edge.ask(COMPLETE, {"task_id": one.id, "storage_path": settlement.storage_path})
        again = one.new_queue()
        again.reclaim_own(WORKER, [one.task.token])
        assert one.insist(settlement, again).accepted
        one.is_complete_once()

    def test_it_failed_before_it_did_anything_and_is_called_again(self, edge: EdgeProject, result: Make) -> None:
        one = result("service")
        settlement = one.upload()
        edge.functions.faults.before[COMPLETE] = [500, 546]
        assert one.insist(settlement).accepted
        one.is_complete_once()

    @pytest.mark.parametrize(("key", "how"), [("service", "reset"), ("pat", "504")])
    def test_a_call_without_an_answer_is_made_again_only_when_the_first_must_be_over(
        self, edge: EdgeProject, result: Make, key: str, how: str
    ) -> None:
        one = result(key)
        settlement, clock = one.upload(), Clock()
        one.queue._completion._clock = clock
        edge.stack.front.faults.add(
            Fault(COMPLETE, "reset") if how == "reset" else Fault(COMPLETE, "status", status=504)
        )
        for seconds in (100.0, 59.0, 0.5):
            with pytest.raises(PublishFailed, match="at work yet") as failed:
                one.queue.finish(settlement)
            assert not failed.value.permanent and failed.value.retry_after_s is not None
            assert failed.value.retry_after_s <= LOOK_AGAIN_S
            clock.now += seconds
        assert len(edge.stack.front.seen(COMPLETE, "POST")) == 1
        clock.now += 1.0
        assert one.insist(settlement).accepted
        if key == "service":
            one.is_complete_once()
        else:
            assert one.heard.names == ["publish.unsure"] and edge.row(one.id)["status"] == "Complete"

    @ALL
    def test_what_a_call_without_an_answer_did_late_is_found(self, edge: EdgeProject, result: Make, key: str) -> None:
        one = result(key)
        settlement = one.upload()
        edge.stack.front.faults.add(Fault(COMPLETE, "reset"))
        with pytest.raises(PublishFailed, match="at work yet"):
            one.queue.finish(settlement)
        edge.ask(COMPLETE, {"task_id": one.id, "storage_path": settlement.storage_path})
        assert one.queue.finish(settlement).accepted
        one.is_complete_once()

    def test_what_is_being_published_again_is_not_taken_for_a_lost_claim(self, edge: EdgeProject, result: Make) -> None:
        one = result("service")
        settlement = one.upload()
        text = "publish.quota_exceeded: full"
        assert one.queue.finish(end(one.task, Verb.WITHHOLD, text)).accepted
        edge.insert()
        edge.functions.faults.before["claim-next-task"] = [500]
        edge.functions.faults.before[COMPLETE] = [500]
        with pytest.raises(QueueUnavailable):
            claim(one.queue)
        with pytest.raises(PublishFailed):
            one.queue.finish(settlement)
        assert edge.row(one.id)["status"] == "In Progress"
        other = claimed(one.queue)
        assert other.id != one.id and claim(one.queue) is None
        assert one.queue.finish(end(one.task, Verb.WITHHOLD, text)) == FinishReply(True, "Failed")
        assert edge.row(one.id)["status"] == "Failed", "told again, since it had been under way again"
        assert one.insist(settlement).accepted
        one.is_complete_once()
        assert edge.row(one.id)["error_message"] is None

    def test_what_the_row_shows_already_is_not_deleted_although_its_completion_was_lost(
        self, edge: EdgeProject, result: Make
    ) -> None:
        one = result("service")
        settlement = one.upload()
        edge.ask(COMPLETE, {"task_id": one.id, "storage_path": settlement.storage_path})
        reply = one.queue.finish(end(one.task, Verb.WITHHOLD, "publish.quota_exceeded: full"))
        assert reply == FinishReply(False, "Complete", kept=True)

    def test_nobody_can_tell_with_a_personal_token_so_it_is_not_called_again(
        self, edge: EdgeProject, result: Make
    ) -> None:
        one = result("pat")
        settlement = one.upload()
        edge.functions.faults.before[COMPLETE] = [500]
        assert one.insist(settlement).accepted
        row = edge.row(one.id)
        assert (row["status"], row["output_location"]) == ("Complete", one.staged[0].url)
        assert one.heard.names == ["publish.unsure"] and len(edge.generations(one.id)) == 0

    @pytest.mark.parametrize(("key", "status"), [("service", 429)])
    def test_a_call_that_never_reached_it_is_made_again(
        self, edge: EdgeProject, result: Make, key: str, status: int
    ) -> None:
        one = result(key)
        settlement = one.upload()
        edge.stack.front.faults.add(Fault(COMPLETE, "status", status=status, headers={"Retry-After": "1"}))
        with pytest.raises(PublishFailed) as failed:
            one.queue.finish(settlement)
        assert (failed.value.code, failed.value.retry_after_s) == ("publish.unavailable", 1.0)
        assert one.insist(settlement).accepted
        one.is_complete_once()
        assert not one.heard

    @ALL
    def test_a_yes_that_changed_no_row_is_not_believed(self, edge: EdgeProject, result: Make, key: str) -> None:
        one = result(key)
        settlement = one.upload()
        edge.functions.faults.without_row = 1
        assert one.insist(settlement).accepted
        one.is_complete_once()
        assert one.heard.names == ["publish.no_effect"]

    @ALL
    def test_a_yes_without_any_deed_leaves_a_complete_row_and_a_word(
        self, edge: EdgeProject, result: Make, key: str
    ) -> None:
        one = result(key)
        settlement = one.upload()
        edge.functions.faults.without_all = 1
        assert one.insist(settlement).accepted
        assert edge.row(one.id)["status"] == "Complete" and one.heard.names == ["publish.no_effect"]

    @pytest.mark.parametrize("change", ["status = 'Cancelled'", "status = 'Queued'", "worker_id = 'gpu-rival'"])
    def test_a_task_that_is_ours_no_longer_gets_no_generation_and_its_files_go(
        self, edge: EdgeProject, result: Make, change: str
    ) -> None:
        one = result("service")
        settlement = one.upload()
        edge.sql(f"UPDATE tasks SET {change} WHERE id = %s", one.id)
        before = edge.row(one.id)
        reply = one.queue.finish(settlement)
        assert (reply.accepted, reply.status) == (False, before["status"])
        one.store.withdraw(one.ending, one.staged)
        assert edge.row(one.id) == before and not edge.generations(one.id) and not one.paths
        assert not edge.functions.called(COMPLETE)

    def test_what_another_worker_completed_meanwhile_is_not_taken_for_ours(
        self, edge: EdgeProject, result: Make
    ) -> None:
        one = result("service")
        settlement = one.upload()
        edge.sql("UPDATE tasks SET status = 'Complete', output_location = 'https://x/other' WHERE id = %s", one.id)
        assert one.queue.finish(settlement) == FinishReply(False, "Complete")

    def test_a_place_of_the_apps_own_for_what_we_gave_it_is_no_reason_to_delete_it(
        self, edge: EdgeProject, result: Make
    ) -> None:
        one = result("service")
        settlement = one.upload()
        edge.sql("CREATE FUNCTION elsewhere() RETURNS trigger LANGUAGE plpgsql AS $$"
                 " BEGIN NEW.output_location := 'https://cdn.test/1'; RETURN NEW; END $$;"
                 "CREATE TRIGGER elsewhere BEFORE UPDATE ON tasks FOR EACH ROW WHEN (NEW.status = 'Complete')"
                 " EXECUTE FUNCTION elsewhere()")  # fmt: skip
        try:
            assert one.queue.finish(settlement) == FinishReply(True, "Complete")
        finally:
            edge.sql("DROP TRIGGER elsewhere ON tasks; DROP FUNCTION elsewhere()")

    def test_with_a_personal_token_a_cancelled_task_is_known_once_it_was_seen_to_run(
        self, edge: EdgeProject, result: Make
    ) -> None:
        one = result("pat")
        settlement = one.upload()
        one.queue._heartbeat.beat([], {})
        assert one.queue._ends.look(settlement).running is True
        edge.sql("UPDATE tasks SET status = 'Cancelled' WHERE id = %s", one.id)
        assert not one.queue.finish(settlement).accepted and not edge.generations(one.id)
        one.store.withdraw(one.ending, one.staged)
        assert len(one.paths) == 1, "a token deletes nothing, and nobody is bothered with that"

    @ALL
    def test_an_outage_waits_and_is_over_once(self, edge: EdgeProject, result: Make, key: str) -> None:
        one = result(key)
        settlement = one.upload()
        edge.stack.front.down()
        try:
            with pytest.raises(PublishFailed) as failed:
                one.queue.finish(settlement)
        finally:
            edge.stack.front.up()
        assert (failed.value.code, failed.value.permanent) == ("publish.unavailable", False)
        assert one.insist(settlement).accepted
        one.is_complete_once()

    @pytest.mark.parametrize(("key", "new_life"), [("service", True), ("pat", False), ("pat", True)])
    def test_what_only_a_person_can_mend_is_withheld_and_complete_after_it_was_mended(
        self, edge: EdgeProject, result: Make, key: str, new_life: bool
    ) -> None:
        one = result(key)
        settlement = one.upload()
        edge.stack.front.faults.add(Fault(COMPLETE, "status", status=403, body='{"error": "wrong path"}'))
        with pytest.raises(PublishFailed) as failed:
            one.queue.finish(settlement)
        assert (failed.value.code, failed.value.permanent) == ("publish.complete_task", True)
        text = f"publish.complete_task: {failed.value.message}"
        assert one.queue.finish(end(one.task, Verb.WITHHOLD, text)) == FinishReply(True, "Failed")
        assert edge.row(one.id)["output_location"] == text
        assert one.insist(settlement, one.new_queue() if new_life else one.queue).accepted
        one.is_complete_once()

    def test_a_task_of_no_project_is_completed_without_a_generation(self, edge: EdgeProject, result: Make) -> None:
        one = result("service")
        edge.sql("UPDATE tasks SET project_id = NULL WHERE id = %s", one.id)
        settlement = one.upload()
        edge.functions.faults.before[COMPLETE] = [500]
        assert one.insist(settlement).accepted
        assert edge.row(one.id)["status"] == "Complete" and not edge.generations(one.id)


class TestUploading:
    @ALL
    @pytest.mark.parametrize("where", [UPLOAD_URL, "object/upload/sign"])
    def test_an_answer_lost_on_the_way_leaves_one_object(
        self, edge: EdgeProject, result: Make, key: str, where: str
    ) -> None:
        one = result(key, film_mp4=b"film" * 100_000)
        edge.stack.front.faults.add(Fault(where, "cut_after"))
        assert one.queue.finish(one.upload()).accepted
        assert len(one.paths) == 1
        assert edge.stack.storage.content(BUCKET, one.paths[0]) == b"film" * 100_000
        one.is_complete_once()

    def test_a_body_that_breaks_off_is_sent_again(self, edge: EdgeProject, result: Make) -> None:
        one = result("pat", film_mp4=b"film" * 500_000)
        edge.stack.front.faults.add(Fault("object/upload/sign", "reset", after_bytes=300_000))
        one.upload()
        assert [edge.stack.storage.content(BUCKET, path) for path in one.paths] == [b"film" * 500_000]

    def test_the_next_life_sends_it_under_another_name_when_the_first_is_taken(
        self, edge: EdgeProject, result: Make
    ) -> None:
        one = result("service")
        one.upload()
        one.store = one.new_store()
        settlement = one.upload()
        assert one.queue.finish(settlement).accepted
        assert settlement.storage_path is not None and settlement.storage_path.rpartition("/")[2].startswith("2-1-")
        one.is_complete_once()

    def test_what_was_sent_is_not_sent_again_by_the_same_life(self, edge: EdgeProject, result: Make) -> None:
        one = result("pat", film_mp4=b"film", film_jpg=b"still")
        edge.stack.front.faults.add(Fault("film.jpg", "status", status=503, times=20, method="PUT"))
        with pytest.raises(PublishFailed) as failed:
            one.upload()
        assert not failed.value.permanent
        edge.stack.front.faults.clear()
        one.upload()
        assert len(edge.stack.front.seen("film.mp4", "PUT")) == 1 and len(one.paths) == 2

    def test_no_key_goes_with_the_file(self, edge: EdgeProject, result: Make) -> None:
        one = result("pat")
        headers: list[Any] = []
        one.store._project.http.event_hooks["request"].append(
            lambda request: headers.append(dict(request.headers)) if request.method == "PUT" else None
        )
        one.upload()
        assert len(headers) == 1 and edge.pat not in str(headers)

    def test_a_file_that_is_too_large_waits_for_a_person(self, edge: EdgeProject, result: Make) -> None:
        one = result("service", film_mp4=b"film" * 10)
        edge.stack.storage.buckets[BUCKET] = BucketSpec(size_limit=10)
        try:
            with pytest.raises(PublishFailed) as failed:
                one.upload()
        finally:
            edge.stack.storage.buckets[BUCKET] = BucketSpec()
        assert (failed.value.code, failed.value.permanent) == ("publish.too_large", True)

    @pytest.mark.parametrize("key", ["pat"])
    def test_a_task_without_a_user_cannot_be_published(self, edge: EdgeProject, result: Make, key: str) -> None:
        one = result(key)
        edge.sql("UPDATE tasks SET user_id = NULL WHERE id = %s", one.id)
        with pytest.raises(PublishFailed, match="no associated user") as failed:
            one.upload()
        assert (failed.value.code, failed.value.permanent) == ("publish.refused", True)

    def test_a_stop_ends_it_at_once(self, edge: EdgeProject, result: Make) -> None:
        one = result("pat")
        stop = threading.Event()
        edge.stack.front.faults.add(Fault("object/upload/sign", "hang"))
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(PublishFailed) as failed:
            one.upload(stop)
        edge.stack.front.faults.clear()
        assert failed.value.code == "worker.stopping"

    def test_an_answer_that_is_no_upload_url_is_asked_for_again(self, edge: EdgeProject, result: Make) -> None:
        one = result("pat")
        for body in ("<html>", '{"upload_url": "https://elsewhere.test/", "storage_path": "x"}', "[]"):
            edge.stack.front.faults.add(Fault(UPLOAD_URL, "status", status=200, body=body))
        one.upload()
        assert len(one.paths) == 1


class TestOtherEnds:
    @ALL
    def test_a_failures_reason_stands_in_output_location(self, edge: EdgeProject, result: Make, key: str) -> None:
        one = result(key)
        how = Fault(UPDATE, "cut_after") if key == "pat" else Fault("rest/v1/tasks", "cut_after", method="PATCH")
        edge.stack.front.faults.add(how)
        settlement = end(one.task, Verb.FAIL, "comfy.node_failed: a node failed")
        assert one.queue.finish(settlement) == FinishReply(True, "Failed")
        row = edge.row(one.id)
        assert (row["status"], row["output_location"]) == ("Failed", "comfy.node_failed: a node failed")
        assert row["error_message"] == (row["output_location"] if key == "service" else None)
        if key == "service":
            assert one.new_queue().finish(settlement).repeated

    @ALL
    def test_three_failures_are_final_with_all_their_causes(self, edge: EdgeProject, result: Make, key: str) -> None:
        one = result(key)
        task = one.task
        for number in (1, 2):
            settlement = end(task, Verb.RETRY, f"a.b: cause {number}")
            assert one.queue.finish(settlement) == FinishReply(True, "Queued")
            assert one.queue.finish(settlement).repeated, "counted once"
            task = claimed(one.queue)
            assert (task.attempt, task.failures, task.losses) == (number + 1, number, 0)
        assert one.queue.finish(end(task, Verb.RETRY, "a.b: cause 3")).status == "Failed"
        text = edge.row(one.id)["output_location"]
        assert text.startswith("a.b: cause 3") and "cause 1" in text and "cause 2" in text

    @ALL
    def test_two_losses_are_final_and_being_handed_back_costs_nothing(
        self, edge: EdgeProject, result: Make, key: str
    ) -> None:
        one = result(key)
        assert one.queue.finish(end(one.task, Verb.RELEASE, "worker.stopping: it stops")).status == "Queued"
        first = claimed(one.queue)
        assert first.attempt == 1
        assert one.queue.finish(end(first, Verb.LOSS, "process.died: killed")).status == "Queued"
        assert one.queue.finish(end(claimed(one.queue), Verb.LOSS, "process.died: again")).status == "Failed"

    @ALL
    def test_a_count_survives_an_outage_in_the_middle(self, edge: EdgeProject, result: Make, key: str) -> None:
        one = result(key)
        settlement = end(one.task, Verb.RETRY, "a.b: c")
        edge.stack.front.down()
        try:
            with pytest.raises(QueueUnavailable):
                one.queue.finish(settlement)
        finally:
            edge.stack.front.up()
        assert one.queue.finish(settlement).status == "Queued"
        assert claimed(one.queue).failures == 1

    def test_a_cancelled_task_stays_as_its_user_left_it(self, edge: EdgeProject, result: Make) -> None:
        one = result("service")
        edge.sql("UPDATE tasks SET status = 'Cancelled' WHERE id = %s", one.id)
        before = edge.row(one.id)
        assert one.queue.finish(end(one.task, Verb.CANCEL)) == FinishReply(True, "Cancelled")
        assert edge.row(one.id) == before

    @pytest.mark.parametrize("verb", [Verb.FAIL, Verb.RETRY, Verb.LOSS, Verb.RELEASE])
    def test_a_row_that_another_worker_has_is_not_touched(self, edge: EdgeProject, result: Make, verb: Verb) -> None:
        one = result("service")
        edge.sql("UPDATE tasks SET worker_id = %s WHERE id = %s", RIVAL, one.id)
        before = edge.row(one.id)
        assert not one.queue.finish(end(one.task, verb, "a.b: c")).accepted
        assert edge.row(one.id) == before

    @pytest.mark.parametrize("verb", [Verb.FAIL, Verb.WITHHOLD, Verb.RELEASE, Verb.COMPLETE])
    @pytest.mark.parametrize("change", ["worker_id = 'gpu-rival'", "status = 'Cancelled'"])
    def test_a_row_that_changes_between_the_look_and_the_end_is_not_touched(
        self, edge: EdgeProject, result: Make, monkeypatch: pytest.MonkeyPatch, verb: Verb, change: str
    ) -> None:
        one = result("service")
        look = one.queue._ends.look

        def look_and_meddle(settlement: Settlement) -> Sight:
            sight = look(settlement)
            edge.sql(f"UPDATE tasks SET {change} WHERE id = %s", one.id)
            return sight

        monkeypatch.setattr(one.queue._ends, "look", look_and_meddle)
        reply = one.queue.finish(end(one.task, verb, "publish.b: c", output_location="https://x.test/a"))
        row = edge.row(one.id)
        assert not reply.accepted and row["output_location"] is None
        assert (row["status"], row["worker_id"]) in (("In Progress", RIVAL), ("Cancelled", WORKER))

    @ALL
    def test_what_waits_for_a_task_that_failed_for_good_fails_with_it(
        self, edge: EdgeProject, result: Make, key: str
    ) -> None:
        one = result(key)
        first = edge.insert(dependant_on=one.id)
        second, other = edge.insert(dependant_on=first), edge.insert()
        assert one.queue.finish(end(one.task, Verb.FAIL, "a.b: c")).accepted
        if key == "pat":
            assert edge.statuses(first, second, other) == ["Queued"] * 3
            return
        assert edge.statuses(first, second, other) == ["Failed", "Failed", "Queued"]
        row = edge.row(first)
        assert row["error_message"] == row["output_location"]
        assert row["output_location"].startswith(f"task.dependency_failed: the task {one.id},")

    def test_what_waits_for_a_failed_task_is_failed_by_the_repeat_when_the_first_end_broke_off(
        self, edge: EdgeProject, result: Make
    ) -> None:
        one = result("service")
        waits = edge.insert(dependant_on=one.id)
        settlement = end(one.task, Verb.FAIL, "a.b: c")
        edge.stack.front.faults.add(Fault("dependant_on", "status", times=3))
        with pytest.raises(QueueUnavailable):
            one.queue.finish(settlement)
        assert edge.statuses(one.id, waits) == ["Failed", "Queued"]
        assert one.queue.finish(settlement).accepted
        assert edge.statuses(waits) == ["Failed"]

    def test_a_withheld_result_fails_nobody_who_waits_for_it(self, edge: EdgeProject, result: Make) -> None:
        one = result("service")
        waits = edge.insert(dependant_on=one.id)
        assert one.queue.finish(end(one.task, Verb.WITHHOLD, "publish.quota_exceeded: full")).accepted
        assert edge.statuses(waits) == ["Queued"]

    def test_a_task_to_be_tried_later_is_nobodys_until_then(self, edge: EdgeProject) -> None:
        clock = Clock()
        queue = edge.queue(clock=clock)
        task_id = edge.insert()
        task = claimed(queue)
        settlement = end(task, Verb.RETRY, "a.b: c", retry_in_s=300.0)
        assert queue.finish(settlement) == FinishReply(True, "Queued")
        edge.functions.faults.before["claim-next-task"] = [500]
        edge.insert("t2v")
        with pytest.raises(QueueUnavailable):
            claim(queue)
        assert claimed(queue).task_type == "t2v" and claim(queue) is None, "and it is no lost claim"
        assert edge.statuses(task_id) == ["In Progress"]
        clock.now += HOLD_MAX_S + 1
        queue.heartbeat(WORKER, [], 90.0, {})
        assert edge.statuses(task_id) == ["Queued"], "also while no claim is made"
        again = claimed(queue)
        assert (again.id, again.failures) == (task_id, 1)
        assert queue.finish(end(again, Verb.RETRY, "a.b: c", retry_in_s=30.0)).accepted
        queue.close()
        assert edge.statuses(task_id) == ["Queued"], "the worker's end does not keep it"

    def test_a_table_without_a_place_for_messages_gets_none(self, edge: EdgeProject) -> None:
        task_id = edge.insert()
        edge.stack.front.faults.add(Fault("select=error_message", "status", 400, body={"code": "42703"}))
        queue = edge.queue()
        assert queue.finish(end(claimed(queue), Verb.FAIL, "a.b: c")).accepted
        row = edge.row(task_id)
        assert (row["output_location"], row["error_message"]) == ("a.b: c", None)

    @ALL
    def test_words_without_files_are_the_output(self, edge: EdgeProject, result: Make, key: str) -> None:
        one = result(key)
        settlement = end(one.task, Verb.COMPLETE, result_data={"text": {"4": ["a cat", "a dog"], "7": ["end"]}})
        assert one.queue.finish(settlement) == FinishReply(True, "Complete")
        assert edge.row(one.id)["output_location"] == "a cat\na dog\nend"

    @pytest.mark.parametrize("key", ["service"])
    def test_what_went_to_the_tasks_own_url_is_named_by_it(self, edge: EdgeProject, result: Make, key: str) -> None:
        one = result(key)
        assert one.queue.finish(end(one.task, Verb.COMPLETE, output_location="https://x.test/put.mp4")).accepted
        assert edge.row(one.id)["output_location"] == "https://x.test/put.mp4"

    def test_what_the_function_will_not_write_is_refused(self, edge: EdgeProject, result: Make) -> None:
        one = result("pat")
        edge.stack.front.faults.add(Fault(UPDATE, "status", status=400, body='{"error": "too long"}'))
        with pytest.raises(QueueRefused, match="too long"):
            one.queue.finish(end(one.task, Verb.FAIL, "a.b: c"))

    def test_several_ends_are_told_one_after_the_other(self, edge: EdgeProject) -> None:
        queue = edge.queue()
        ids = [edge.insert() for _ in range(3)]
        settlements = [end(claimed(queue), Verb.FAIL, "a.b: c") for _ in ids]
        edge.stack.front.faults.add(Fault("rest/v1/tasks", "status", method="PATCH", skip=1, times=3))
        with pytest.raises(QueueUnavailable):
            queue.finish_many(settlements)
        replies = queue.finish_many(settlements)
        assert [reply.repeated for reply in replies] == [True, False, False]
        assert edge.statuses(*ids) == ["Failed"] * 3
