"""Tasks through a real worker: what a row becomes when its handler behaves, fails, lies or dies."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest_worker import Worker, eventually

Start = Callable[..., Worker]


def test_a_task_becomes_files_named_after_it_and_the_row_tells_of_them(worker: Worker) -> None:
    task = worker.insert("maker", {"files": {"a.txt": "eins", "b c.txt": "zwei"}})
    row = worker.ended(task)
    assert (row["status"], row["attempts"], row["error_message"]) == ("Complete", 1, None)
    first = worker.data_dir / "outputs" / "maker" / f"{task}_a.txt"
    assert row["output_location"] == str(first)
    assert first.read_text() == "eins"
    artifacts = row["result_data"]["artifacts"]
    assert [artifact["name"] for artifact in artifacts] == ["a.txt", "b c.txt"]
    assert Path(artifacts[1]["path"]).read_text() == "zwei"
    assert row["result_data"]["warnings"] == ["made on purpose"]
    assert row["result_data"]["engine"] == {"name": "maker"}
    assert set(row["result_data"]["timings"]) >= {"wait_s", "run_s"}
    eventually("the spool is empty", worker.spool_is_empty)
    eventually("the work directory is gone", lambda: not list((worker.data_dir / "work").glob("*/*/*")))


def test_two_files_of_one_name_both_arrive(worker: Worker) -> None:
    task = worker.insert("maker", {"files": {"x/a.txt": "eins", "y/a.txt": "zwei"}})
    row = worker.ended(task)
    paths = [Path(artifact["path"]) for artifact in row["result_data"]["artifacts"]]
    assert [path.read_text() for path in paths] == ["eins", "zwei"]
    assert [path.name for path in paths] == [f"{task}_a.txt", f"{task}_1_a.txt"]


@pytest.mark.parametrize("name", ["../../../etc/x", "/etc/passwd", "..", "a\x00b\nc", "ü" * 300 + ".mp4", ".hidden"])
def test_a_hostile_file_name_stays_in_the_outputs_folder(worker: Worker, name: str) -> None:
    task = worker.insert("climber", {"name": name.replace("\x00", "\\")})
    row = worker.ended(task)
    assert row["status"] == "Complete"
    path = Path(row["output_location"])
    assert path.parent == worker.data_dir / "outputs" / "climber"
    assert path.read_bytes() == b"abc"
    assert path.name.startswith(task)


@pytest.mark.long
@pytest.mark.parametrize(
    ("vice", "params"),
    [
        ("liar", {}),
        ("climber", {"path": "../../../instance"}),
        ("climber", {"path": "/etc/hostname"}),
        ("climber", {"path": "nowhere"}),
        ("linker", {"how": "symbolic"}),
        ("linker", {"how": "hard"}),
        ("linker", {"how": "folder"}),
    ],
)
def test_a_result_that_is_not_its_own_checked_file_is_refused(
    worker: Worker, tmp_path: Path, vice: str, params: dict[str, Any]
) -> None:
    prey = tmp_path / "prey"
    prey.write_text("somebody else's")
    task = worker.insert(vice, {**params, "prey": str(prey)})
    row = worker.ended(task)
    assert row["status"] == "Failed"
    assert row["error_message"].startswith("output.refused: ")
    assert row["output_location"] is None
    assert not (worker.data_dir / "outputs" / vice).exists()
    assert prey.read_text() == "somebody else's"


def test_an_unforeseen_exception_is_one_sentence_and_the_next_task_runs_in_the_same_process(worker: Worker) -> None:
    row = worker.ended(worker.insert("raiser"))
    assert row["status"] == "Failed"
    assert row["error_message"].startswith("handler.crashed: ")
    assert "ZeroDivisionError: nobody foresaw this" in row["error_message"]
    pid = worker.handler_pid("raiser")
    worker.ended(worker.insert("raiser", {"code": "input.bad_params"}))
    assert worker.handler_pid("raiser") == pid


@pytest.mark.long
def test_a_failure_that_may_pass_is_tried_again_and_all_attempts_are_told(worker: Worker) -> None:
    params = {"code": "comfy.exited", "message": "it died"}
    task = worker.insert("raiser", params, max_attempts=2)
    row = worker.ended(task)
    assert (row["status"], row["attempts"]) == ("Failed", 2)
    assert row["error_message"] == "comfy.exited: it died"
    assert [attempt["code"] for attempt in row["result_data"]["attempts"]] == ["comfy.exited"] * 2


def test_a_failure_that_cannot_pass_is_not_tried_again(worker: Worker) -> None:
    row = worker.ended(worker.insert("raiser", {"code": "comfy.validation", "message": "node 2 lacks a field"}))
    assert (row["status"], row["attempts"]) == ("Failed", 1)


def test_a_death_is_retried_and_its_cause_is_on_the_row(worker: Worker) -> None:
    task = worker.insert("crasher", {"signal": signal.SIGSEGV.value})
    bystander = worker.insert("sleeper", {"seconds": 1})
    row = worker.ended(task)
    assert (row["status"], row["attempts"]) == ("Complete", 2)
    (cause,) = row["result_data"]["attempts"][:1]
    assert (cause["code"], cause["signal"]) == ("handler.died", signal.SIGSEGV.value)
    assert "last words of the crasher" in cause["last_lines"]
    assert worker.ended(bystander)["attempts"] == 1


def test_two_deaths_quarantine_a_task(worker: Worker) -> None:
    row = worker.ended(worker.insert("crasher", {"exit": 3, "times": 99}))
    assert (row["status"], row["attempts"]) == ("Failed", 2)
    assert row["error_message"].startswith("task.poisoned: ")
    assert [attempt["exit_code"] for attempt in row["result_data"]["attempts"]] == [3, 3]
    assert worker.ended(worker.insert("noop"))["status"] == "Complete"


def test_a_hang_under_a_living_io_thread_is_noticed(worker: Worker) -> None:
    row = worker.ended(worker.insert("hanger"))
    assert (row["status"], row["attempts"]) == ("Complete", 2)
    assert row["result_data"]["attempts"][0]["code"] == "handler.hung"
    assert "no progress within 1s in phase step" in worker.log


@pytest.mark.long
@pytest.mark.parametrize("vice", ["babbler"])
def test_a_broken_protocol_costs_the_process_not_the_task(worker: Worker, vice: str) -> None:
    row = worker.ended(worker.insert(vice))
    assert (row["status"], row["attempts"]) == ("Complete", 2)
    assert "broke the protocol" in worker.log


def test_an_outcome_too_large_to_send_is_a_clear_failure_and_floods_of_output_are_bounded(worker: Worker) -> None:
    row = worker.ended(worker.insert("windbag", max_attempts=1))
    assert row["status"] == "Failed"
    assert row["error_message"].startswith("handler.protocol: cannot report the outcome")
    logs = list((worker.data_dir / "logs" / "handlers").glob("windbag.log*"))
    assert sum(path.stat().st_size for path in logs) < 20_000_000


@pytest.mark.long
@pytest.mark.parametrize("vice", ["unimportable", "unstartable"])
def test_an_engine_that_cannot_start_consumes_no_task_and_says_why(worker: Worker, vice: str) -> None:
    tasks = [worker.insert(vice) for _ in range(3)]
    other = worker.insert("noop")
    assert worker.ended(other)["status"] == "Complete"
    eventually("it has died several times", lambda: worker.log.count(f"Handler {vice} ended") >= 3)
    rows = [worker.row(task) for task in tasks]
    assert {(row["status"], row["attempts"]) for row in rows} == {("Queued", 0)}
    said = [row["error_message"] for row in rows if row["error_message"]]
    assert len(said) == 1  # one task was claimed, once
    assert "libcudart" in said[0] or "ComfyUI startup failed: as planned" in said[0]


@pytest.mark.long
def test_an_engine_that_starts_at_last_takes_its_tasks(worker: Worker) -> None:
    tasks = [worker.insert("unstartable") for _ in range(3)]
    eventually("it has died", lambda: "Handler unstartable ended" in worker.log)
    (worker.data_dir / "engine-works").touch()
    rows = [worker.ended(task) for task in tasks]
    assert {(row["status"], row["attempts"], row["error_message"]) for row in rows} == {("Complete", 1, None)}


def test_an_unknown_type_stays_queued_and_status_says_so(worker: Worker) -> None:
    task = worker.insert("no_such_type")
    worker.ended(worker.insert("noop"))
    assert (worker.row(task)["status"], worker.row(task)["attempts"]) == ("Queued", 0)
    unclaimable = worker.status()["worker"]["unclaimable"]
    assert "no_such_type" in [entry["task_type"] for entry in unclaimable]


@pytest.mark.parametrize("stay", [False, True])
def test_what_a_handler_leaves_behind_dies_with_it(worker: Worker, tmp_path: Path, stay: bool) -> None:
    note = tmp_path / "pids"
    task = worker.insert("litterer", {"pids": str(note), "stay": stay})
    pids = list(json.loads(eventually("it littered", lambda: note.exists() and note.read_text())).values())
    litter = [psutil.Process(pid) for pid in pids]
    worker.seen.update(litter)
    if not stay:
        worker.ended(task)
        assert all(process.is_running() for process in litter)
    os.kill(pids[0], signal.SIGKILL)
    eventually("all are gone", lambda: not any(process.is_running() for process in litter))
    assert worker.ended(task)["status"] == "Complete"


@pytest.mark.long
def test_a_cancelled_run_ends_at_once_and_its_process_stays(worker: Worker) -> None:
    task = worker.insert("sleeper", {"seconds": 60})
    worker.running(task)
    pid = worker.handler_pid("sleeper")
    assert worker.ctl("cancel", task).returncode == 0
    assert worker.row(task)["status"] == "Cancelled"
    assert worker.ended(worker.insert("sleeper", {"seconds": 0.1}))["status"] == "Complete"
    assert worker.handler_pid("sleeper") == pid
    assert worker.row(task)["status"] == "Cancelled"


def test_a_cancellation_by_plain_sql_is_heard(worker: Worker) -> None:
    task = worker.insert("sleeper", {"seconds": 60})
    worker.running(task)
    worker.sql("UPDATE tasks SET status = 'cancelled' WHERE id = %s", task)
    assert worker.ended(worker.insert("sleeper", {"seconds": 0.1}))["status"] == "Complete"
    assert worker.row(task)["status"] == "Cancelled"


def test_progress_reaches_the_row_and_the_status(worker: Worker) -> None:
    task = worker.insert("sleeper", {"seconds": 60})
    worker.running(task)
    lease = "SELECT progress FROM task_leases WHERE task_id = %s AND progress > 0"
    eventually("the table knows", lambda: worker.sql(lease, task))
    (running,) = worker.status()["worker"]["running"]
    assert running["task_id"] == task
    assert 0 < running["fraction"] < 1
    worker.ctl("cancel", task)


def test_outputs_may_be_read_by_others_and_the_spool_by_nobody(worker: Worker) -> None:
    row = worker.ended(worker.insert("maker", {"files": {"a.txt": "x"}}))
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE(Path(row["output_location"]).stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((worker.data_dir / "spool").stat().st_mode) == 0o700


def test_a_handler_may_fetch_only_what_stands_in_its_params(worker: Worker) -> None:
    row = worker.ended(worker.insert("fetcher", {"other": list("http://127.0.0.1:1/x")}))
    assert row["error_message"].startswith("input.bad_url: ")
    assert "does not stand in the task's params" in row["error_message"]


def test_a_private_address_is_refused_by_the_courier(worker: Worker) -> None:
    row = worker.ended(worker.insert("fetcher", {"url": "http://127.0.0.1:1/x"}))
    assert row["error_message"].startswith("input.forbidden_address: ")


@pytest.mark.long
def test_attempts_are_told_in_the_events(worker: Worker) -> None:
    task = worker.insert("crasher", {"exit": 5})
    worker.ended(task)
    names = [event["name"] for event in worker.events(task)]
    assert names.count("claimed") == 2
    assert "retried" in names


@pytest.mark.long
def test_tasks_by_priority_then_age(start_worker: Start) -> None:
    worker = start_worker("--queue", "postgres")
    worker.ctl("drain")
    ids = [worker.insert("noop", priority=priority) for priority in (0, 5, 0, 9)]
    worker.ctl("resume")
    for task in ids:
        worker.ended(task)
    order = sorted(ids, key=lambda task: worker.log.index(f"Processing noop task {task}"))
    assert order == [ids[3], ids[1], ids[0], ids[2]]
