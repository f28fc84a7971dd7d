"""The same promises on a real ComfyUI with VideoHelperSuite, on the CPU: where COMFY_PATH names one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.comfy_jobs import Bench, gone, make_video, picture, spec_row
from tests.conftest_comfy import free_port
from wan2gp.protocol import Cancelled

PATH = os.environ.get("COMFY_PATH", "")
pytestmark = [
    pytest.mark.real_comfy,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (Path(PATH) / "main.py").is_file(), reason="COMFY_PATH names no ComfyUI"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    path = tmp_path_factory.mktemp("real")
    settings = {
        "path": PATH,
        "port": free_port(),
        "python": os.environ.get("COMFY_PYTHON", ""),
        "args": os.environ.get("COMFY_ARGS", "--cpu"),
    }
    one = Bench(path / "bench", settings, make_video(path / "in.mp4", frames=12))
    yield one
    one.handler.close()
    assert all(gone(int(fields["pid"])) for name, fields in one.facts if name == "comfy.started")


@pytest.fixture
def real(shared: Bench) -> Bench:
    shared.facts = [fact for fact in shared.facts if fact[0] == "comfy.started"][-1:]
    shared.cancel.clear()
    shared.heard = None
    return shared


def long_run() -> dict[str, Any]:
    """Encodes for many seconds, with progress at each frame."""
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 1280, "height": 720, "batch_size": 150, "color": int(time.time()) % 1000},
        },
        "2": {
            "class_type": "VHS_VideoCombine",
            "inputs": {
                "images": ["1", 0],
                "frame_rate": 30,
                "loop_count": 0,
                "filename_prefix": "long",
                "format": "video/h264-mp4",
                "pingpong": True,
                "save_output": True,
            },
        },
    }


def queue(one: Bench) -> Any:
    port = next(detail["port"] for state, detail in reversed(one.states) if state == "ready")
    return requests.get(f"http://127.0.0.1:{port}/queue", timeout=10).json()


def test_the_row_of_the_specification_becomes_a_video(real: Bench) -> None:
    """The real server refuses it as written."""
    outcome = real.succeeds(spec_row())
    (artifact,) = outcome.artifacts
    assert (artifact.kind, artifact.width, artifact.height, artifact.frames) == ("video", 64, 48, 12)
    assert any("loop_count" in warning for warning in outcome.warnings)
    assert outcome.engine["name"] == "comfyui"
    assert real.left_behind() == []


def test_the_same_row_again_gives_a_fresh_file(real: Bench) -> None:
    for _ in range(2):
        (artifact,) = real.succeeds(spec_row()).artifacts
        assert (real.work_dir / artifact.path).is_file()


def test_a_preview_that_comes_from_the_cache_is_made_anew(real: Bench) -> None:
    graph = picture()
    graph["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    for _ in range(2):
        (artifact,) = real.succeeds({"workflow": graph}).artifacts
        assert (real.work_dir / artifact.path).is_file()


def test_the_core_nodes_load_and_save_a_video(real: Bench) -> None:
    graph = {
        "1": {"class_type": "LoadVideo", "inputs": {"file": "x.mp4"}},
        "2": {"class_type": "SaveVideo", "inputs": {"video": ["1", 0]}},
    }
    (artifact,) = real.succeeds({"workflow": graph, "video_url": spec_row()["video_url"]}).artifacts
    assert (artifact.kind, artifact.frames) == ("video", 12)


def test_a_path_loader_gets_the_files_path(real: Bench) -> None:
    row = spec_row()
    row["workflow"]["1"]["class_type"] = "VHS_LoadVideoPath"
    assert real.succeeds(row).artifacts[0].frames == 12


def test_refusals_name_the_node(real: Bench) -> None:
    graph = picture()
    graph["9"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}
    failure = real.fails({"workflow": graph})
    assert failure.code == "comfy.validation" and "node 9 (SaveImage)" in failure.message
    failure = real.fails({"workflow": {"7": {"class_type": "NoSuchNode", "inputs": {}}}})
    assert failure.code == "comfy.validation" and "NoSuchNode" in failure.message
    assert queue(real) == {"queue_running": [], "queue_pending": []}


def test_an_error_in_a_node_is_named(real: Bench) -> None:
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "noise.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    }
    (real.engine / "input").mkdir(parents=True, exist_ok=True)
    (real.engine / "input" / "noise.png").write_bytes(b"no picture")
    failure = real.fails({"workflow": graph})
    assert failure.code == "comfy.node_failed"
    assert "node 1 (LoadImage) raised" in failure.message


def test_a_cancelled_run_stops(real: Bench) -> None:
    real.heard = lambda name, _: threading.Timer(1.0, real.cancel.set).start() if name == "comfy.queued" else None
    assert isinstance(real.run({"workflow": long_run()}), Cancelled)
    real.cancel.clear()
    real.heard = None
    real.succeeds({"workflow": picture()})
    assert queue(real) == {"queue_running": [], "queue_pending": []}
    assert real.left_behind() == []


def test_a_server_killed_in_a_run_is_replaced(real: Bench) -> None:
    def kill(name: str, _: dict[str, Any]) -> None:
        if name == "comfy.queued":
            threading.Timer(1.0, os.kill, (real.server_pid(), signal.SIGKILL)).start()

    real.heard = kill
    failure = real.fails({"workflow": long_run()})
    assert (failure.code, failure.retryable) == ("comfy.exited", True)
    real.heard = None
    real.succeeds(spec_row())


def test_a_connection_that_breaks_in_a_run_is_made_again_and_tells_of_the_rest(real: Bench) -> None:
    """Under the id with which the prompt was posted: to another the server would tell nothing."""
    live = real.handler._engine.ensure(real._fact, lambda: False, for_task=False)
    ids: list[str] = []

    def cut(name: str, _: dict[str, Any]) -> None:
        if name == "comfy.queued":
            ids.append(live.stream.client_id)
            live.stream.close()
            real.reports.clear()

    def steps() -> int:
        return len({fraction for fraction, phase in real.reports if phase == "step"})

    def watch() -> None:
        deadline = time.monotonic() + 120
        while steps() <= 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        real.cancel.set()

    real.heard = cut
    watcher = threading.Thread(target=watch)
    watcher.start()
    outcome = real.run({"workflow": long_run()})
    watcher.join()
    assert isinstance(outcome, Cancelled)
    assert steps() > 3
    assert ids == [live.stream.client_id]


def test_what_is_to_be_freed_is_freed_before_the_next_prompt(real: Bench) -> None:
    """A request that comes while the server collects its garbage would be heard of after that prompt only."""
    graph = picture()
    for freed, cached in ((False, ["1"]), (True, [])):
        real.succeeds({"workflow": graph})
        if freed:
            real.handler._engine.make_room()
        real.succeeds({"workflow": graph})
        prompt_id = next(fields["prompt_id"] for name, fields in reversed(real.facts) if name == "comfy.queued")
        port = next(detail["port"] for state, detail in reversed(real.states) if state == "ready")
        entry = requests.get(f"http://127.0.0.1:{port}/history/{prompt_id}", timeout=10).json()[prompt_id]
        assert dict(entry["status"]["messages"])["execution_cached"]["nodes"] == cached
