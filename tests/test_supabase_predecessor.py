"""A worker in the predecessor's place: its pod scaler sees it, its app's function completes, its logs are kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest_worker import Row, Worker, eventually
from tests.edge_functions import EdgeFunctions
from tests.supabase_stack import Stack

Start = Callable[..., Worker]
TEXT = {"files": {"a.txt": "one"}}
PROJECT, USER = "aaaaaaaa-0000-4000-8000-000000000001", "bbbbbbbb-0000-4000-8000-000000000001"
pytestmark = pytest.mark.parametrize("supabase_db", ["predecessor"], indirect=True)


@pytest.fixture
def functions(supabase_stack: Stack) -> Iterator[EdgeFunctions]:
    """The app's functions, and one project of one user."""
    supabase_stack.functions.faults.started_at = True
    yield supabase_stack.functions


def app_task(worker: Worker, task_type: str = "maker", params: object = TEXT) -> str:
    worker.sql("INSERT INTO projects (id, user_id) VALUES (%s, %s) ON CONFLICT DO NOTHING", PROJECT, USER)
    return worker.insert(task_type, params, project_id=PROJECT, user_id=USER)


def completed_once(worker: Worker, stack: Stack, task_id: str) -> Row:
    worker.ended(task_id, 60)
    # The function's own word on the row comes first, then ours, with the artifacts.
    eventually("our word is on the row", lambda: "timings" in worker.row(task_id)["result_data"])
    row = worker.row(task_id)
    assert (row["status"], row["attempts"]) == ("Complete", 1), (row, worker.log[-3000:])
    (path,) = [path for path in stack.storage.paths("image_uploads") if task_id in path]
    assert row["output_location"].endswith(path) and path.startswith(f"{USER}/tasks/{task_id}/1-")
    assert row["result_data"]["artifacts"][0]["sha256"]
    made = worker.sql("SELECT * FROM generations WHERE to_jsonb(tasks)::text LIKE %s", f"%{task_id}%")
    assert len(made) == 1, "the app shows it, once"
    assert [event["name"] for event in worker.events(task_id)].count("completed") == 1
    return row


class TestCompletion:
    def test_a_row_of_a_project_is_completed_by_the_apps_function(
        self, start_supabase_worker: Start, supabase_stack: Stack, functions: EdgeFunctions
    ) -> None:
        worker = start_supabase_worker()
        completed_once(worker, supabase_stack, app_task(worker))
        assert [call.name for call in functions.calls].count("complete_task") == 1
        plain = worker.insert("maker", TEXT)
        assert worker.ended(plain)["status"] == "Complete"
        assert [call.name for call in functions.calls].count("complete_task") == 1, "only rows of projects"

    @pytest.mark.parametrize("fault", ["after", pytest.param("before", marks=pytest.mark.long), "dies_before_row"])
    def test_a_call_that_seems_to_fail_makes_no_second_result(
        self, start_supabase_worker: Start, supabase_stack: Stack, functions: EdgeFunctions, fault: str
    ) -> None:
        if fault == "dies_before_row":
            functions.faults.dies_before_row = 1
        else:
            getattr(functions.faults, fault)["complete_task"] = [500, 503]
        worker = start_supabase_worker()
        completed_once(worker, supabase_stack, app_task(worker))

    def test_sql_asked_for_by_name_calls_no_function(
        self, start_supabase_worker: Start, supabase_stack: Stack, functions: EdgeFunctions
    ) -> None:
        worker = start_supabase_worker(environ={"WAN2GP_FINISH_VIA": "sql"})
        assert worker.ended(app_task(worker))["status"] == "Complete"
        assert [call for call in functions.calls if call.name == "complete_task"] == []

    def test_the_function_asked_for_by_name_and_missing_is_said_at_the_start(
        self, start_supabase_worker: Start, supabase_stack: Stack, functions: EdgeFunctions
    ) -> None:
        functions.faults.missing.add("complete_task")
        worker = start_supabase_worker(environ={"WAN2GP_FINISH_VIA": "complete_task"}, wait=False)
        assert worker.process.wait(30) == 2 and "complete_task" in worker.screen

    @pytest.mark.long
    def test_a_task_that_the_function_refuses_is_withheld_with_its_words(
        self, start_supabase_worker: Start, supabase_stack: Stack, functions: EdgeFunctions
    ) -> None:
        functions.faults.before["complete_task"] = [400]
        worker = start_supabase_worker()
        task_id = app_task(worker)
        row = worker.ended(task_id)
        assert row["status"] == "Failed" and row["error_message"].startswith("publish.complete_task: ")
        assert worker.ctl("publish", "retry", task_id).returncode == 0
        eventually("it is complete", lambda: worker.row(task_id)["status"] == "Complete")


class TestScaler:
    @pytest.mark.long
    def test_it_sees_a_beat_the_memory_of_the_gpus_and_a_log_line(
        self, start_supabase_worker: Start, tmp_path: Path
    ) -> None:
        """nvidia-smi tells what two GPUs have; the scaler promotes a pod when it finds a line of its."""
        place = tmp_path / "bin"
        place.mkdir()
        (place / "nvidia-smi").write_text("#!/bin/sh\necho '0, A, 1000, 24000, 5'\necho '1, A, 500, 24000, 5'\n")
        (place / "nvidia-smi").chmod(0o755)
        worker = start_supabase_worker(environ={"PATH": f"{place}:{os.environ['PATH']}"})
        task_id = worker.insert("sleeper", {"seconds": 2})

        def seen() -> Row | None:
            rows = worker.sql(
                "SELECT status, metadata, extract(epoch FROM now() - last_heartbeat)::float8 AS age FROM workers"
                " WHERE id = 'w1' AND metadata ? 'vram_total_mb'"
            )
            return rows[0] if rows else None

        row = eventually("the memory is told", seen)
        assert row["status"] == "active" and row["age"] < 30
        assert (row["metadata"]["vram_total_mb"], row["metadata"]["vram_used_mb"]) == (48000, 1500)
        assert abs(row["metadata"]["vram_timestamp"] - time.time()) < 60
        assert worker.ended(task_id)["status"] == "Complete"
        worker.stop()
        lines = worker.sql("SELECT log_level, message, task_id::text FROM system_logs WHERE worker_id = 'w1'")
        assert any(line["message"].startswith("Worker w1 started") for line in lines)
        assert any(line["task_id"] == task_id and "completed" in line["message"] for line in lines)

    @pytest.mark.long
    def test_nobody_who_wants_no_copies_of_the_log_gets_them(self, start_supabase_worker: Start) -> None:
        worker = start_supabase_worker(environ={"WAN2GP_SHIP_LOGS": "0"})
        worker.ended(worker.insert("noop"))
        worker.stop()
        assert worker.sql("SELECT FROM system_logs WHERE worker_id = 'w1'") == []
