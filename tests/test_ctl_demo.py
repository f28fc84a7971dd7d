"""The demo as a stranger runs it: a process, a data directory that is not there yet, nothing but Python on the PATH."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from importlib import resources
from pathlib import Path

import psutil
import pytest

from tests.control_doubles import PaperSupervisor
from tests.test_ctl import CTL, environment, supervisor  # noqa: F401  # a fixture
from wan2gp.demo_queue import SPEC_URL
from wan2gp.demo_stage import DemoFailed, make_video, read_video


def demo(cwd: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run it with the lonely PATH; what a user's shell may hold besides must not matter."""
    (cwd / "bin").mkdir(exist_ok=True)
    hostile = {
        "PATH": str(cwd / "bin"),
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x",
        "WAN2GP_QUEUE": "postgres",
    }
    return subprocess.run(
        [*CTL, *arguments, "demo"],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(**{"COMFY_PATH": str(cwd / "none"), **hostile, **env}),
        timeout=110,
    )


def test_the_row_of_the_specification_becomes_a_file_that_decodes_twice_in_a_row(tmp_path: Path) -> None:
    for _ in range(2):
        done = demo(tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "the built-in one runs the graph" in done.stdout and "Complete" in done.stdout
        assert "60 frames of 320x240" in done.stdout.partition("decoded")[2]
        assert "\x1b" not in done.stdout
        made = Path(re.findall(r"^file +(.+)$", done.stdout, re.MULTILINE)[-1])
        assert made.is_relative_to(tmp_path / ".demo" / "outputs" / "comfy")
        assert read_video(made).frames == 60
        assert not (tmp_path / ".demo" / "run.json").exists()


@pytest.mark.long
def test_a_comfyui_that_cannot_start_ends_the_demo_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "main.py").write_text("raise SystemExit('torch is not installed')\n")
    data_dir = tmp_path / "d"
    done = demo(tmp_path, "--data-dir", str(data_dir), COMFY_PATH=str(tmp_path / "comfy"))
    assert done.returncode == 1
    assert "torch is not installed" in done.stdout + done.stderr


def test_a_directory_in_use_is_left_alone(supervisor: PaperSupervisor) -> None:  # noqa: F811
    done = demo(supervisor.data_dir, "--data-dir", str(supervisor.data_dir))
    assert done.returncode == 1 and "already runs" in done.stderr
    assert supervisor.queue.rows == {}


def _descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, marks=pytest.mark.long),
        signal.SIGKILL,
    ],
)
def test_a_demo_that_is_broken_off_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    env = environment(COMFY_PATH=str(tmp_path / "none"))
    with subprocess.Popen([*CTL, "demo"], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=env) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("supervisor"):
            assert process.poll() is None
        family = _descendants(process)
        assert family
        process.send_signal(number)
        process.communicate(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


def test_the_demos_sql_is_one_statement_with_one_url_and_json_that_is_json() -> None:
    statement = resources.files("wan2gp").joinpath("demo_row.sql").read_text()
    assert statement.startswith("INSERT INTO tasks (task_type, params, status)\nVALUES (\n  'comfy',\n")
    assert statement.count(SPEC_URL) == 1 and statement.count(";") == 1 and "'queued'" in statement
    params = json.loads(statement.split("'")[3])
    assert params["workflow"]["2"]["class_type"] == "VHS_VideoCombine"


def test_the_input_decodes_to_what_it_says(tmp_path: Path) -> None:
    made = make_video(tmp_path / "i.mp4")
    assert read_video(made.path) == made


def test_half_a_file_is_no_video(tmp_path: Path) -> None:
    data = make_video(tmp_path / "i.mp4").path.read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(DemoFailed, match="cannot be decoded"):
        read_video(tmp_path / "half.mp4")
