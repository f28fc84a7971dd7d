"""`wan2gp-ctl` as its users call it: a process, its exit status, its two outputs."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.control_doubles import PaperSupervisor, paper_supervisor
from wan2gp import control

CTL = [sys.executable, "-m", "wan2gp.ctl"]
ROOT = Path(__file__).parent.parent


def environment(**more: str) -> dict[str, str]:
    """This process's, without what would lead to somebody's real worker, or write pipes sooner than a user's does."""
    foreign = ("WAN2GP_", "DATABASE_URL", "SUPABASE_", "COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "TZ": "UTC", **more}


def ctl(data_dir: Path, *arguments: str, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[str]:
    command = [*CTL, "--data-dir", str(data_dir), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, cwd=data_dir, env=environment(**env), timeout=60)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[PaperSupervisor]:
    with tempfile.TemporaryDirectory(prefix="w2") as run_dir, paper_supervisor(tmp_path, Path(run_dir)) as running:
        yield running


def one_sentence(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The error of a failed call: one line, no traceback, nothing on standard output."""
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert done.stderr.startswith("wan2gp-ctl: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


# --- without a supervisor ---------------------------------------------------------------------------------------


def test_help_costs_nothing_because_nothing_heavy_is_imported() -> None:
    script = (
        "import sys, wan2gp.ctl\n"
        "try: wan2gp.ctl.main(['submit', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'zmq', 'msgspec', 'rich', 'psycopg', 'av', 'numpy', 'loguru'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--params" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        *(
            ["status"],
            ["tasks"],
            ["drain"],
            ["resume"],
            ["restart", "comfy"],
            ["free", "comfy"],
            ["submit", "comfy", "--params", "-"],
        ),
        *([verb, str(uuid.UUID(int=1))] for verb in ("task", "cancel", "retry")),
    ],
)
def test_without_a_supervisor_every_command_says_what_to_do(tmp_path: Path, command: list[str]) -> None:
    said = one_sentence(ctl(tmp_path, *command, stdin=b"{}"), 3)
    assert f"no supervisor runs for the data directory {tmp_path}" in said and "wan2gp-supervisor" in said


def test_what_a_killed_supervisor_left_is_not_taken_for_a_running_one(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="w2") as run_dir, paper_supervisor(tmp_path, Path(run_dir)):
        pass
    assert (tmp_path / "run.json").exists() and (tmp_path / "control.token").exists()
    assert "no supervisor runs" in one_sentence(ctl(tmp_path, "status"), 3)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["submit", "comfy"],
        ["tasks", "--limit", "0"],
        ["status", "--nope"],
        ["submit", "comfy", "--par", "-"],
    ],
)
def test_a_wrong_command_line_is_exit_2(tmp_path: Path, arguments: list[str]) -> None:
    done = ctl(tmp_path, *arguments)
    assert done.returncode == 2 and "usage: wan2gp-ctl" in done.stderr and "Traceback" not in done.stderr


def test_a_bad_setting_elsewhere_keeps_nobody_from_looking(supervisor: PaperSupervisor) -> None:
    assert ctl(supervisor.data_dir, "status", COMFY_PORT="a lot").returncode == 0


def test_the_data_directory_may_come_from_the_environment_or_be_the_working_directory(
    supervisor: PaperSupervisor, tmp_path: Path
) -> None:
    for cwd, env in ((Path("/"), {"WAN2GP_DATA_DIR": str(tmp_path)}), (tmp_path, {})):
        done = subprocess.run(
            [*CTL, "status"], capture_output=True, cwd=cwd, env=environment(PYTHONPATH=str(ROOT), **env)
        )
        assert done.returncode == 0, done.stderr


# --- submit -------------------------------------------------------------------------------------------------------


def test_submit_prints_the_id_and_nothing_else(supervisor: PaperSupervisor) -> None:
    done = ctl(supervisor.data_dir, "submit", "comfy", "--params", "-", "--priority", "5", stdin=b'{"workflow": {}}')
    assert done.returncode == 0 and done.stderr == ""
    row = supervisor.queue.rows[done.stdout.strip()]
    assert (row["task_type"], row["params"], row["priority"]) == ("comfy", {"workflow": {}}, 5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b'{"a": }', "line 1, column 7"),
        (b"[1, 2]", "holds a list: params are a JSON object"),
        (b"null", "holds null"),
        (b'"{}"', "holds a string"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": 1e999}', "larger than any number"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[" * 200_000, "not JSON"),
        (b'{"a": "\\ud800"}', "cannot be written as JSON"),
    ],
)
def test_params_that_are_no_json_object_are_one_sentence(
    supervisor: PaperSupervisor, content: bytes, words: str
) -> None:
    file = supervisor.data_dir / "params.json"
    file.write_bytes(content)
    for name, stdin in ((str(file), b""), ("-", content)):
        done = ctl(supervisor.data_dir, "submit", "comfy", "--params", name, stdin=stdin)
        assert words in one_sentence(done, 1 if "written" in words else 2)
    assert supervisor.queue.rows == {}


def test_a_params_file_that_is_not_there_is_named(supervisor: PaperSupervisor) -> None:
    for name, words in (("nope.json", "cannot read nope.json: No such file"), (".", "cannot read .: Is a directory")):
        assert words in one_sentence(ctl(supervisor.data_dir, "submit", "comfy", "--params", name), 2)


def test_a_file_with_a_byte_order_mark_is_json_all_the_same(supervisor: PaperSupervisor) -> None:
    done = ctl(supervisor.data_dir, "submit", "comfy", "--params", "-", stdin=b'\xef\xbb\xbf{"a": 1}')
    assert done.returncode == 0


def _waiting(supervisor: PaperSupervisor, *more: str) -> subprocess.Popen[str]:
    command = [*CTL, "--data-dir", str(supervisor.data_dir), "submit", "comfy", "--params", "-", "--wait", *more]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdin is not None
    process.stdin.write("{}")
    process.stdin.close()
    process.stdin = None
    return process


def _id_from(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_waiting_for_a_task_that_completes_ends_0_with_the_place_of_its_file(supervisor: PaperSupervisor) -> None:
    with _waiting(supervisor) as process:
        task_id = _id_from(process)
        running = {"task_id": task_id, "task_type": "comfy", "handler": "comfy", "fraction": 0.25, "phase": "load"}
        supervisor.worker.running = [running]
        assert process.stderr is not None
        seen = ""
        while "load" not in seen:
            seen += process.stderr.readline()
        supervisor.queue.finish(task_id, "Complete", output_location="/data/outputs/comfy/x.mp4")
        supervisor.worker.running = []
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == "/data/outputs/comfy/x.mp4\n"
    assert "25%" in seen and "complete" in err and "\x1b" not in seen + err


def test_waiting_for_a_task_that_fails_ends_1_with_its_error(supervisor: PaperSupervisor) -> None:
    with _waiting(supervisor) as process:
        supervisor.queue.finish(_id_from(process), "Failed", error_message="comfy.no_outputs: nothing \x1b[2Jcame")
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == ""
    assert "the task is Failed: comfy.no_outputs: nothing came" in err and "\x1b" not in err


def test_waiting_with_json_prints_one_document_at_the_end(supervisor: PaperSupervisor) -> None:
    with _waiting(supervisor, "--json") as process:
        while not supervisor.queue.rows:
            threading.Event().wait(0.01)
        supervisor.queue.finish(next(iter(supervisor.queue.rows)), "Cancelled", error_message="x")
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert msgspec.json.decode(out, type=control.TaskReply).task.status == "Cancelled"


def test_ctrl_c_while_waiting_leaves_the_task_and_no_traceback(supervisor: PaperSupervisor) -> None:
    with _waiting(supervisor) as process:
        task_id = _id_from(process)
        assert process.stderr is not None and process.stderr.readline() == "queued\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and f"wan2gp-ctl task {task_id}" in err
    assert supervisor.queue.rows[task_id]["status"] == "Queued"


def test_a_supervisor_that_stops_while_we_wait_is_exit_3(supervisor: PaperSupervisor) -> None:
    with _waiting(supervisor) as process:
        _id_from(process)
        supervisor.server.stop()
        supervisor.lock.release()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 3 and "stopped meanwhile" in err


# --- reading ------------------------------------------------------------------------------------------------------


def _task_with_a_story(supervisor: PaperSupervisor) -> str:
    task_id = supervisor.queue.enqueue("comfy", {"workflow": {"1": "[bold]x[/bold]"}})
    supervisor.queue.finish(
        task_id,
        "Complete",
        attempts=2,
        losses=1,
        worker_id="w1",
        output_location="/data/outputs/comfy/x_[red].mp4",
        result_data={
            "artifacts": [{"name": "x.mp4", "kind": "video", "bytes": 2048, "width": 320, "height": 240, "frames": 60}],
            "attempts": [{"attempt": 1, "code": "handler.died", "cause": "SIGKILL"}],
            "warnings": ["node 2: loop_count was filled in"],
        },
        events=[
            {"name": "queued", "at": "2026-02-03T04:05:06+00:00", "detail": {}},
            {"name": "retried", "at": "2026-02-03T04:05:09+00:00", "detail": {"cause": "SIGKILL"}},
        ],
    )
    return task_id


def test_a_task_tells_its_whole_story(supervisor: PaperSupervisor) -> None:
    task_id = _task_with_a_story(supervisor)
    done = ctl(supervisor.data_dir, "task", task_id)
    assert done.returncode == 0 and "\x1b" not in done.stdout
    expected = ("Complete", "x_[red].mp4", "[bold]x[/bold]", "2.0 KiB", "320x240", "handler.died", "loop_count")
    for words in (task_id, "2026-02-03 04:05:09", "retried", "cause SIGKILL", "2, 1 lost", *expected):
        assert words in done.stdout, words


def test_a_tasks_json_is_the_documented_type(supervisor: PaperSupervisor) -> None:
    task_id = _task_with_a_story(supervisor)
    reply = msgspec.json.decode(ctl(supervisor.data_dir, "task", task_id, "--json").stdout, type=control.TaskReply)
    assert reply.task.id == task_id and reply.task.result_data["artifacts"][0]["frames"] == 60


@pytest.mark.long
def test_an_unknown_task_is_exit_1_and_one_sentence(supervisor: PaperSupervisor) -> None:
    for verb in ("task", "cancel", "retry"):
        for task_id in (str(uuid.UUID(int=9)), "nonsense"):
            assert f"no task has the id {task_id}" in one_sentence(ctl(supervisor.data_dir, verb, task_id), 1)


@pytest.mark.long
def test_tasks_are_filtered_and_limited(supervisor: PaperSupervisor) -> None:
    first, second = (supervisor.queue.enqueue(kind, {}) for kind in ("comfy", "vace"))
    supervisor.queue.finish(second, "Failed", error_message="comfy.exited: gone")
    for arguments, ids in (
        ([], [second, first]),
        (["--status", "failed"], [second]),
        (["--type", "comfy"], [first]),
        (["--limit", "1"], [second]),
        (["--type", "nope"], []),
    ):
        done = ctl(supervisor.data_dir, "tasks", *arguments, "--json")
        assert [task["id"] for task in json.loads(done.stdout)["tasks"]] == ids
        plain = ctl(supervisor.data_dir, "tasks", *arguments)
        assert [line.split()[0] for line in plain.stdout.splitlines()[1:]] == ids
    assert "Queued, In Progress" in one_sentence(ctl(supervisor.data_dir, "tasks", "--status", "done"), 1)


def test_status_shows_handlers_restarts_causes_queue_age_and_what_nobody_takes(supervisor: PaperSupervisor) -> None:
    task_id = supervisor.queue.enqueue("comfy", {})
    supervisor.queue.enqueue("comfi", {})
    supervisor.worker.running = [
        {"task_id": task_id, "task_type": "comfy", "handler": "comfy", "fraction": 0.4, "phase": "step", "seconds": 75}
    ]
    done = ctl(supervisor.data_dir, "status")
    assert done.returncode == 0 and "\x1b" not in done.stdout
    expected = ("killed by SIGKILL (out of memory?)", "ready, pid 4243, port 8188", "40%", "1 min 15 s", "1 h 06 min")
    for words in ("w1", "running", "woken by the database", "comfi", "no handler of this worker", *expected):
        assert words in done.stdout, done.stdout
    reply = msgspec.json.decode(ctl(supervisor.data_dir, "status", "--json").stdout, type=control.StatusReply)
    assert reply.worker.handlers[0].restarts == 2 and reply.queue.oldest_queued_s["comfy"] == 4000.0


def test_ready_names_every_obstacle_and_asks_no_database(supervisor: PaperSupervisor) -> None:
    supervisor.queue.gate.clear()
    done = ctl(supervisor.data_dir, "ready")
    assert (done.returncode, done.stdout) == (0, "ready\n")
    blocked = {"worker.disk_full": "no \x1b[31mspace", "worker.gpu_unhealthy": "it fell off the bus"}
    supervisor.worker.blocked = blocked
    done = ctl(supervisor.data_dir, "ready")
    assert (done.returncode, done.stdout) == (
        1,
        "worker.disk_full: no space\nworker.gpu_unhealthy: it fell off the bus\n",
    )
    done = ctl(supervisor.data_dir, "ready", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"reply": "ready", "ready": False, "obstacles": blocked}
    supervisor.queue.gate.set()
    shown = ctl(supervisor.data_dir, "status").stdout
    assert "not ready  worker.gpu_unhealthy: it fell off the bus\n" in shown
    assert "512 MiB, GPU 20,480 MiB" in shown


def test_status_is_shown_while_the_database_is_down(supervisor: PaperSupervisor) -> None:
    supervisor.queue.down = True
    done = ctl(supervisor.data_dir, "status")
    assert done.returncode == 0 and "DOWN: connection refused" in done.stdout
    assert "the database does not answer" in one_sentence(ctl(supervisor.data_dir, "tasks"), 1)


def test_a_terminal_gets_colours_and_bars(supervisor: PaperSupervisor) -> None:
    task_id = supervisor.queue.enqueue("comfy", {})
    supervisor.worker.running = [{"task_id": task_id, "task_type": "comfy", "handler": "comfy", "fraction": 0.4}]
    shown = _on_terminal(supervisor.data_dir, "status")
    assert "\x1b[" in shown and "━" in shown and "40%" in shown


def _on_terminal(data_dir: Path, *arguments: str) -> str:
    ours, theirs = pty.openpty()
    command = [*CTL, "--data-dir", str(data_dir), *arguments]
    env = environment(TERM="xterm-256color", COLUMNS="160")
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the terminal's other end is closed
                break
            if not data:
                break
            shown += data
    os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode()


def test_a_reader_that_has_enough_is_no_error(supervisor: PaperSupervisor) -> None:
    for _ in range(300):
        supervisor.queue.enqueue("comfy", {}, priority=1)
    for extra in ([], ["--json"]):
        command = [*CTL, "--data-dir", str(supervisor.data_dir), "tasks", "--limit", "300", *extra]
        read, write = os.pipe()
        with subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment()) as process:
            os.close(write)
            os.close(read)
            _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")


# --- steering -----------------------------------------------------------------------------------------------------


def test_cancel_retry_restart_drain_and_resume_say_what_they_did(supervisor: PaperSupervisor) -> None:
    task_id = supervisor.queue.enqueue("comfy", {})
    said = ctl(supervisor.data_dir, "cancel", task_id)
    assert said.returncode == 0 and said.stdout == f"cancelled {task_id} (it was Queued)\n"
    assert "already Cancelled" in one_sentence(ctl(supervisor.data_dir, "cancel", task_id), 1)
    assert "again (it was Cancelled)" in ctl(supervisor.data_dir, "retry", task_id).stdout
    assert "only a finished one" in one_sentence(ctl(supervisor.data_dir, "retry", task_id), 1)
    assert "comfy is being replaced" in ctl(supervisor.data_dir, "restart", "comfy").stdout
    assert "this worker has comfy" in one_sentence(ctl(supervisor.data_dir, "restart", "comfi"), 1)
    assert "comfy gives the GPU's memory back" in ctl(supervisor.data_dir, "free", "comfy").stdout
    assert "this worker has comfy" in one_sentence(ctl(supervisor.data_dir, "free", "comfi"), 1)
    assert ctl(supervisor.data_dir, "drain").returncode == 0 and supervisor.worker.state == "draining"
    assert ctl(supervisor.data_dir, "resume").returncode == 0 and supervisor.worker.state == "running"


def test_draining_with_wait_returns_when_nothing_runs(supervisor: PaperSupervisor) -> None:
    supervisor.worker.running = [{"task_id": "x", "task_type": "comfy", "handler": "comfy"}]
    command = [*CTL, "--data-dir", str(supervisor.data_dir), "drain", "--wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None and "claiming no more" in process.stdout.readline()
        assert process.poll() is None
        supervisor.worker.running = []
        assert "drained" in process.stdout.readline()
    assert process.returncode == 0
