"""docs of the ComfyUI integration, to the word: each line, sentence, variable and command that a user was promised."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.comfy_jobs import fault, picture, spec_row
from tests.comfy_worker import SERVE, Start, artifacts, checkout, comfy_processes, newest, run_sql, spec_sql
from tests.conftest_comfy import FAULTS, free_port
from tests.conftest_worker import Row, Worker, eventually
from wan2gp.demo_stage import Video, read_video

Clip = tuple[Video, str]

EXPECTED_OUTPUT = """\
Worker test-worker started. Polling every 10s.
Processing comfy task abc-123
First ComfyUI task detected - starting ComfyUI server...
Starting ComfyUI at /workspace/ComfyUI
ComfyUI started with PID: 12345
ComfyUI is ready!
✅ ComfyUI started successfully and is ready for tasks
Downloading video from https://...
Uploaded video: input.mp4
Workflow queued: prompt-xyz
Workflow completed
Saved output: /workspace/Headless-Wan2GP/outputs/comfy/abc-123_output.mp4
Task abc-123 completed
""".splitlines()
"""The log as the documentation shows it."""

TASK_DISTRIBUTION = """\
SELECT
  task_type,
  status,
  COUNT(*) as count
FROM tasks
WHERE created_at > NOW() - INTERVAL '1 hour'
GROUP BY task_type, status
ORDER BY task_type, status;
"""


@dataclass
class Story:
    """One worker's day: it starts, does other work, then the documentation's row arrives."""

    worker: Worker
    port: int
    before: list[str]
    """ComfyUI's processes before the first comfy task."""
    log_before: str
    task: str
    row: Row
    url: str


@pytest.fixture(scope="module")
def story(start_lasting: Start, clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Story:
    port = free_port()
    worker = start_lasting(
        "--worker",
        "test-worker",
        name="story",
        COMFY_PATH=checkout(tmp_path_factory.mktemp("workspace") / "ComfyUI", SERVE),
        COMFY_PORT=str(port),
        COMFY_ARGS=f"--extra-nodes {FAULTS}",
        WAN2GP_ALLOW_PRIVATE_URLS="1",
    )
    worker.ended(worker.insert("noop"))
    before, log_before = [str(process) for process in comfy_processes(worker)], worker.log
    run_sql(worker, spec_sql(clip[1]))
    task = str(worker.sql("SELECT id FROM tasks WHERE task_type = 'comfy'")[0]["id"])
    row = worker.ended(task)
    eventually("its last line is written", lambda: f"Task {task} completed" in worker.log)
    return Story(worker, port, before, log_before, task, row, clip[1])


def line_of(story: Story, index: int) -> str:
    """A line of the documentation with this run's own values; a regular expression."""
    shown = re.escape(EXPECTED_OUTPUT[index])
    values = {
        "abc-123": re.escape(story.task),
        "/workspace/ComfyUI": re.escape(story.worker.environ["COMFY_PATH"]),
        "12345": r"\d+",
        "https://...": re.escape(story.url),
        "prompt-xyz": r"[0-9a-f-]{36}",
        "/workspace/Headless-Wan2GP": re.escape(str(story.worker.data_dir)),
        "_output.mp4": r"_output\S*\.mp4",
    }
    for example, value in values.items():
        shown = shown.replace(re.escape(example), value)
    return shown + "$"


# --- the log -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(len(EXPECTED_OUTPUT)), ids=lambda index: str(EXPECTED_OUTPUT[index])[:30])
def test_the_log_says_this_line_after_the_one_before(story: Story, index: int) -> None:
    log, position = story.worker.log, 0
    for before in range(index):
        found = re.compile(line_of(story, before), re.MULTILINE).search(log, position)
        assert found is not None, f"an earlier line is missing: {EXPECTED_OUTPUT[before]}"
        position = found.end()
    assert re.compile(line_of(story, index), re.MULTILINE).search(log, position), log


def test_the_line_with_the_pid_names_the_process_that_runs(story: Story) -> None:
    said = re.findall(r"ComfyUI started with PID: (\d+)$", story.worker.log, re.MULTILINE)
    assert said == [str(process.pid) for process in comfy_processes(story.worker)]


# --- the row -------------------------------------------------------------------------------------------------------


def test_the_row_as_written_ends_complete_with_an_mp4(story: Story, clip: Clip) -> None:
    row = story.row
    assert (row["status"], row["attempts"], row["error_message"]) == ("Complete", 1, None)
    made, source = read_video(Path(row["output_location"])), clip[0]
    assert (made.path.suffix, made.frames, made.width, made.height) == (".mp4", source.frames, 320, 240)
    assert artifacts(row)[0]["frames"] == source.frames


def test_what_todays_nodes_demand_beyond_the_row_is_filled_in_and_told(story: Story) -> None:
    """Today's VHS_VideoCombine refuses the documentation's own example."""
    warnings = " ".join(story.row["result_data"]["warnings"])
    assert "loop_count" in warnings and "filename_prefix" in warnings


def test_a_row_without_a_video_needs_a_workflow_alone(story: Story) -> None:
    """`VALUES ('comfy', '{"workflow": {...}}', 'queued')`"""
    params = json.dumps({"workflow": picture()})
    run_sql(story.worker, f"INSERT INTO tasks (task_type, params, status) VALUES ('comfy', '{params}', 'queued');")
    assert story.worker.ended(newest(story.worker))["status"] == "Complete"


def test_a_second_task_finds_comfyui_running(story: Story) -> None:
    worker = story.worker
    pid = comfy_processes(worker)[0].pid
    assert worker.ended(worker.insert("comfy", {"workflow": picture(color=7)}))["status"] == "Complete"
    assert [process.pid for process in comfy_processes(worker)] == [pid]
    assert worker.log.count("First ComfyUI task detected") == 1


# --- lazy loading --------------------------------------------------------------------------------------------------


def test_comfyui_does_not_start_before_the_first_comfy_task(story: Story) -> None:
    assert "Processing noop task" in story.log_before
    assert story.before == []
    assert "ComfyUI" not in story.log_before and "Starting handler comfy" not in story.log_before


# --- the parameters' table -----------------------------------------------------------------------------------------


def video_row(url: str, **changes: Any) -> dict[str, Any]:
    """The documentation's parameters with this URL; a change to None leaves the parameter out."""
    params = {**spec_row(), "video_url": url, **changes}
    return {name: value for name, value in params.items() if value is not None}


def frames_of(row: Row) -> int:
    assert row["status"] == "Complete", row["error_message"]
    return read_video(Path(row["output_location"])).frames


def test_workflow_may_be_json_in_a_string(story: Story, clip: Clip) -> None:
    params = video_row(clip[1], workflow=json.dumps(spec_row()["workflow"]))
    assert frames_of(story.worker.ended(story.worker.insert("comfy", params))) == clip[0].frames


def test_workflow_is_required(story: Story, clip: Clip) -> None:
    row = story.worker.ended(story.worker.insert("comfy", video_row(clip[1], workflow=None)))
    assert row["status"] == "Failed"
    assert row["error_message"].startswith("comfy.bad_workflow: ") and "workflow" in row["error_message"]


def test_video_input_field_is_video_when_it_is_left_out(story: Story, clip: Clip) -> None:
    params = video_row(clip[1], video_input_field=None)
    assert frames_of(story.worker.ended(story.worker.insert("comfy", params))) == clip[0].frames


def test_video_input_field_names_another_field(story: Story, clip: Clip) -> None:
    workflow = {
        "7": {"class_type": "LoadVideo", "inputs": {"file": "placeholder.mp4"}},
        "8": {"class_type": "SaveVideo", "inputs": {"video": ["7", 0], "filename_prefix": "saved"}},
    }
    params = video_row(clip[1], workflow=workflow, video_node_id="7", video_input_field="file")
    assert frames_of(story.worker.ended(story.worker.insert("comfy", params))) == clip[0].frames


def test_video_node_id_says_which_of_two_loaders_gets_the_video(story: Story, clip: Clip) -> None:
    """The other one keeps its own file, which is not there: the server's refusal names it, and only it."""
    workflow = spec_row()["workflow"]
    workflow["3"] = {**workflow["1"], "inputs": {**workflow["1"]["inputs"], "video": "elsewhere.mp4"}}
    workflow["4"] = {**workflow["2"], "inputs": {**workflow["2"]["inputs"], "images": ["3", 0]}}
    row = story.worker.ended(story.worker.insert("comfy", video_row(clip[1], workflow=workflow, video_node_id="3")))
    assert row["status"] == "Failed"
    assert row["error_message"].startswith("comfy.validation: ")
    assert "node 1 (VHS_LoadVideo)" in row["error_message"] and "node 3" not in row["error_message"]


def test_video_url_without_a_node_goes_to_the_only_loader(story: Story, clip: Clip) -> None:
    params = video_row(clip[1], video_node_id=None, video_input_field=None)
    assert frames_of(story.worker.ended(story.worker.insert("comfy", params))) == clip[0].frames


# --- environment variables -----------------------------------------------------------------------------------------


@pytest.fixture
def checked(tmp_path: Path) -> dict[str, str]:
    """The worker's configuration when the environment names nothing."""
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [sys.executable, "-m", "wan2gp.entry", "--data-dir", str(tmp_path), "check"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)
    assert done.returncode == 0, done.stderr
    return dict(line.split(" = ", 1) for line in done.stdout.splitlines() if " = " in line)


def test_comfy_path_is_workspace_comfyui_when_it_is_not_set(checked: dict[str, str]) -> None:
    assert checked["comfy_path"] == "/workspace/ComfyUI"


def test_comfy_port_is_8188_when_it_is_not_set(checked: dict[str, str]) -> None:
    assert checked["comfy_port"] == "8188"


def test_comfy_path_is_where_the_server_is_started_from(story: Story) -> None:
    (process,) = comfy_processes(story.worker)
    assert process.cwd() == story.worker.environ["COMFY_PATH"]


def test_comfy_port_is_where_the_server_listens(story: Story) -> None:
    (process,) = comfy_processes(story.worker)
    listening = {
        connection.laddr.port for connection in process.net_connections("tcp") if connection.status == "LISTEN"
    }
    assert listening == {story.port}


def test_the_literal_names_of_an_exec_form_command_are_read_from_the_environment(tmp_path: Path) -> None:
    """`CMD ["python", "worker.py", "--worker", "$WORKER_ID", …]` reaches the program unexpanded."""
    environ = {"PATH": os.environ["PATH"], "WORKER_ID": "pod-7"}
    command = [sys.executable, "-m", "wan2gp.entry", "--data-dir", str(tmp_path), "check", "--worker", "$WORKER_ID"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)
    assert "worker_id = pod-7\n" in done.stdout
    assert "$WORKER_ID" in done.stderr


# --- monitoring ----------------------------------------------------------------------------------------------------


def test_the_query_for_the_distribution_of_tasks_works_as_written(story: Story) -> None:
    story.worker.ended(story.worker.insert("comfy", {"workflow": "{"}))
    printed = run_sql(story.worker, TASK_DISTRIBUTION).splitlines()
    counts = {tuple(line.split("|")[:2]): int(line.split("|")[2]) for line in printed if line}
    assert counts["noop", "Complete"] == 1
    assert counts["comfy", "Complete"] >= 1 and counts["comfy", "Failed"] >= 1


def test_outputs_are_listed_under_outputs_comfy(story: Story) -> None:
    names = os.listdir(story.worker.data_dir / "outputs" / "comfy")
    assert Path(story.row["output_location"]).name in names
    assert any(name.startswith(f"{story.task}_output") and name.endswith(".mp4") for name in names)


def test_the_list_of_processes_shows_comfyui(story: Story) -> None:
    """`ps aux | grep ComfyUI`"""
    (process,) = comfy_processes(story.worker)
    assert "ComfyUI/main.py" in " ".join(process.cmdline())


def test_system_stats_answers_on_localhost(story: Story) -> None:
    """`curl localhost:PORT/system_stats`"""
    with urllib.request.urlopen(f"http://localhost:{story.port}/system_stats", timeout=10) as answer:
        assert "comfyui_version" in json.load(answer)["system"]


# --- no outputs ----------------------------------------------------------------------------------------------------


def test_a_workflow_without_outputs_says_the_sentence(story: Story) -> None:
    row = story.worker.ended(story.worker.insert("comfy", {"workflow": fault("FaultNoOutput")}))
    assert (row["status"], row["error_message"]) == (
        "Failed",
        "comfy.no_outputs: No outputs generated by workflow",
    )
    assert row["output_location"] is None


# --- graceful degradation ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_comfyui(start_lasting: Start, tmp_path_factory: pytest.TempPathFactory) -> Worker:
    return start_lasting(name="without", COMFY_PATH=str(tmp_path_factory.mktemp("none") / "ComfyUI"))


def test_without_comfyui_a_comfy_task_fails_with_the_sentence(without_comfyui: Worker) -> None:
    row = without_comfyui.ended(without_comfyui.insert("comfy", {"workflow": picture()}))
    assert (row["status"], row["attempts"]) == ("Failed", 1)
    assert row["error_message"] == "comfy.not_installed: ComfyUI not available on this worker"


def test_without_comfyui_other_tasks_continue_working(without_comfyui: Worker) -> None:
    failed = without_comfyui.ended(without_comfyui.insert("comfy", {"workflow": picture()}))
    assert failed["status"] == "Failed"
    assert without_comfyui.ended(without_comfyui.insert("noop"))["status"] == "Complete"


@dataclass
class Trouble:
    """A worker whose ComfyUI does not come up, and a comfy task that waits for better times."""

    worker: Worker
    task: str
    row: Row


def trouble(worker: Worker) -> Trouble:
    task = worker.insert("comfy", {"workflow": picture()})
    row = eventually("the row says why", lambda: (row := worker.row(task))["error_message"] and row)
    return Trouble(worker, task, row)


@pytest.fixture(scope="module")
def ends_at_start(start_lasting: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trouble]:
    text = "print('no module named torch', flush=True); sys.exit(3)"
    path = checkout(tmp_path_factory.mktemp("ends") / "ComfyUI", text)
    yield trouble(start_lasting(name="ends", COMFY_PATH=path, COMFY_PORT=str(free_port())))


@pytest.fixture(scope="module")
def never_ready(start_lasting: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trouble]:
    path = checkout(tmp_path_factory.mktemp("mute") / "ComfyUI", "time.sleep(600)")
    environ = {"COMFY_PATH": path, "COMFY_PORT": str(free_port()), "COMFY_START_TIMEOUT_S": "1"}
    yield trouble(start_lasting(name="mute", **environ))


def test_a_start_that_fails_says_the_sentence_and_why(ends_at_start: Trouble) -> None:
    message = ends_at_start.row["error_message"]
    assert message.startswith("comfy.start_failed: ComfyUI startup failed: ")
    assert "exit code 3" in message and "no module named torch" in message
    assert "ComfyUI startup failed: " in ends_at_start.worker.log


def test_a_server_that_never_answers_says_the_sentence(never_ready: Trouble) -> None:
    assert never_ready.row["error_message"].startswith("comfy.not_ready: ComfyUI failed to become ready")
    assert "ComfyUI failed to become ready" in never_ready.worker.log


@pytest.mark.parametrize("which", ["ends_at_start", "never_ready"])
def test_a_comfyui_in_trouble_costs_its_task_no_attempt(request: pytest.FixtureRequest, which: str) -> None:
    """Broken is not missing: the row stays queued, uncounted, for a worker that can."""
    found: Trouble = request.getfixturevalue(which)
    row = found.worker.row(found.task)
    assert row["status"] in ("Queued", "In Progress")
    eventually("the row is queued again", lambda: found.worker.row(found.task)["status"] == "Queued")
    assert found.worker.row(found.task)["attempts"] == 0


@pytest.mark.parametrize("which", ["ends_at_start", "never_ready"])
def test_a_comfyui_in_trouble_leaves_other_tasks_alone(request: pytest.FixtureRequest, which: str) -> None:
    found: Trouble = request.getfixturevalue(which)
    assert found.worker.ended(found.worker.insert("noop"))["status"] == "Complete"


# --- the real one --------------------------------------------------------------------------------------------------

REAL = os.environ.get("COMFY_PATH", "")


@pytest.mark.real_comfy
@pytest.mark.timeout(300)
@pytest.mark.skipif(
    not (Path(REAL) / "main.py").is_file(),
    reason="needs a real ComfyUI with VideoHelperSuite: set COMFY_PATH to its checkout "
    "(and COMFY_PYTHON to its interpreter, COMFY_ARGS=--cpu without a GPU)",
)
def test_the_row_as_written_ends_complete_on_a_real_comfyui(start_lasting: Start, clip: Clip) -> None:
    given = {name: os.environ[name] for name in ("COMFY_PATH", "COMFY_PYTHON", "COMFY_ARGS") if name in os.environ}
    worker = start_lasting(name="real", COMFY_PORT=str(free_port()), WAN2GP_ALLOW_PRIVATE_URLS="1", **given)
    run_sql(worker, spec_sql(clip[1]))
    row = worker.ended(newest(worker), patience_s=240)
    assert (row["status"], row["attempts"], row["error_message"]) == ("Complete", 1, None)
    made = read_video(Path(row["output_location"]))
    assert (made.path.suffix, made.frames, made.width, made.height) == (".mp4", clip[0].frames, 320, 240)
    assert row["result_data"]["engine"]["name"] == "comfyui"
    positions = [
        worker.log.index(line) for line in ("ComfyUI started with PID: ", "ComfyUI is ready!", "Workflow completed")
    ]
    assert positions == sorted(positions)
