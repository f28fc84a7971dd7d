"""ComfyUI's life as an operator meets it: through a whole worker, its status, and `wan2gp-ctl`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.comfy_jobs import fault, gone, picture
from tests.comfy_worker import SERVE, checkout
from tests.conftest_comfy import FAULTS, free_port
from tests.conftest_db import PgServer
from tests.conftest_worker import Worker, eventually
from tests.shared_worker import shared_worker

NOISE = "[print('loading', n) for n in range(500)]"
FAILED = "print('   0.0 seconds (IMPORT FAILED): /opt/ComfyUI/custom_nodes/broken-nodes')"
IDLE_S = 2


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer) -> Iterator[Worker]:
    """Prewarmed, with a warm-up workflow, an idle stop, and a checkout in which a custom node is broken."""
    place = tmp_path_factory.mktemp("life")
    warm = place / "warm.json"
    warm.write_text(json.dumps(picture("models")))
    environ = {
        "COMFY_PATH": checkout(place / "ComfyUI", f"{FAILED}\n{NOISE}\n{SERVE}"),
        "COMFY_PORT": str(free_port()),
        "COMFY_ARGS": f"--extra-nodes '{FAULTS}'",
        "COMFY_WARMUP_WORKFLOW": str(warm),
        "COMFY_IDLE_STOP_S": str(IDLE_S),
        "WAN2GP_PREWARM": "comfy",
    }
    with shared_worker(place, _pg_session, **environ) as one:
        yield one


def engine(worker: Worker) -> dict[str, Any]:
    found: dict[str, Any] = worker.handler("comfy")["engine"]
    return found


def in_state(worker: Worker, state: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = engine(worker)
        return found if found.get("state") == state else None

    found: dict[str, Any] = eventually(f"the engine is {state}", look)
    return found


def test_a_prewarmed_worker_has_a_warm_server_before_any_task(worker: Worker) -> None:
    eventually("it is warmed up", lambda: "The warm-up workflow took" in worker.log)
    assert "First ComfyUI task detected" not in worker.log.partition("The warm-up workflow took")[0]
    assert worker.sql("SELECT count(*) AS count FROM tasks WHERE status = 'In Progress'")[0]["count"] == 0


def test_status_names_custom_nodes_that_did_not_load_and_so_does_the_task_that_needs_them(worker: Worker) -> None:
    worker.ended(worker.insert("comfy", {"workflow": picture()}))
    found = in_state(worker, "ready")
    assert found["custom_nodes_failed"] == ["broken-nodes"]
    assert found["python"] and found["device"] == "cpu"
    assert "broken-nodes" in worker.ctl("status").stdout
    row = worker.ended(worker.insert("comfy", {"workflow": {"1": {"class_type": "FaceSwap", "inputs": {}}}}))
    assert row["status"] == "Failed"
    assert "FaceSwap" in row["error_message"] and "broken-nodes" in row["error_message"]


def test_an_idle_server_is_stopped_and_the_next_task_starts_it_again(worker: Worker) -> None:
    worker.ended(worker.insert("comfy", {"workflow": picture()}))
    pid = in_state(worker, "ready")["pid"]
    found = in_state(worker, "stopped")
    assert found["cause"].startswith(f"idle for {IDLE_S} s")
    assert gone(pid) and worker.handler("comfy")["state"] == "idle"
    assert "ComfyUI stopped after 2s without work" in worker.log
    row = worker.ended(worker.insert("comfy", {"workflow": picture()}))
    assert row["status"] == "Complete" and row["attempts"] == 1


def test_the_row_says_what_made_the_result(worker: Worker) -> None:
    made = worker.ended(worker.insert("comfy", {"workflow": picture()}))["result_data"]["engine"]
    assert made["name"] == "comfyui" and {"version", "python", "torch", "device", "prompt_id"} <= made.keys()


def test_the_gpu_is_given_back_on_request_after_the_task_that_runs(worker: Worker) -> None:
    before = worker.log.count("asked to give its models and caches back")
    task = worker.insert("comfy", {"workflow": fault("TestSleep", seconds=60, steps=6000)})
    worker.running(task)
    eventually("the graph runs", lambda: worker.log.rpartition(f"Processing comfy task {task}")[2].count("queued:"))
    done = worker.ctl("free", "comfy")
    assert done.returncode == 0 and "after its task" in done.stdout
    assert worker.log.count("asked to give its models and caches back") == before
    assert worker.ctl("cancel", task).returncode == 0
    eventually("it is asked", lambda: worker.log.count("asked to give its models and caches back") == before + 1)
    worker.ended(worker.insert("comfy", {"workflow": picture()}))
    assert "was asked to give" in worker.ctl("free", "comfy").stdout
    eventually("it is asked", lambda: worker.log.count("asked to give its models and caches back") == before + 2)


def test_a_handler_that_does_not_exist_cannot_be_freed(worker: Worker) -> None:
    done = worker.ctl("free", "comfi")
    assert done.returncode == 1 and "no handler is named comfi" in done.stderr


@pytest.mark.long
def test_the_server_is_not_stopped_under_a_task_however_long_it_takes(worker: Worker) -> None:
    sleep = {**fault("TestSleep", seconds=IDLE_S + 2, steps=40), "8": picture()["1"], "9": picture()["2"]}
    sleep["9"]["inputs"]["images"] = ["8", 0]
    row = worker.ended(worker.insert("comfy", {"workflow": sleep}))
    assert (row["status"], row["attempts"]) == ("Complete", 1), row["error_message"]


def test_nothing_of_the_warm_ups_is_left(worker: Worker) -> None:
    worker.ended(worker.insert("comfy", {"workflow": picture()}))
    homes = Path(worker.data_dir, "handlers", "comfy", "engine")
    assert homes.is_dir() and not [path for path in homes.rglob("*.png")]


@pytest.mark.long
def test_a_worker_with_an_external_server_starts_and_ends_nothing(
    tmp_path: Path, _pg_session: PgServer, start_builtin: Any
) -> None:
    server = start_builtin()
    with shared_worker(tmp_path, _pg_session, COMFY_URL=server.url, COMFY_PATH="/nowhere") as one:
        row = one.ended(one.insert("comfy", {"workflow": picture()}))
        assert row["status"] == "Complete" and row["result_data"]["engine"]["external"] is True
        found = engine(one)
        assert found["url"] == server.url and "not ours to restart" in found["whose"]
        assert "not ours to restart" in one.ctl("status").stdout.replace("\n", " ")
        assert "comfy starts anew" in one.ctl("restart", "comfy").stdout
        assert one.ended(one.insert("comfy", {"workflow": picture()}))["status"] == "Complete"
        assert not [process for process in one.family() if "builtin" in " ".join(words(process))]
    assert server.process.poll() is None


def words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
