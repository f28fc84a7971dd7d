"""A whole worker on a Supabase project: rows by SQL, results in Storage, and what goes wrong on the way there."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.request import Request, urlopen

import pytest

from tests.conftest_worker import Row, Worker, eventually
from tests.front_faults import Fault
from tests.storage_stand_in import BucketSpec, Refusal
from tests.supabase_stack import Stack

Start = Callable[..., Worker]
BUCKET = "image_uploads"
TEXT = {"files": {"a.txt": "one"}}
LARGE = {"files": {"a.bin": "0123456789abcdef"}, "times": 1 << 20}
"""16 MiB: three parts of a resumable upload."""


def finished_once(worker: Worker, task_id: str, attempts: int = 1) -> Row:
    row = worker.ended(task_id)
    assert (row["status"], row["attempts"]) == ("Complete", attempts), (row, worker.log[-3000:])
    names = [event["name"] for event in worker.events(task_id)]
    assert (names.count("claimed"), names.count("completed")) == (attempts, 1)
    return row


def read(url: str) -> bytes:
    with urlopen(url) as answer:
        return bytes(answer.read())


def published_once(stack: Stack, worker: Worker, task_id: str) -> None:
    (path,) = [path for path in stack.storage.paths(BUCKET) if task_id in path]
    assert worker.row(task_id)["output_location"].endswith(path)


class TestPublishing:
    def test_objects_lie_at_paths_that_name_the_attempt_and_the_spool_is_empty(
        self, supabase_worker: Worker, supabase_stack: Stack
    ) -> None:
        task_id = supabase_worker.insert("maker", {"files": {"a.txt": "one", "b ü.txt": "two"}})
        row = finished_once(supabase_worker, task_id)
        (lease_id,) = [found["lease_id"] for found in supabase_worker.sql("SELECT lease_id FROM task_leases")]
        prefix = f"{task_id}/1-{lease_id[:8]}"
        assert sorted(supabase_stack.storage.paths(BUCKET)) == [f"{prefix}/a.txt", f"{prefix}/b _.txt"], (
            "Storage takes no ü"
        )
        made = row["result_data"]["artifacts"]
        assert [read(one["url"]) for one in made] == [b"one", b"two"]
        assert row["output_location"] == made[0]["url"] and "path" not in made[0]
        assert supabase_stack.storage.mime(BUCKET, f"{prefix}/a.txt") == "text/plain"
        eventually("the spool is empty", supabase_worker.spool_is_empty)
        assert not (supabase_worker.data_dir / "outputs").exists()

    @pytest.mark.long
    def test_a_user_of_the_predecessors_app_finds_it_below_the_own_id(
        self, supabase_worker: Worker, supabase_stack: Stack
    ) -> None:
        user = "11111111-2222-3333-4444-555555555555"
        task_id = supabase_worker.insert("maker", TEXT, user_id=user)
        finished_once(supabase_worker, task_id)
        (path,) = supabase_stack.storage.paths(BUCKET)
        assert path.startswith(f"{user}/tasks/{task_id}/1-")

    def test_a_private_bucket_gets_signed_urls_whose_token_no_log_has(
        self, start_supabase_worker: Start, supabase_stack: Stack
    ) -> None:
        supabase_stack.storage.buckets["private"] = BucketSpec(public=False)
        worker = start_supabase_worker(
            environ={
                "SUPABASE_VIDEO_BUCKET": "private",
                "WAN2GP_STORAGE_URL": "signed",
                "WAN2GP_STORAGE_PATH": "out/{worker}/{task_type}/{task_id}/{attempt}/{lease}_{filename}",
            }
        )
        task_id = worker.insert("maker", TEXT)
        row = finished_once(worker, task_id)
        assert read(row["output_location"]) == b"one"
        (path,) = supabase_stack.storage.paths("private")
        assert path.startswith(f"out/w1/maker/{task_id}/1/") and path.endswith("_a.txt")
        token = row["output_location"].partition("token=")[2]
        assert token and token not in worker.log + worker.screen

    @pytest.mark.long
    def test_a_url_that_the_task_gave_gets_the_primary_file_and_no_log_has_its_signature(
        self, start_supabase_worker: Start, supabase_stack: Stack
    ) -> None:
        worker = start_supabase_worker(environ={"WAN2GP_ALLOW_PRIVATE_PUT_URLS": "1"})
        ask = Request(
            f"{supabase_stack.url}/storage/v1/object/upload/sign/{BUCKET}/mine/x.txt",
            method="POST",
            data=b"{}",
            headers={"Authorization": f"Bearer {supabase_stack.key}", "Content-Type": "application/json"},
        )
        signed = supabase_stack.url + "/storage/v1" + json.loads(read(ask))["url"]  # type: ignore[arg-type]
        params = {"files": {"a.txt": "one", "b.txt": "two"}, "put_url": signed}
        row = finished_once(worker, worker.insert("maker", params))
        assert supabase_stack.storage.content(BUCKET, "mine/x.txt") == b"one"
        assert row["output_location"] == signed.partition("?")[0]
        assert len(supabase_stack.storage.paths(BUCKET)) == 2, "the other one goes the usual way"
        assert signed.partition("token=")[2] not in worker.log + worker.screen + json.dumps(row["result_data"])

    @pytest.mark.parametrize("wrong", ["ftp://host/x", pytest.param(7, marks=pytest.mark.long)])
    def test_a_put_url_that_is_none_costs_no_run(self, supabase_worker: Worker, wrong: object) -> None:
        row = supabase_worker.ended(supabase_worker.insert("maker", {**TEXT, "put_url": wrong}))
        assert row["status"] == "Failed" and row["error_message"].startswith("publish.bad_put_url: ")
        assert "Starting handler" not in supabase_worker.log


class TestLostAnswers:
    @pytest.mark.parametrize(
        "verb", ["wan2gp_claim", "wan2gp_finish_many", pytest.param("wan2gp_heartbeat", marks=pytest.mark.long)]
    )
    def test_a_call_that_was_committed_and_not_answered_is_repeated_safely(
        self, supabase_worker: Worker, supabase_stack: Stack, verb: str
    ) -> None:
        fault = supabase_stack.front.faults.add(Fault(f"rpc/{verb}", "cut_after", times=3))
        tasks = [supabase_worker.insert("maker", TEXT) for _ in range(4)]
        for task_id in tasks:
            finished_once(supabase_worker, task_id)
            published_once(supabase_stack, supabase_worker, task_id)
        eventually("all three answers were lost", lambda: fault.hits == 3)

    @pytest.mark.long
    @pytest.mark.parametrize("params", [TEXT, LARGE], ids=["small", "resumable"])
    def test_an_upload_that_arrived_and_was_not_answered_is_repeated_onto_itself(
        self, supabase_worker: Worker, supabase_stack: Stack, params: dict[str, object]
    ) -> None:
        supabase_stack.storage.mischief.lost = 1
        task_id = supabase_worker.insert("maker", params)
        finished_once(supabase_worker, task_id)
        published_once(supabase_stack, supabase_worker, task_id)
        assert supabase_stack.storage.mischief.lost == 0

    def test_a_large_upload_that_is_cut_goes_on_where_it_was(
        self, supabase_worker: Worker, supabase_stack: Stack
    ) -> None:
        supabase_stack.storage.mischief.cuts = [3 << 20]
        task_id = supabase_worker.insert("maker", LARGE)
        finished_once(supabase_worker, task_id)
        (path,) = supabase_stack.storage.paths(BUCKET)
        assert supabase_stack.storage.content(BUCKET, path) == b"0123456789abcdef" * (1 << 20)


class TestRefusedEnds:
    @pytest.mark.long
    def test_what_a_refused_finish_has_published_is_deleted(
        self, supabase_worker: Worker, supabase_stack: Stack
    ) -> None:
        """Its user cancels while the file goes up."""
        hang = supabase_stack.front.faults.add(Fault("rpc/wan2gp_finish_many", "slow", delay_s=1.0))
        task_id = supabase_worker.insert("maker", TEXT)
        eventually("the end is on its way", lambda: hang.hits)
        assert len(supabase_stack.storage.paths(BUCKET)) == 1
        supabase_worker.sql("UPDATE tasks SET status = 'Cancelled' WHERE id = %s", task_id)
        eventually("the file is gone", lambda: supabase_stack.storage.paths(BUCKET) == [])
        eventually("it is said", lambda: "was refused, its row is Cancelled" in supabase_worker.log)
        eventually("the spool is empty", supabase_worker.spool_is_empty)
        finished_once(supabase_worker, supabase_worker.insert("maker", TEXT))

    @pytest.mark.long
    def test_a_deletion_that_was_not_possible_is_made_by_the_next_life(
        self, start_supabase_worker: Start, supabase_stack: Stack
    ) -> None:
        """Storage goes away between the upload and the refusal, then the worker dies."""
        worker = start_supabase_worker()
        slow = supabase_stack.front.faults.add(Fault("rpc/wan2gp_finish_many", "slow", delay_s=1.0))
        task_id = worker.insert("maker", TEXT)
        eventually("the end is on its way", lambda: slow.hits)
        away = supabase_stack.front.faults.add(Fault("/storage/v1/", "status", status=503, times=None))
        worker.sql("UPDATE tasks SET status = 'Cancelled' WHERE id = %s", task_id)
        eventually("it is refused", lambda: "was refused, its row is Cancelled" in worker.log)
        eventually("it waits", lambda: [one["state"] for one in told(worker)] == ["deleting"])
        assert worker.ctl("drain", "--wait").returncode == 0, "nobody waits for a deletion"
        worker.kill()
        supabase_stack.front.faults.remove(away)
        worker = start_supabase_worker()
        eventually("the file is gone", lambda: supabase_stack.storage.paths(BUCKET) == [])
        eventually("the spool is empty", worker.spool_is_empty)
        assert worker.row(task_id)["status"] == "Cancelled"


def told(worker: Worker) -> list[Row]:
    """What status says of results that are not published."""
    return list(worker.status()["worker"]["publishing"])


class TestWithheld:
    @pytest.mark.long
    def test_a_result_that_the_bucket_does_not_take_waits_for_a_person_and_holds_up_nobody(
        self, supabase_worker: Worker, supabase_stack: Stack
    ) -> None:
        limit = supabase_stack.storage.buckets[BUCKET]
        supabase_stack.storage.buckets[BUCKET] = BucketSpec(public=True, size_limit=10)
        large = supabase_worker.insert("maker", {"files": {"a.txt": "x" * 100}})
        row = supabase_worker.ended(large)
        assert row["status"] == "Failed" and row["error_message"].startswith("publish.too_large: ")
        finished_once(supabase_worker, supabase_worker.insert("maker", TEXT))
        (one,) = told(supabase_worker)
        assert (one["task_id"], one["state"], one["bytes"]) == (large, "withheld", 100)
        assert "publish.too_large" in supabase_worker.ctl("status").stdout
        drained = supabase_worker.ctl("drain", "--wait")
        assert drained.returncode == 1 and "1 result(s)" in drained.stderr and "publish retry" in drained.stderr
        assert supabase_worker.ctl("resume").returncode == 0
        again = supabase_worker.ctl("publish", "retry", large)
        assert (again.returncode, again.stdout) == (0, "1 result sent again: see `wan2gp-ctl status`\n")
        eventually("it is withheld again", lambda: supabase_worker.log.count("its files stay in the spool") == 2)
        supabase_stack.storage.buckets[BUCKET] = limit
        assert supabase_worker.ctl("publish", "retry").returncode == 0
        eventually("it is complete", lambda: supabase_worker.row(large)["status"] == "Complete")
        row = supabase_worker.row(large)
        assert row["error_message"] is None and row["attempts"] == 1 and read(row["output_location"]) == b"x" * 100
        eventually("the spool is empty", supabase_worker.spool_is_empty)
        refused = supabase_worker.ctl("publish", "retry", large)
        assert refused.returncode == 1 and "no result of the task" in refused.stderr

    @pytest.mark.long
    def test_a_wrong_bucket_is_mended_by_a_restart(self, start_supabase_worker: Start, supabase_stack: Stack) -> None:
        worker = start_supabase_worker(environ={"SUPABASE_VIDEO_BUCKET": "nowhere"})
        task_id = worker.insert("maker", TEXT)
        row = worker.ended(task_id)
        assert row["error_message"].startswith("publish.bucket_missing: ") and "nowhere" in row["error_message"]
        eventually("it was said at the start", lambda: "No result can be published: " in worker.log)
        assert worker.stop() == 0
        worker = start_supabase_worker()
        eventually("it is complete", lambda: worker.row(task_id)["status"] == "Complete")
        published_once(supabase_stack, worker, task_id)

    @pytest.mark.long
    def test_a_task_that_was_queued_again_is_not_completed_by_the_withheld_result(
        self, supabase_worker: Worker, supabase_stack: Stack
    ) -> None:
        refusal = {"statusCode": "413", "error": "Payload too large", "message": "too large"}
        supabase_stack.storage.mischief.refusals.append(Refusal(400, refusal, part="object"))
        task_id = supabase_worker.insert("maker", TEXT)
        assert supabase_worker.ended(task_id)["status"] == "Failed"
        assert supabase_worker.ctl("retry", task_id).returncode == 0
        row = finished_once(supabase_worker, task_id, 2)
        assert supabase_worker.ctl("publish", "retry", task_id).returncode == 0
        eventually("it is forgotten", supabase_worker.spool_is_empty)
        assert supabase_worker.row(task_id) == row
        published_once(supabase_stack, supabase_worker, task_id)


class TestStarts:
    @pytest.mark.long
    def test_a_storage_that_is_away_stops_no_start_and_what_waits_for_it_is_not_run_again(
        self, start_supabase_worker: Start, supabase_stack: Stack
    ) -> None:
        fault = supabase_stack.front.faults.add(Fault("/storage/v1/", "status", status=503, times=None))
        worker = start_supabase_worker()
        task_id = worker.insert("maker", TEXT)
        eventually("it cannot be published", lambda: "cannot be published now" in worker.log)
        worker.kill()
        worker = start_supabase_worker()
        noop = worker.insert("noop")
        finished_once(worker, noop)
        assert worker.row(task_id)["status"] == "In Progress"
        assert [one["state"] for one in told(worker)] in (["waiting"], ["uploading"])
        supabase_stack.front.faults.remove(fault)
        finished_once(worker, task_id)
        published_once(supabase_stack, worker, task_id)

    @pytest.mark.long
    def test_results_that_go_up_slowly_after_a_start_are_not_taken_by_another_worker(
        self, start_supabase_worker: Start, supabase_stack: Stack
    ) -> None:
        """They had finished; their leases ended while the worker that started again was still sending."""
        short = {"WAN2GP_LEASE_S": "3", "WAN2GP_RENEW_S": "0.5", "WAN2GP_UPLOADS": "1"}
        away = supabase_stack.front.faults.add(Fault("/storage/v1/", "status", status=503, times=None))
        worker = start_supabase_worker(environ=short)
        tasks = [worker.insert("maker", TEXT) for _ in range(4)]
        eventually("all wait", lambda: len(told(worker)) == 4)
        other = start_supabase_worker(name="other", environ=short)
        worker.kill()
        supabase_stack.front.faults.remove(away)
        supabase_stack.front.faults.add(Fault("/storage/v1/", "slow", delay_s=1.5, times=4))
        worker = start_supabase_worker(environ=short)
        for task_id in tasks:
            finished_once(worker, task_id)
            published_once(supabase_stack, worker, task_id)
        assert "Processing" not in other.log

    def test_a_project_without_the_functions_says_what_to_run(
        self, start_supabase_worker: Start, supabase_stack: Stack
    ) -> None:
        with_functions = start_supabase_worker()
        with_functions.sql("DROP FUNCTION wan2gp_version()")
        supabase_stack.reload_schema()
        worker = start_supabase_worker(name="w2", wait=False)
        assert worker.process.wait(30) == 6
        assert "wan2gp-ctl db" in worker.screen

    def test_a_wrong_key_is_said_and_not_repeated(self, start_supabase_worker: Start) -> None:
        worker = start_supabase_worker(environ={"SUPABASE_SERVICE_ROLE_KEY": "sb_secret_planted_wrong"}, wait=False)
        assert worker.process.wait(30) == 5
        assert "key" in worker.screen and "planted_wrong" not in worker.screen

    def test_a_key_from_a_file_opens_the_project(
        self, start_supabase_worker: Start, supabase_stack: Stack, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.mktemp("secret") / "key"
        path.write_text(supabase_stack.key + "\n")
        worker = start_supabase_worker(
            environ={"SUPABASE_SERVICE_ROLE_KEY": "", "SUPABASE_SERVICE_ROLE_KEY_FILE": str(path)}
        )
        finished_once(worker, worker.insert("maker", TEXT))

    def test_a_database_url_with_a_project_publishes_there_too(
        self, start_supabase_worker: Start, supabase_stack: Stack
    ) -> None:
        worker = start_supabase_worker(environ={"WAN2GP_QUEUE": "auto", "DATABASE_URL": supabase_stack.database})
        assert worker.status()["worker"]["queue"] == "postgres"
        task_id = worker.insert("maker", TEXT)
        finished_once(worker, task_id)
        published_once(supabase_stack, worker, task_id)
