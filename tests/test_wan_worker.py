"""Generation rows through a real worker: its handler, the engine's own process, and a stand-in for the engine in it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tests.conftest_db import PgServer
from tests.conftest_worker import Worker, eventually
from tests.shared_worker import shared_worker
from wan2gp.demo_stage import InputServer
from wan2gp.handlers.media_probe import probe

WAN_ROOT = Path(__file__).parent / "wan_root"
SMALL = {"resolution": "64x64", "video_length": 17}
Row = dict[str, Any]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer) -> Iterator[Worker]:
    environ = {
        "WAN2GP_PATH": str(WAN_ROOT),
        "WAN2GP_PYTHON": sys.executable,
        "WAN2GP_ALLOW_PRIVATE_URLS": "1",
        "WAN2GP_CANCEL_GRACE_S": "5",
        "WAN2GP_DOWNLOAD": "0",
    }
    with shared_worker(tmp_path_factory.mktemp("wan"), _pg_session, **environ) as running:
        yield running


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an upright picture that is twice as high as wide: red above, blue below."""
    path = tmp_path_factory.mktemp("picture") / "input.png"
    image = Image.new("RGB", (60, 120), (255, 0, 0))
    image.paste((0, 0, 255), (0, 60, 60, 120))
    image.save(path)
    with InputServer(path) as server:
        yield server.url


def told(worker: Worker, event: str) -> list[Row]:
    """What the engine's stand-in noted."""
    path = worker.data_dir / "handlers" / "wan" / "engine" / "stand-in.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line["event"] == event]


def settings(worker: Worker, prompt: str) -> Row:
    """What the engine was given for the task with that prompt."""
    found: list[Row] = [line["settings"] for line in told(worker, "task") if line["settings"]["prompt"] == prompt]
    return found[-1]


def made(row: Row) -> list[Row]:
    assert row["status"] == "Complete", row["error_message"]
    return list(row["result_data"]["artifacts"])


def engine_pid(worker: Worker) -> int:
    """Of the engine's own process, as the status tells it."""

    def look() -> int | None:
        pid = worker.handler("wan")["engine"].get("pid")
        return pid if pid and psutil.pid_exists(pid) else None

    return int(eventually("the engine runs", look))


def test_a_row_becomes_a_video_of_the_length_and_size_that_it_is_told(worker: Worker) -> None:
    row = worker.ended(worker.insert("t2v", {"prompt": "a cat", "resolution": "105x64", "video_length": 16}))
    (video,) = made(row)
    found = probe(Path(video["path"]))
    assert (found.kind, found.width, found.height, found.frames) == ("video", 96, 64, 17)
    data = row["result_data"]
    assert data["frames"] == {"asked": 16, "made": 17} and data["resolution"] == {"asked": "105x64", "made": "96x64"}
    assert {"name": "WanGP", "version": "12.60", "model": "t2v"}.items() <= data["engine"].items()
    assert settings(worker, "a cat")["seed"] == data["engine"]["seed"]


def test_a_video_begins_with_a_picture_from_the_web(worker: Worker, picture: str) -> None:
    params = {"prompt": "from a picture", "image_start": picture, **SMALL}
    row = worker.ended(worker.insert("i2v", params))
    assert len(made(row)) == 1
    given = settings(worker, "from a picture")
    assert Path(given["image_start"]).name == "image_start-0.png" and given["image_prompt_type"] == "S"
    assert str(worker.data_dir / "work" / "wan") in given["image_start"]
    eventually("what was the task's alone is gone", lambda: not Path(given["image_start"]).exists())


def test_a_second_task_of_the_same_model_loads_nothing(worker: Worker) -> None:
    worker.ended(worker.insert("t2v", {"prompt": "first", **SMALL}))
    loads, pid = told(worker, "load"), engine_pid(worker)
    worker.ended(worker.insert("generate_video", {"prompt": "second", **SMALL}))
    assert told(worker, "load") == loads and engine_pid(worker) == pid
    assert worker.handler("wan")["engine"]["model"] == "t2v"
    worker.ended(worker.insert("t2v_22", {"prompt": "third", **SMALL}))
    assert [line["model"] for line in told(worker, "load")[len(loads) :]] == ["t2v_2_2"]


def killed_at(worker: Worker, moment: str, task: str, prompt: str) -> int:
    """The process of the engine, killed when the task is there."""
    pid = engine_pid(worker)
    files = worker.data_dir / "work" / "wan" / task
    reached: dict[str, Callable[[], bool]] = {
        "load": lambda: any(line["settings"]["prompt"] == prompt for line in told(worker, "task")),
        "step": lambda: any(files.glob("*/preview.jpg")),
    }
    eventually(f"the task is in its {moment}", reached[moment])
    os.kill(pid, signal.SIGKILL)
    return pid


@pytest.mark.long
@pytest.mark.parametrize(
    ("moment", "words"),
    [("load", "@load_s=3"), ("step", "@step_s=0.3 @steps=12")],
)
def test_an_engine_that_is_killed_costs_an_attempt_and_publishes_nothing_of_it(
    worker: Worker, moment: str, words: str
) -> None:
    """A file of the attempt that was killed, or of another task, must never be the row's result."""
    other = "hunyuan" if moment == "load" else "t2v"
    worker.ended(worker.insert("t2v", {"prompt": "before", **SMALL}))
    handler, prompt = worker.handler_pid("wan"), f"{words} killed in {moment}"
    task = worker.insert(other, {"prompt": prompt, **SMALL})
    pid = killed_at(worker, moment, task, prompt)
    row = worker.ended(task)
    (video,) = made(row)
    assert row["attempts"] == 2 and "killed by signal 9" in json.dumps(row["result_data"]["attempts"])
    assert probe(Path(video["path"])).frames == 17
    published = [path.name for path in Path(video["path"]).parent.iterdir() if path.name.startswith(task)]
    assert published == [Path(video["path"]).name]
    assert worker.handler_pid("wan") == handler and engine_pid(worker) != pid
    assert [line["pid"] for line in told(worker, "done")][-1] != pid


@pytest.mark.long
@pytest.mark.parametrize("moment", ["load", "step", "decode"])
def test_nothing_is_published_of_a_task_whose_engine_dies_each_time(worker: Worker, moment: str) -> None:
    """In decoding half a file is there already; in the task before, a whole one was."""
    worker.ended(worker.insert("hunyuan", {"prompt": "before", **SMALL}))
    task = worker.insert("t2v", {"prompt": f"@kill-{moment}", **SMALL}, max_attempts=2)
    row = worker.ended(task)
    assert row["status"] == "Failed" and row["attempts"] == 2
    assert "killed twice under this task" in row["error_message"] and not (row["result_data"] or {}).get("artifacts")
    assert not list((worker.data_dir / "outputs").rglob(f"{task}*")) and row["output_location"] is None
    assert made(worker.ended(worker.insert("t2v", {"prompt": "after", **SMALL})))


@pytest.mark.long
def test_a_handler_that_is_killed_takes_its_engine_along_and_its_task_is_done_again(worker: Worker) -> None:
    worker.ended(worker.insert("t2v", {"prompt": "before", **SMALL}))
    handler, engine = worker.handler_pid("wan"), psutil.Process(engine_pid(worker))
    task = worker.insert("t2v", {"prompt": "@step_s=0.3 @steps=12 under a handler", **SMALL})
    eventually("it makes steps", lambda: any((worker.data_dir / "work" / "wan" / task).glob("*/preview.jpg")))
    os.kill(handler, signal.SIGKILL)
    eventually("the engine is gone", lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)
    row = worker.ended(task)
    assert len(made(row)) == 1 and row["attempts"] == 2


def shown(worker: Worker, task: str) -> Row | None:
    running = worker.status()["worker"]["running"]
    return next((one for one in running if one["task_id"] == task and one["preview"] and one["eta_s"]), None)


def test_a_cancel_ends_a_generation_at_its_next_step_and_the_model_stays(worker: Worker) -> None:
    worker.ended(worker.insert("t2v", {"prompt": "before", **SMALL}))
    loads = told(worker, "load")
    task = worker.insert("t2v", {"prompt": "@steps=600 @step_s=0.1", **SMALL})
    seen = eventually("steps, the time left and a picture are told", lambda: shown(worker, task))
    assert (seen["phase"], seen["steps"]) == ("step", 600) and Path(seen["preview"]).read_bytes()[:2] == b"\xff\xd8"
    assert worker.ctl("cancel", task).returncode == 0
    row = worker.ended(task)
    assert row["status"] == "Cancelled" and not (row["result_data"] or {}).get("artifacts")
    worker.ended(worker.insert("t2v", {"prompt": "after", **SMALL}))
    assert told(worker, "load") == loads


def test_all_results_of_a_repeated_generation_are_kept_each_with_its_seed(worker: Worker) -> None:
    params = {"prompt": "three", "repeat_generation": 3, "seed": 7, **SMALL}
    row = worker.ended(worker.insert("t2v", params))
    videos = made(row)
    assert len({video["sha256"] for video in videos}) == 3
    assert [video["primary"] for video in videos] == [True, False, False]
    assert row["result_data"]["seeds"] == [7, 8, 9]


def test_a_failure_says_what_to_do_and_the_next_task_is_served(worker: Worker) -> None:
    wrong = {
        "@missing": ("wan.missing_weights", "dw-ll_ucoco_384.onnx"),
        "@boom": ("wan.failed", "boom"),
        "@no-file": ("wan.no_outputs", "made no file"),
    }
    tasks = {prompt: worker.insert("t2v_22", {"prompt": prompt, **SMALL}) for prompt in list(wrong)[1:]}
    tasks["@missing"] = worker.insert("hunyuan", {"prompt": "@missing", **SMALL})
    for prompt, task in tasks.items():
        row = worker.ended(task)
        code, words = wrong[prompt]
        assert row["status"] == "Failed" and row["attempts"] == 1
        assert row["error_message"].startswith(f"{code}: ") and words in row["error_message"]
    assert made(worker.ended(worker.insert("t2v_22", {"prompt": "fine", **SMALL})))
