"""A worker without what generation needs: it says what is missing, leaves such rows, and does the rest."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest_worker import Worker, eventually
from wan2gp.config import Config, load_config
from wan2gp.supervisor.inability import Inability
from wan2gp.supervisor.registry import HandlerSpec, unable_of, wan_spec
from wan2gp.wan_types import TYPES

WAN_ROOT = Path(__file__).parent / "wan_root"
SMALL = {"prompt": "a cat", "resolution": "64x64", "video_length": 17}
HUB = "https://huggingface.co/DeepBeepMeep/X/resolve/main"
WANTED = ("a_mbf16.safetensors", "a_quanto_mbf16_int8.safetensors")
Row = dict[str, Any]


def checkout(place: Path) -> Path:
    """A stand-in of one's own."""
    return Path(shutil.copytree(WAN_ROOT, place))


def with_weights(root: Path, model: str, *names: str) -> Path:
    """Its definition of that model names weights, of which one is needed."""
    path = root / "defaults" / f"{model}.json"
    definition = json.loads(path.read_text())
    definition["model"]["URLs"] = [f"{HUB}/{name}" for name in names]
    path.write_text(json.dumps(definition))
    return root


def unable(tmp_path: Path, root: Path | str, **more: str) -> tuple[str | None, Row]:
    environ = {"WAN2GP_PATH": str(root), "COMFY_PATH": "builtin", **more}
    config = load_config(flags={"data_dir": tmp_path}, environ=environ)
    reason, types = unable_of(wan_spec(config), config)
    return reason, dict(types)


# --- what is said ----------------------------------------------------------------------------------------------------


def test_a_whole_wan2gp_serves_every_type(tmp_path: Path) -> None:
    assert unable(tmp_path, WAN_ROOT, WAN2GP_PYTHON=sys.executable) == (None, {})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, ("there is no such directory", "WAN2GP_PATH")),
        (lambda root: (root / "wgp.py").unlink(), ("it holds no wgp.py", "WAN2GP_PATH")),
        (lambda root: (root / "shared" / "api.py").write_text("# of last year"), ("too old", "update it")),
        (lambda root: (root / "shared" / "api.py").unlink(), ("too old", "update it")),
    ],
)
def test_what_is_no_wan2gp_is_named_with_its_place(
    spoil: Callable[[Path], object], words: tuple[str, ...], tmp_path: Path
) -> None:
    root = checkout(tmp_path / "root")
    spoil(root)
    reason, types = unable(tmp_path, root)
    assert reason is not None and not types
    assert all(word in reason for word in (*words, str(root)))


def test_an_unset_path_is_said_to_be_unset(tmp_path: Path) -> None:
    reason, types = unable(tmp_path, "")
    assert (reason, types) == ("no Wan2GP on this worker: set WAN2GP_PATH to its checkout", {})


def test_an_interpreter_that_is_none_is_named(tmp_path: Path) -> None:
    reason, _ = unable(tmp_path, WAN_ROOT, WAN2GP_PYTHON=str(tmp_path / "python"))
    assert reason is not None and str(tmp_path / "python") in reason and "WAN2GP_PYTHON" in reason


def test_a_model_without_weights_stops_its_types_alone(tmp_path: Path) -> None:
    root = with_weights(checkout(tmp_path / "root"), "t2v", *WANTED)
    reason, types = unable(tmp_path, root, WAN2GP_DOWNLOAD="0")
    assert reason is None and set(types) == {"t2v", "generate_video"}
    assert types["t2v"] == (
        "the weights of its model t2v are not on this machine (wan.download=false): put "
        f"a_quanto_mbf16_int8.safetensors into {root}/ckpts, or let the worker fetch them (wan.download=true)"
    )
    assert unable(tmp_path, root) == (None, {})  # they are fetched at the first use


@pytest.mark.parametrize("place", ["root/ckpts", "elsewhere", "models/weights/DeepBeepMeep/X"])
@pytest.mark.parametrize("name", WANTED)
def test_weights_count_wherever_the_engine_finds_them_and_in_any_precision(
    name: str, place: str, tmp_path: Path
) -> None:
    root = with_weights(checkout(tmp_path / "root"), "t2v", *WANTED)
    (root / "wgp_config.json").write_text(json.dumps({"checkpoints_paths": ["ckpts", str(tmp_path / "elsewhere")]}))
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / name).write_bytes(b"weights")
    assert unable(tmp_path, root, WAN2GP_DOWNLOAD="0") == (None, {})


def test_a_model_that_the_engine_does_not_know_is_left_for_the_engine_to_refuse(tmp_path: Path) -> None:
    root = checkout(tmp_path / "root")
    (root / "defaults" / "z_image_img2img.json").unlink()
    (root / "defaults" / "hunyuan.json").write_text("{")
    assert unable(tmp_path, root, WAN2GP_DOWNLOAD="0") == (None, {})


def test_no_weights_at_all_are_one_sentence_and_not_one_for_each_type(tmp_path: Path) -> None:
    root = checkout(tmp_path / "root")
    for model in {row.model for row in TYPES.values()}:
        with_weights(root, model, *WANTED)
    reason, types = unable(tmp_path, root, WAN2GP_DOWNLOAD="0")
    assert reason is not None and reason.startswith("none of its types can be served: the weights of") and not types


# --- what a worker does ----------------------------------------------------------------------------------------------


def test_a_disk_that_does_not_answer_holds_up_neither_the_worker_nor_other_handlers(tmp_path: Path) -> None:
    answers, looks = threading.Event(), [0]

    def hangs(config: Config) -> None:
        looks[0] += 1
        answers.wait(20)

    config = load_config(flags={"data_dir": tmp_path}, environ={"COMFY_PATH": "builtin"})
    specs = {
        "hung": HandlerSpec("hung", "a:B", ("hung",), unable=hangs),
        "gone": HandlerSpec("gone", "a:B", ("gone",), unable=lambda config: "it is not here"),
        "some": HandlerSpec(
            "some", "a:B", ("x", "y"), unable_types=lambda config: {"y": "no y", "gone": "not its own"}
        ),
        "all": HandlerSpec("all", "a:B", ("all",)),
    }
    found = Inability(specs, config)
    assert not found.look(0.01) and not found.look(0.01)
    assert set(found.handlers) == {"hung", "gone"} and "do not answer" in found.handlers["hung"]
    assert found.types == {"y": "no y"} and looks == [1]  # no thread more for each look
    answers.set()
    eventually("it answers", lambda: found.look(0.01))
    assert found.handlers == {"gone": "it is not here"}


def waits(worker: Worker, task: str) -> Row:
    """The row, which nobody has claimed."""
    row = worker.row(task)
    assert (row["status"], row["attempts"]) == ("Queued", 0), row
    assert [event["name"] for event in worker.events(task)] == ["queued"]
    return row


def unclaimable(worker: Worker) -> dict[str, str]:
    return {item["task_type"]: item["reason"] for item in worker.status()["worker"]["unclaimable"]}


def test_rows_whose_weights_are_missing_wait_and_all_others_are_done(
    start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    root = with_weights(checkout(tmp_path / "root"), "t2v", *WANTED)
    environ = {"WAN2GP_PATH": str(root), "WAN2GP_PYTHON": sys.executable, "WAN2GP_DOWNLOAD": "0"}
    worker = start_worker(environ=environ)
    lacking = worker.insert("t2v", SMALL)
    others = [worker.insert("ltxv", SMALL), worker.insert("noop")]
    assert [worker.ended(task)["status"] for task in others] == ["Complete", "Complete"]
    waits(worker, lacking)
    assert WANTED[1] in unclaimable(worker)["t2v"]
    shown = worker.ctl("status").stdout
    assert "not served here" in shown and f"put {WANTED[1]} into {root}/ckpts" in shown
    assert "generation by WanGP (https://github.com/deepbeepmeep/Wan2GP)" in shown


@pytest.mark.long
def test_rows_that_waited_are_served_once_the_missing_is_there(
    start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    environ = {"WAN2GP_PATH": str(root), "WAN2GP_PYTHON": sys.executable, "WAN2GP_DOWNLOAD": "0"}
    worker = start_worker(environ=environ)
    task = worker.insert("t2v", SMALL)
    assert worker.ended(worker.insert("noop"))["status"] == "Complete"
    waits(worker, task)
    assert "there is no such directory" in unclaimable(worker)["t2v"]
    assert "generation by WanGP" not in worker.ctl("status").stdout
    with_weights(checkout(tmp_path / "new"), "t2v", *WANTED).rename(root)
    eventually("the types of other models are served", lambda: "put a_quanto" in unclaimable(worker)["t2v"])
    waits(worker, task)
    (root / "ckpts").mkdir()
    (root / "ckpts" / WANTED[0]).write_bytes(b"weights")
    (root / "ckpts" / WANTED[1]).write_bytes(b"weights")
    assert worker.ended(task)["status"] == "Complete"


def test_an_engine_without_cuda_costs_no_attempt_and_is_named(
    start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    root = checkout(tmp_path / "root")
    program = (root / "wgp.py").read_text()
    mark = "ROOT = os.getcwd()\n"
    assert mark in program
    (root / "wgp.py").write_text(program.replace(mark, f'{mark}fail_to_import("no_cuda")\n'))
    worker = start_worker(environ={"WAN2GP_PATH": str(root), "WAN2GP_PYTHON": sys.executable})
    task = worker.insert("t2v", SMALL)
    row = eventually(
        "the row says why it waits", lambda: worker.row(task) if worker.row(task)["error_message"] else None
    )
    assert row["status"] == "Queued" and row["attempts"] == 0
    assert row["error_message"].startswith("wan.no_cuda: ") and "look at the driver" in row["error_message"]
    assert worker.ended(worker.insert("noop"))["status"] == "Complete"
    later = worker.insert("t2v_22", SMALL)
    handler = eventually("the handler pauses", lambda: paused(worker))
    assert "Torch not compiled with CUDA" in handler["last_cause"]
    waits(worker, later)


def paused(worker: Worker) -> Row | None:
    handler = worker.handler("wan")
    return handler if handler["state"] in ("backoff", "broken") else None
