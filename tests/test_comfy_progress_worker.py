"""What a person sees of a graph while it runs, through a real worker: the row, `status`, `submit --wait`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.comfy_jobs import fault
from tests.comfy_worker import Start
from tests.conftest_comfy import FAULTS, free_port
from tests.conftest_worker import Worker, eventually

TITLE = "Dream a little"


@pytest.fixture(scope="module")
def worker(start_lasting: Start) -> Worker:
    arguments = f"--extra-nodes {FAULTS}"
    return start_lasting(name="seen", COMFY_PATH="builtin", COMFY_PORT=str(free_port()), COMFY_ARGS=arguments)


def held_graph(nonce: int) -> dict[str, Any]:
    """Steps with pictures for two seconds, then as long as the file `hold` is among the inputs."""
    inputs = {"seconds": 2.0, "steps": 20, "preview": True, "nonce": nonce}
    return {"1": {"class_type": "TestSleep", "inputs": inputs, "_meta": {"title": TITLE}}}


def test_a_running_graph_is_seen_by_title_step_time_left_and_picture(worker: Worker, tmp_path: Path) -> None:
    params = tmp_path / "params.json"
    params.write_text(json.dumps({"workflow": fault("TestSleep", seconds=0, steps=1)}))
    assert worker.ctl("submit", "comfy", "--params", str(params), "--wait").returncode == 0  # the engine is up now
    params.write_text(json.dumps({"workflow": held_graph(2)}))
    (hold,) = (path / "hold" for path in worker.data_dir.rglob("engine/input"))
    hold.touch()
    command = [sys.executable, "-m", "wan2gp.ctl", "--data-dir", str(worker.data_dir)]
    with subprocess.Popen(
        [*command, "submit", "comfy", "--params", str(params), "--wait"],
        env=worker.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        try:
            seen = eventually("the status shows all of it", lambda: shown(worker))
            assert (seen["detail"], seen["steps"], seen["phase"]) == (TITLE, 20, "step")
            picture = Path(seen["preview"])
            assert picture.is_relative_to(worker.data_dir) and picture.read_bytes()[:3] == b"\xff\xd8\xff"
            assert TITLE in worker.ctl("status").stdout
            told = worker.ctl("task", seen["task_id"]).stdout
            assert f"step {TITLE}, " in told and str(picture) in told
            row = eventually("the row shows it", lambda: detail(worker, seen["task_id"]))
            assert row.startswith(f"{TITLE}, ")
        finally:
            hold.unlink()
        output, errors = waiting.communicate(timeout=30)
    assert waiting.returncode == 0, errors
    assert output.splitlines()[0] == seen["task_id"]
    assert f"step {TITLE}" in errors and " s left" in errors, errors
    eventually("the picture is gone with the run", lambda: not picture.exists())


def shown(worker: Worker) -> Any:
    running = worker.status()["worker"]["running"]
    return next((task for task in running if task["preview"] and task["eta_s"] is not None), None)


def detail(worker: Worker, task_id: str) -> Any:
    rows = worker.sql("SELECT detail FROM task_leases WHERE task_id = %s AND detail LIKE '%% of 20%%'", task_id)
    return rows[0]["detail"] if rows else None
