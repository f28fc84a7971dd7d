"""LoRAs and weights through a real worker: the courier keeps them, the engine's stand-in is given them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest_db import PgServer
from tests.conftest_worker import Worker
from tests.model_server import ModelServer, safetensors
from tests.shared_worker import shared_worker

WAN_ROOT = Path(__file__).parent / "wan_root"
SMALL = {"resolution": "64x64", "video_length": 5}
SHARED = "DeepBeepMeep/Wan2.1/pose/dw-ll_ucoco_384.onnx"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    started = ModelServer()
    yield started
    started.close()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer, server: ModelServer) -> Iterator[Worker]:
    environ = {
        "WAN2GP_PATH": str(WAN_ROOT),
        "WAN2GP_PYTHON": sys.executable,
        "WAN2GP_ALLOW_PRIVATE_URLS": "1",
        "WAN2GP_MODEL_SOURCES": f"{server.host}/DeepBeepMeep",
        "HF_ENDPOINT": server.host,
    }
    with shared_worker(tmp_path_factory.mktemp("store"), _pg_session, **environ) as running:
        yield running


def told(worker: Worker, prompt: str) -> list[Row]:
    """The settings that the engine was given for that prompt."""
    path = worker.data_dir / "handlers" / "wan" / "engine" / "stand-in.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["settings"] for line in lines if line["event"] == "task" and line["settings"]["prompt"] == prompt]


def run(worker: Worker, prompt: str, task_type: str = "t2v", **params: Any) -> Row:
    return worker.ended(worker.insert(task_type, {"prompt": prompt, **SMALL, **params}))


def bodies(server: ModelServer, path: str) -> int:
    return sum(1 for asked, _ in server.requests if asked == path)


def test_a_lora_is_fetched_once_and_kept_for_all_tasks(worker: Worker, server: ModelServer) -> None:
    url = server.show("/loras/a.safetensors", safetensors())
    for prompt in ("once", "twice"):
        row = run(worker, prompt, loras=[{"url": url, "multiplier": 0.5}])
        assert row["status"] == "Complete", row["error_message"]
    (first,), (second,) = told(worker, "once"), told(worker, "twice")
    (path,) = map(Path, first["activated_loras"])
    assert second["activated_loras"] == [str(path)] and path.read_bytes() == safetensors()
    assert worker.data_dir / "models" / "loras" in path.parents
    assert bodies(server, "/loras/a.safetensors") == 1


def test_a_lora_that_cannot_be_had_fails_the_task_before_the_engine_has_it(worker: Worker, server: ModelServer) -> None:
    gone = f"{server.host}/loras/gone.safetensors"
    cut = server.show("/loras/cut.safetensors", safetensors()[:-1])
    page = server.show("/loras/page.safetensors", b"<html>log in</html>")
    wrong = {
        "gone": (gone, "wan.lora_unavailable: a LoRA cannot be had: loras[0]: ", "404"),
        "cut": (cut, "wan.lora_corrupt: ", "has lost its end"),
        "page": (page, "wan.lora_unavailable: ", "page"),
        "named": ("nobody-has-this", "wan.lora_unavailable: `loras[0]`: there is no nobody-has-this.safetensors", ""),
    }
    tasks = {
        name: worker.insert("t2v", {"prompt": name, "loras": [lora], **SMALL}) for name, (lora, _, _) in wrong.items()
    }
    for name, (_, begins, says) in wrong.items():
        row = worker.ended(tasks[name])
        assert row["status"] == "Failed" and row["attempts"] == 1
        assert row["error_message"].startswith(begins) and says in row["error_message"]
        assert told(worker, name) == []


def test_a_lora_of_the_operator_is_found_by_its_name(worker: Worker) -> None:
    place = worker.data_dir / "models" / "loras" / "wan" / "mine.safetensors"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(safetensors(fill=b"\x05"))
    row = run(worker, "mine", activated_loras=["mine"])
    assert row["status"] == "Complete", row["error_message"]
    assert told(worker, "mine")[0]["activated_loras"] == [str(place)]


def test_weights_that_the_engine_lacks_are_fetched_while_it_waits(worker: Worker, server: ModelServer) -> None:
    """And before the next load of that model, where they were removed meanwhile."""
    url = f"/{SHARED}".replace("/pose", "/resolve/main/pose")
    missing = run(worker, "@missing without", "hunyuan")
    assert missing["status"] == "Failed", missing
    assert missing["error_message"].startswith("wan.missing_weights: ")
    assert "dw-ll_ucoco_384.onnx" in missing["error_message"] and "404" in missing["error_message"]
    server.show(url, b"weights", linked=True)
    row = run(worker, "@missing with", "hunyuan")
    assert row["status"] == "Complete", row["error_message"]
    kept = worker.data_dir / "models" / "weights" / SHARED
    assert kept.read_bytes() == b"weights"
    assert run(worker, "another model")["status"] == "Complete"
    kept.unlink()
    server.requests.clear()
    assert run(worker, "no word of it", "hunyuan")["status"] == "Complete"
    assert kept.read_bytes() == b"weights" and bodies(server, url) == 1
