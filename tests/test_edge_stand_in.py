"""The stand-in of the predecessor's Edge Functions is what their contract says, with every fault of it."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

import httpx
import pytest

from tests.edge_functions import RIVAL, SERVICE
from tests.edge_projects import BUCKET, PROJECT, USER, WORKER, EdgeProject

FUNCTIONS = (
    "task-counts",
    "claim-next-task",
    "create-task",
    "update-task-status",
    "generate-upload-url",
    "complete_task",
    "get-predecessor-output",
)
NOBODY = "dddddddd-0000-4000-8000-00000000000d"


def claim(edge: EdgeProject, **how: Any) -> httpx.Response:
    return edge.ask("claim-next-task", {"worker_id": WORKER, "run_type": "gpu"}, **how)


def update(edge: EdgeProject, task_id: str, status: str, **more: Any) -> httpx.Response:
    token = more.pop("token", None)
    return edge.ask("update-task-status", {"task_id": task_id, "status": status, **more}, token=token)


def upload(edge: EdgeProject, task_id: str, name: str, content: bytes = b"film") -> dict[str, Any]:
    body = {"task_id": task_id, "filename": name, "content_type": "video/mp4"}
    said: dict[str, Any] = edge.ask("generate-upload-url", body).raise_for_status().json()
    httpx.put(said["upload_url"], content=content, headers={"Content-Type": "video/mp4"}).raise_for_status()
    return said


def running(edge: EdgeProject, **columns: Any) -> str:
    return edge.insert(status="In Progress", worker_id=WORKER, **columns)


class TestCallers:
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_no_token_is_401_an_unknown_one_403_and_another_method_405(self, edge: EdgeProject, name: str) -> None:
        body = {"task_id": NOBODY, "storage_path": f"{USER}/tasks/{NOBODY}/a.mp4"}
        assert edge.ask(name, body, token="").status_code == 401
        assert edge.ask(name, body, token="pat_nobodys").status_code == 403
        assert edge.ask(name, token=edge.stack.key, method="GET").status_code == 405

    def test_whoever_says_that_he_is_the_service_is_it_since_no_signature_is_checked(self, edge: EdgeProject) -> None:
        payload = base64.urlsafe_b64encode(json.dumps({"role": "service_role"}).encode()).decode().rstrip("=")
        edge.insert()
        assert claim(edge, token=f"eyJ.{payload}.forged").status_code == 200

    def test_a_function_that_is_not_deployed_is_the_gateways_404(self, edge: EdgeProject) -> None:
        edge.functions.faults.missing = {"task-counts"}
        answer = edge.ask("task-counts", {})
        assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")
        assert edge.stack.keys.holder(edge.stack.key) == SERVICE


class TestClaiming:
    def test_the_oldest_ready_row_is_given_with_its_worker_and_no_start(self, edge: EdgeProject) -> None:
        waiting = edge.insert(dependant_on=NOBODY)
        done = edge.insert(status="Complete")
        first = edge.insert("t2v", {"prompt": "ü"}, dependant_on=done)
        edge.insert()
        said = claim(edge).json()
        assert said == {"task_id": first, "params": {"prompt": "ü"}, "task_type": "t2v", "project_id": PROJECT}
        row = edge.row(first)
        assert (row["status"], row["worker_id"], row["generation_started_at"]) == ("In Progress", WORKER, None)
        assert row["attempts"] == 0, "nothing counts starts"
        assert edge.row(waiting)["status"] == "Queued"

    def test_nothing_is_204_and_empty(self, edge: EdgeProject) -> None:
        answer = claim(edge)
        assert (answer.status_code, answer.content) == (204, b"")

    def test_a_lost_race_is_204_although_another_row_is_ready(self, edge: EdgeProject) -> None:
        lost, ready = edge.insert(), edge.insert()
        edge.functions.faults.lost_races = 1
        assert claim(edge).status_code == 204
        assert edge.row(lost)["worker_id"] == RIVAL and edge.row(ready)["status"] == "Queued"

    def test_a_user_gets_only_own_rows_and_they_have_no_worker(self, edge: EdgeProject) -> None:
        edge.insert(project_id=None, user_id=None)
        own = edge.insert()
        assert claim(edge, token=edge.pat).json()["task_id"] == own
        assert edge.row(own)["worker_id"] is None
        assert claim(edge, token=edge.pat).status_code == 204

    def test_it_can_fail_before_and_after_it_has_claimed(self, edge: EdgeProject) -> None:
        task_id = edge.insert()
        edge.functions.faults.before["claim-next-task"] = [502]
        assert claim(edge).status_code == 502 and edge.row(task_id)["status"] == "Queued"
        edge.functions.faults.after["claim-next-task"] = [500]
        assert claim(edge).status_code == 500 and edge.row(task_id)["status"] == "In Progress"


class TestCounts:
    def test_totals_users_and_lists(self, edge: EdgeProject) -> None:
        queued, active = edge.insert(dependant_on=NOBODY), running(edge)
        said = edge.ask("task-counts", {"run_type": "gpu", "include_active": True}).json()
        assert said["totals"] == {"queued_only": 1, "active_only": 1, "queued_plus_active": 2, "eligible_queued": 0}
        assert [row["task_id"] for row in said["queued_tasks"]] == [queued]
        assert [(row["task_id"], row["worker_id"]) for row in said["active_tasks"]] == [(active, WORKER)]
        assert said["users"] == [{"user_id": USER, "queued_tasks": 1, "in_progress_tasks": 1, "at_limit": False}]
        assert "active_tasks" not in edge.ask("task-counts", {"run_type": "gpu"}).json()

    def test_it_may_say_that_nothing_is_queued_and_list_nothing(self, edge: EdgeProject) -> None:
        edge.insert()
        edge.functions.faults.counts_say_nothing, edge.functions.faults.counts_details = True, False
        said = edge.ask("task-counts", {}).json()
        assert said["totals"]["queued_only"] == 0 and "queued_tasks" not in said


class TestStatuses:
    def test_any_status_becomes_any_other_but_in_progress_wants_a_worker_and_a_time(self, edge: EdgeProject) -> None:
        task_id = edge.insert(status="Complete")
        assert update(edge, task_id, "In Progress").status_code == 400
        assert update(edge, task_id, "In Progress", worker_id=WORKER).status_code == 400
        now = "2026-01-01T00:00:00Z"
        assert update(edge, task_id, "In Progress", worker_id=WORKER, claimed_at=now).status_code == 200
        assert edge.row(task_id)["generation_started_at"] is not None
        said = update(edge, task_id, "Failed", output_location="no.such: thing").json()
        assert (said["success"], said["status"]) == (True, "Failed")
        assert edge.row(task_id)["output_location"] == "no.such: thing"

    def test_an_unknown_status_is_400_an_unknown_or_foreign_task_404(self, edge: EdgeProject) -> None:
        foreign = edge.insert(project_id=None)
        assert update(edge, foreign, "Cancelled").status_code == 400
        assert update(edge, NOBODY, "Queued").status_code == 404
        assert update(edge, foreign, "Queued", token=edge.pat).status_code == 404


class TestUploads:
    def test_the_url_takes_a_put_without_a_key_and_only_one(self, edge: EdgeProject) -> None:
        task_id = running(edge)
        said = upload(edge, task_id, "a.mp4")
        assert said["storage_path"] == f"{USER}/tasks/{task_id}/a.mp4"
        assert edge.stack.storage.content(BUCKET, said["storage_path"]) == b"film"
        again = httpx.put(said["upload_url"], content=b"other", headers={"Content-Type": "video/mp4"})
        assert (again.status_code, again.json()["statusCode"]) == (400, "409")
        body = {"task_id": task_id, "filename": "a.mp4", "content_type": "video/mp4"}
        assert edge.ask("generate-upload-url", body).status_code == 500, "the name is taken"

    def test_a_task_without_a_user_gets_none(self, edge: EdgeProject) -> None:
        body = {"task_id": running(edge, user_id=None), "filename": "a.mp4", "content_type": "video/mp4"}
        answer = edge.ask("generate-upload-url", body)
        assert (answer.status_code, answer.json()["error"]) == (400, "Task has no associated user")

    def test_a_thumbnail_has_a_url_of_its_own_when_asked_for(self, edge: EdgeProject) -> None:
        body = {
            "task_id": running(edge),
            "filename": "a.mp4",
            "content_type": "video/mp4",
            "generate_thumbnail_url": True,
        }
        said = edge.ask("generate-upload-url", body).json()
        assert "/thumbnails/" in said["thumbnail_storage_path"] and "token=" in said["thumbnail_upload_url"]


class TestCompleting:
    def complete(self, edge: EdgeProject, task_id: str, **more: Any) -> httpx.Response:
        return edge.ask("complete_task", {"task_id": task_id, "storage_path": f"{USER}/tasks/{task_id}/a.mp4", **more})

    def test_the_row_its_generation_and_its_thumbnail(self, edge: EdgeProject) -> None:
        task_id = running(edge)
        said = self.complete(edge, task_id, thumbnail_storage_path=f"{USER}/tasks/{task_id}/a.jpg").json()
        url = f"{edge.stack.url}/storage/v1/object/public/{BUCKET}/{USER}/tasks/{task_id}/a.mp4"
        assert (said["success"], said["public_url"]) == (True, url)
        row = edge.row(task_id)
        assert (row["status"], row["output_location"]) == ("Complete", url)
        assert row["generation_processed_at"] is not None and row["params"]["thumbnail_url"].endswith("a.jpg")
        (made,) = edge.generations(task_id)
        assert (made["location"], made["type"], made["thumbnail_url"][-5:]) == (url, "video", "a.jpg")

    def test_a_row_that_is_not_in_progress_stays_and_it_says_yes_and_makes_a_generation(
        self, edge: EdgeProject
    ) -> None:
        task_id = edge.insert(status="Cancelled")
        assert self.complete(edge, task_id).json()["success"]
        assert edge.row(task_id)["status"] == "Cancelled" and len(edge.generations(task_id)) == 1

    def test_a_second_call_makes_a_second_generation(self, edge: EdgeProject) -> None:
        task_id = running(edge)
        assert [self.complete(edge, task_id).status_code for _ in range(2)] == [200, 200]
        assert len(edge.generations(task_id)) == 2

    def test_it_dies_between_the_generation_and_the_row(self, edge: EdgeProject) -> None:
        task_id = running(edge)
        edge.functions.faults.dies_before_row = 1
        assert self.complete(edge, task_id).status_code == 500
        assert edge.row(task_id)["status"] == "In Progress" and len(edge.generations(task_id)) == 1

    def test_it_says_yes_and_changes_no_row_or_nothing_at_all(self, edge: EdgeProject) -> None:
        task_id = running(edge)
        edge.functions.faults.without_all, edge.functions.faults.without_row = 1, 1
        assert self.complete(edge, task_id).json()["success"] and not edge.generations(task_id)
        assert self.complete(edge, task_id).json()["success"] and len(edge.generations(task_id)) == 1
        assert edge.row(task_id)["status"] == "In Progress"

    def test_the_path_must_be_the_tasks_own_except_for_orchestrators(self, edge: EdgeProject) -> None:
        other = f"{USER}/tasks/{NOBODY}/a.mp4"
        assert self.complete(edge, running(edge), storage_path=other).status_code == 403
        parent = running(edge, task_type="travel_orchestrator")
        assert self.complete(edge, parent, storage_path=other).status_code == 200

    def test_what_older_workers_send_is_400(self, edge: EdgeProject) -> None:
        task_id = running(edge)
        assert edge.ask("complete_task", {"task_id": task_id, "output_location": "https://x/a.mp4"}).status_code == 400
        assert edge.ask("complete_task", "no json").status_code == 400


class TestCreating:
    def test_a_task_of_an_own_project_is_queued_and_its_id_is_good_once(self, edge: EdgeProject) -> None:
        task_id = str(uuid.uuid4())
        row = {"task_id": task_id, "params": {"a": 1}, "task_type": "t2v", "project_id": PROJECT}
        answer = edge.ask("create-task", row, token=edge.pat)
        assert (answer.status_code, answer.text) == (200, "Task queued")
        assert (edge.row(task_id)["status"], str(edge.row(task_id)["user_id"])) == ("Queued", USER)
        assert edge.ask("create-task", row, token=edge.pat).status_code == 500
        assert edge.ask("create-task", {**row, "task_id": str(uuid.uuid4()), "project_id": NOBODY}).status_code == 404
        assert edge.ask("create-task", {**row, "project_id": None}).status_code == 400

    def test_what_came_before_is_told(self, edge: EdgeProject) -> None:
        before = edge.insert(status="Complete", output_location="https://x/a.mp4")
        after = edge.insert(dependant_on=before)
        said = edge.ask("get-predecessor-output", {"task_id": after}).json()
        assert said == {"predecessor_id": before, "output_location": "https://x/a.mp4"}
        assert edge.ask("get-predecessor-output", {"task_id": before}).json() is None
        assert edge.ask("get-predecessor-output", {"task_id": NOBODY}).status_code == 404
