"""`wan2gp-ctl logs`: with and without a supervisor, across rotation, never steering the terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.test_ctl import CTL, ctl, environment, one_sentence

TASK = "0a0b0c0d-0000-4000-8000-000000000001"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A data directory's log folder: 150 lines, three of them of the task, one in the part that was set aside."""
    folder = tmp_path / "logs"
    (folder / "handlers").mkdir(parents=True)
    (folder / "worker.2026-01-01_00-00-00_000000.log").write_text(f"old {TASK} claimed\n")
    lines = [f"line {number}" for number in range(148)]
    (folder / "worker.log").write_text(
        "\n".join([*lines, f"Processing comfy task {TASK}", f"Task {TASK} completed"]) + "\n"
    )
    (folder / "handlers" / "comfy.log").write_text("\x1b[31mred\x1b[0m words\x1b]0;title\x07\r\n")
    return folder


def test_the_last_lines_of_the_workers_log_need_no_supervisor(tmp_path: Path, logs: Path) -> None:
    lines = ctl(tmp_path, "logs").stdout.splitlines()
    assert len(lines) == 100 and lines[-1] == f"Task {TASK} completed"
    assert ctl(tmp_path, "logs", "-n", "2").stdout.splitlines() == lines[-2:]
    assert len(ctl(tmp_path, "logs", "-n", "0").stdout.splitlines()) == 151


def test_a_tasks_lines_are_found_also_in_the_part_that_was_set_aside(tmp_path: Path, logs: Path) -> None:
    lines = ctl(tmp_path, "logs", TASK).stdout.splitlines()
    assert lines == [f"old {TASK} claimed", f"Processing comfy task {TASK}", f"Task {TASK} completed"]
    assert ctl(tmp_path, "logs", TASK.upper()).stdout.splitlines() == lines


def test_a_handlers_log_cannot_steer_the_terminal(tmp_path: Path, logs: Path) -> None:
    assert ctl(tmp_path, "logs", "comfy").stdout == "red words\n"


def test_an_unknown_handler_lists_those_that_have_a_log(tmp_path: Path, logs: Path) -> None:
    assert "those are: comfy" in one_sentence(ctl(tmp_path, "logs", "../../etc/passwd"), 1)


def test_no_log_yet_is_one_sentence(tmp_path: Path) -> None:
    assert "no supervisor has run" in one_sentence(ctl(tmp_path, "logs"), 1)


def test_json_is_one_object_per_line(tmp_path: Path, logs: Path) -> None:
    found = [json.loads(line) for line in ctl(tmp_path, "logs", "-n", "1", "--json").stdout.splitlines()]
    assert found == [{"file": str(logs / "worker.log"), "line": f"Task {TASK} completed"}]


@contextmanager
def _following(data_dir: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [*CTL, "--data-dir", str(data_dir), "logs", "-f", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _next(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_following_goes_on_after_the_log_was_rotated(tmp_path: Path, logs: Path) -> None:
    log = logs / "worker.log"
    with _following(tmp_path, "-n", "1") as process:
        assert _next(process) == f"Task {TASK} completed"
        _append(log, "half a ")
        _append(log, "line\n")
        assert _next(process) == "half a line"
        log.rename(logs / "worker.2026-01-02_00-00-00_000000.log")
        _append(logs / "worker.2026-01-02_00-00-00_000000.log", "the last of the old\n")
        log.write_text("the first of the new\n")
        assert _next(process) == "the last of the old"
        assert _next(process) == "the first of the new"


def test_following_goes_on_after_the_log_was_cut_short(tmp_path: Path, logs: Path) -> None:
    with _following(tmp_path, "comfy") as process:
        assert _next(process) == "red words"
        os.truncate(logs / "handlers" / "comfy.log", 0)
        _append(logs / "handlers" / "comfy.log", "anew\n")
        assert _next(process) == "anew"


def test_following_a_task_passes_other_lines_by(tmp_path: Path, logs: Path) -> None:
    with _following(tmp_path, TASK, "-n", "1") as process:
        assert _next(process) == f"Task {TASK} completed"
        _append(logs / "worker.log", f"noise\nmore noise\nTask {TASK} published\n")
        assert _next(process) == f"Task {TASK} published"


def test_ctrl_c_ends_following_without_a_traceback(tmp_path: Path, logs: Path) -> None:
    with _following(tmp_path, "-n", "1") as process:
        _next(process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == ""
