"""An engine that cannot start, or fails once it is needed: it costs no task, breaks its handler alone, and heals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.comfy_jobs import picture
from tests.comfy_worker import SERVE, checkout
from tests.conftest_db import PgServer
from tests.conftest_worker import Worker, eventually
from tests.shared_worker import shared_worker

Start = Callable[..., Worker]
MANY = "INSERT INTO tasks (task_type, params, status) SELECT %s, '{}', 'queued' FROM generate_series(1, %s)"
COUNTS = "SELECT status::text, attempts, count(*)::int AS count FROM tasks WHERE task_type = %s GROUP BY 1, 2"
CLAIMS = """SELECT count(*)::int AS count FROM task_events e JOIN tasks t ON t.id = e.task_id
             WHERE t.task_type = %s AND e.name = 'claimed'"""


@pytest.fixture
def worker(tmp_path: Path, _pg_session: PgServer) -> Iterator[Worker]:
    with shared_worker(tmp_path, _pg_session, "--poll-interval", "1") as started:
        yield started


def counts(worker: Worker, task_type: str) -> set[tuple[str, int, int]]:
    """(status, attempts, how many rows) of a type."""
    return {(row["status"], row["attempts"], row["count"]) for row in worker.sql(COUNTS, task_type)}


def claims(worker: Worker, task_type: str) -> int:
    return int(worker.sql(CLAIMS, task_type)[0]["count"])


def broken(worker: Worker, handler: str) -> None:
    eventually(f"{handler} is broken", lambda: f"Handler {handler} is broken after 5 deaths in a row" in worker.log)


@pytest.mark.long
def test_two_hundred_tasks_lose_nothing_to_an_engine_that_crashes_at_every_start_and_all_run_once_it_heals(
    worker: Worker,
) -> None:
    """In this field one such fault has failed 41,776 jobs."""
    supervisor = worker.process.pid
    worker.sql(MANY, "stubborn", 200)
    broken(worker, "stubborn")
    assert counts(worker, "stubborn") == {("Queued", 0, 200)}
    assert claims(worker, "stubborn") == 1  # it was on its way to the first start
    (told,) = worker.sql("SELECT error_message FROM tasks WHERE error_message IS NOT NULL")
    assert told["error_message"].startswith("handler.start_failed: the stubborn handler cannot start: exit status 3")
    assert "no libcuda on this machine" in told["error_message"]
    assert worker.ended(worker.insert("noop"))["status"] == "Complete"  # other types go on
    state = worker.handler("stubborn")
    assert state["deaths"] >= 5 and "no libcuda on this machine" in state["last_cause"]
    (worker.data_dir / "engine-works").touch()  # and nobody restarts anything: it half-opens
    eventually("all are done", lambda: counts(worker, "stubborn") == {("Complete", 1, 200)})
    assert worker.process.pid == supervisor and worker.process.poll() is None


@pytest.mark.long
def test_an_engine_that_fails_when_it_is_needed_gets_one_task_at_a_time_and_counts_none(worker: Worker) -> None:
    """Its process starts well each time, so only a task can tell."""
    worker.sql(MANY, "lazy", 20)
    broken(worker, "lazy")
    starts = worker.log.count("Starting handler lazy")
    eventually("it half-opens", lambda: worker.log.count("Starting handler lazy") > starts)
    claimed = claims(worker, "lazy")
    assert 5 <= claimed <= worker.log.count("Starting handler lazy")
    assert {(status, attempts) for status, attempts, _ in counts(worker, "lazy")} <= {("Queued", 0), ("In Progress", 1)}
    (worker.data_dir / "engine-works").touch()
    eventually("all are done", lambda: counts(worker, "lazy") == {("Complete", 1, 20)})


@pytest.mark.long
def test_five_crashes_at_the_usual_pace_are_healed_by_a_restart_of_the_handler_alone(worker: Worker) -> None:
    worker.sql(MANY, "unstartable", 3)
    broken(worker, "unstartable")
    assert counts(worker, "unstartable") == {("Queued", 0, 3)}
    supervisor, claimed = worker.process.pid, claims(worker, "unstartable")
    assert claimed == 1
    assert worker.handler("unstartable")["state"] == "broken"
    (worker.data_dir / "engine-works").touch()
    assert worker.ctl("restart", "unstartable").returncode == 0
    eventually("all are done", lambda: counts(worker, "unstartable") == {("Complete", 1, 3)})
    assert worker.process.pid == supervisor and worker.process.poll() is None


@pytest.mark.long
def test_a_comfyui_that_crashes_on_start_five_times_is_healed_without_restarting_the_supervisor(
    start_worker: Start, tmp_path: Path
) -> None:
    marker = tmp_path / "driver"
    text = f"if not os.path.exists({str(marker)!r}): sys.exit('no CUDA driver')\n{SERVE}"
    worker = start_worker(environ={"COMFY_PATH": checkout(tmp_path / "ComfyUI", text)})
    tasks = [worker.insert("comfy", {"workflow": picture(str(number))}) for number in range(4)]
    other = worker.insert("noop")
    broken(worker, "comfy")
    assert counts(worker, "comfy") == {("Queued", 0, 4)}
    assert claims(worker, "comfy") == 1
    assert worker.ended(other)["status"] == "Complete"
    assert worker.handler("comfy")["state"] == "broken"
    said = {row["error_message"] for task in tasks if (row := worker.row(task))["error_message"]}
    assert len(said) == 1 and "no CUDA driver" in said.pop()
    marker.touch()
    assert worker.ctl("restart", "comfy").returncode == 0
    assert {(row["status"], row["attempts"]) for task in tasks if (row := worker.ended(task))} == {("Complete", 1)}


@pytest.mark.long
def test_a_handler_that_stands_still_as_a_whole_is_killed_and_its_task_tried_again(worker: Worker) -> None:
    """Not even its I/O thread beats."""
    row = worker.ended(worker.insert("frozen"))
    assert (row["status"], row["attempts"]) == ("Complete", 2)
    (cause,) = row["result_data"]["attempts"][:1]
    assert (cause["code"], cause["signal"]) == ("handler.hung", 9)
    assert "no sign of life for 8s" in worker.log
