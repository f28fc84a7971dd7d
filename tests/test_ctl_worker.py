"""`wan2gp-ctl` against a real supervisor with its embedded database and the built-in engine."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.test_ctl import CTL, ctl, environment, one_sentence

GRAPH = {
    "workflow": {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 1, "color": 255}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
}
START_S = 90


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """The data directory of a supervisor that runs for the length of this file and ends cleanly."""
    with tempfile.TemporaryDirectory(prefix="w2") as name:
        env = environment(COMFY_PATH="builtin", WAN2GP_STOP_GRACE_S="1")
        command = [sys.executable, "-m", "wan2gp.entry", "--data-dir", name, "--worker", "w1"]
        with open(Path(name) / "out", "wb") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)
        try:
            _await(Path(name), process)
            yield Path(name)
        finally:
            process.terminate()
            code = process.wait(60)
        assert code == 0, (Path(name) / "out").read_text()
        assert "no supervisor runs" in one_sentence(ctl(Path(name), "status"), 3)


def _await(data_dir: Path, process: subprocess.Popen[bytes]) -> None:
    pause = threading.Event()
    for _ in range(START_S * 10):
        assert process.poll() is None, (data_dir / "out").read_text()
        if (data_dir / "run.json").exists():
            return
        pause.wait(0.1)
    raise AssertionError("the supervisor did not start: " + (data_dir / "out").read_text())


def reply(data_dir: Path, *arguments: str, stdin: bytes = b"") -> dict[str, Any]:
    done = ctl(data_dir, *arguments, "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def submit(
    data_dir: Path, *more: str, task_type: str = "comfy", params: Any = None
) -> subprocess.CompletedProcess[str]:
    content = json.dumps(GRAPH if params is None else params).encode()
    return ctl(data_dir, "submit", task_type, "--params", "-", *more, stdin=content)


def test_a_submitted_graph_becomes_a_file_whose_story_can_be_read(data_dir: Path) -> None:
    done = submit(data_dir, "--wait")
    assert done.returncode == 0, done.stderr
    task_id, place = done.stdout.splitlines()
    assert Path(place).is_file() and task_id in place
    story = ctl(data_dir, "task", task_id).stdout
    for words in ("Complete", "64x48", "claimed", "completed", place):
        assert words in story, story
    row = reply(data_dir, "task", task_id)["task"]
    assert [event["name"] for event in row["events"]][:2] == ["queued", "claimed"]
    lines = ctl(data_dir, "logs", task_id).stdout
    assert f"Processing comfy task {task_id}" in lines and f"Task {task_id} completed" in lines
    assert reply(data_dir, "tasks", "--type", "comfy", "--status", "complete")["tasks"][0]["id"] == task_id


def test_a_task_that_fails_ends_the_wait_with_its_error(data_dir: Path) -> None:
    done = submit(data_dir, "--wait", params={"workflow": {}})
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 1
    assert "the task is Failed: comfy.bad_workflow" in done.stderr
    task_id = done.stdout.strip()
    assert "again (it was Failed)" in ctl(data_dir, "retry", task_id).stdout


def test_status_tells_of_handlers_and_of_a_type_that_nobody_takes(data_dir: Path) -> None:
    task_id = submit(data_dir, task_type="comfi").stdout.strip()
    status = reply(data_dir, "status")
    worker = status["worker"]
    assert (worker["worker"], worker["state"], worker["database_ok"], worker["listening"]) == (
        "w1",
        "running",
        True,
        True,
    )
    assert {"comfy", "courier"} <= {handler["name"] for handler in worker["handlers"]}
    assert [item["task_type"] for item in worker["unclaimable"]] == ["comfi"]
    assert status["queue"]["oldest_queued_s"]["comfi"] >= 0
    shown = ctl(data_dir, "status").stdout
    assert "unclaimable here" in shown and "no handler of this worker takes this type" in shown
    assert "it was Queued" in ctl(data_dir, "cancel", task_id).stdout
    assert reply(data_dir, "status")["worker"]["unclaimable"] == []


def test_drained_it_claims_nothing_until_it_is_resumed(data_dir: Path) -> None:
    assert "drained" in ctl(data_dir, "drain", "--wait").stdout
    task_id = submit(data_dir).stdout.strip()
    assert reply(data_dir, "status")["worker"]["state"] == "draining"
    assert reply(data_dir, "task", task_id)["task"]["status"] == "Queued"
    assert ctl(data_dir, "resume").returncode == 0
    assert reply(data_dir, "status")["worker"]["state"] == "running"
    _finished(data_dir, task_id, "Complete")


def _finished(data_dir: Path, task_id: str, status: str) -> None:
    pause = threading.Event()
    for _ in range(300):
        found = reply(data_dir, "task", task_id)["task"]
        if found["status"] in ("Complete", "Failed", "Cancelled"):
            assert found["status"] == status, found
            return
        pause.wait(0.1)
    raise AssertionError(f"the task did not end: {found}")


@pytest.mark.long
def test_a_restarted_handler_has_another_process_and_takes_the_next_task(data_dir: Path) -> None:
    assert submit(data_dir, "--wait").returncode == 0
    before = _handler(data_dir, "comfy")
    assert ctl(data_dir, "restart", "comfy").returncode == 0
    assert submit(data_dir, "--wait").returncode == 0
    after = _handler(data_dir, "comfy")
    assert after["pid"] != before["pid"] and after["incarnation"] > before["incarnation"]
    assert "no handler is named comfi" in one_sentence(ctl(data_dir, "restart", "comfi"), 1)


def _handler(data_dir: Path, name: str) -> dict[str, Any]:
    handlers = reply(data_dir, "status")["worker"]["handlers"]
    found: dict[str, Any] = next(handler for handler in handlers if handler["name"] == name)
    return found


def test_an_id_that_no_row_has_is_one_sentence_from_the_real_database_too(data_dir: Path) -> None:
    for verb in ("task", "cancel", "retry"):
        assert "no task has the id" in one_sentence(ctl(data_dir, verb, str(uuid.UUID(int=3))), 1)


def test_a_priority_that_no_column_holds_is_one_sentence(data_dir: Path) -> None:
    assert "priority 99999999999 is out of range" in one_sentence(submit(data_dir, "--priority", "99999999999"), 1)


def test_waiting_for_a_type_that_nobody_here_takes_says_so_at_once(data_dir: Path) -> None:
    command = [*CTL, "--data-dir", str(data_dir), "submit", "comfu", "--params", "-", "--wait"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write("{}")
        process.stdin.close()
        process.stdin = None
        task_id = process.stdout.readline().strip()
        assert "not claimed here: no handler of this worker takes this type" in process.stderr.readline()
        assert ctl(data_dir, "cancel", task_id).returncode == 0
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "the task is Cancelled" in err


@pytest.mark.long
def test_the_url_of_the_embedded_database_lets_plain_sql_in(data_dir: Path) -> None:
    url = ctl(data_dir, "db", "url").stdout.strip()
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO tasks (task_type, status) VALUES ('nobody_takes_this', 'queued')")
        row = connection.execute("SELECT status FROM tasks WHERE task_type = 'nobody_takes_this'").fetchone()
    assert row == ("Queued",)
    assert ctl(data_dir, "db", "migrate").returncode == 0


def test_the_control_token_is_its_owners_alone(data_dir: Path) -> None:
    assert (data_dir / "control.token").stat().st_mode & 0o777 == 0o600


@pytest.mark.long
def test_a_second_supervisor_is_refused_and_the_first_one_goes_on(data_dir: Path) -> None:
    command = [sys.executable, "-m", "wan2gp.entry", "--data-dir", str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 4 and "is in use by the process" in done.stderr
    assert ctl(data_dir, "status").returncode == 0
