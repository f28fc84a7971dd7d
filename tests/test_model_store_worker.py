"""LoRAs and weights through a real worker: the courier keeps them, the engine's stand-in is given them."""

from __future__ import annotations

import json
import os
import shutil
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
BIG, SMALLER, GONE = (
    f"/DeepBeepMeep/X/resolve/main/{name}"
    for name in ("x_bf16.safetensors", "x_quanto_bf16_int8.safetensors", "gone.pth")
)
Row = dict[str, Any]


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    started = ModelServer()
    yield started
    started.close()


def checkout(place: Path, host: str) -> Path:
    """The stand-in, with a model more, whose weights are on that host."""
    shutil.copytree(WAN_ROOT, place)
    definition = json.loads((place / "defaults" / "hunyuan.json").read_text())
    definition["model"]["URLs"] = [f"{host}{BIG}", f"{host}{SMALLER}"]
    definition["model"]["preload_URLs"] = [f"{host}{GONE}"]
    (place / "defaults" / "from_the_hub.json").write_text(json.dumps(definition))
    definition["model"] |= {"URLs": [f"{host}/Stranger/x/resolve/main/x.pth"], "preload_URLs": []}
    (place / "defaults" / "of_a_stranger.json").write_text(json.dumps(definition))
    return place


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer, server: ModelServer) -> Iterator[Worker]:
    path = tmp_path_factory.mktemp("store")
    environ = {
        "WAN2GP_PATH": str(checkout(path / "Wan2GP", server.host)),
        "WAN2GP_PYTHON": sys.executable,
        "WAN2GP_ALLOW_PRIVATE_URLS": "1",
        "WAN2GP_MODEL_SOURCES": f"{server.host}/DeepBeepMeep",
        "HF_ENDPOINT": server.host,
    }
    with shared_worker(path, _pg_session, **environ) as running:
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


def test_a_lora_that_has_rotted_on_the_disk_is_fetched_again_and_the_task_goes_on(
    worker: Worker, server: ModelServer
) -> None:
    url = server.show("/loras/rots.safetensors", safetensors())
    run(worker, "sound", loras=[url])
    (path,) = map(Path, told(worker, "sound")[0]["activated_loras"])
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    row = run(worker, "rotten", loras=[url])
    assert row["status"] == "Complete", row["error_message"]
    assert "damaged" in str(row["result_data"]["warnings"]) and path.read_bytes() == safetensors()
    strange = server.show("/loras/strange.safetensors", safetensors(fill=b"\xff"))  # whole, and no good
    failed = run(worker, "strange", loras=[strange])
    assert failed["error_message"].startswith("wan.failed: ") and "deserializing" in failed["error_message"]
    assert bodies(server, "/loras/strange.safetensors") == 1


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


def test_weights_are_fetched_before_a_task_needs_them_where_the_operator_asks(
    worker: Worker, server: ModelServer
) -> None:
    server.show(BIG, safetensors())
    server.show(SMALLER, safetensors())
    done = worker.ctl("models", "fetch", "from_the_hub", "--json")
    files = {file["file"]: file for file in json.loads(done.stdout)["files"]}
    kept, gone = (place.replace("/resolve/main", "").lstrip("/") for place in (SMALLER, GONE))
    assert {name: file["state"] for name, file in files.items()} == {kept: "kept", gone: "failed"}
    assert "404" in files[gone]["error"] and done.returncode == 1 and "1 of 2" in done.stderr
    server.show(GONE, b"found")
    again = worker.ctl("models", "fetch", "from_the_hub")
    assert again.returncode == 0 and f"{kept}  kept" in again.stdout and f"{gone}  kept" in again.stdout
    assert (bodies(server, BIG), bodies(server, SMALLER)) == (0, 1)
    row = run(worker, "with them", "hunyuan", model="from_the_hub")
    assert row["status"] == "Complete", row["error_message"]
    assert bodies(server, SMALLER) == 1


def test_a_model_that_is_none_and_weights_of_others_are_said(worker: Worker) -> None:
    unknown = worker.ctl("models", "fetch", "no_such_model")
    assert unknown.returncode == 1 and "there is no model no_such_model" in unknown.stderr
    foreign = worker.ctl("models", "fetch", "of_a_stranger")
    assert foreign.returncode == 1 and "wan.model_sources" in foreign.stdout
