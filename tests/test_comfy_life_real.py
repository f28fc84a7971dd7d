"""A server's life on a real ComfyUI, on the CPU: where COMFY_PATH names one."""

from __future__ import annotations

import json
import os
import shlex
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from PIL import Image

from tests.comfy_jobs import Bench, gone, picture, until
from tests.conftest_comfy import free_port
from wan2gp.protocol import Succeeded

PATH = os.environ.get("COMFY_PATH", "")
ARGS = os.environ.get("COMFY_ARGS", "--cpu")
pytestmark = [
    pytest.mark.real_comfy,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (Path(PATH) / "main.py").is_file(), reason="COMFY_PATH names no ComfyUI"),
]
Make = Callable[..., Bench]
TASKS = ("11111111-2222-3333-4444-555555555555", "66666666-7777-8888-9999-000000000000")
ROUNDS = 5


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Handlers on the one checkout; each has its own home, as each worker's handler has."""
    made: list[Bench] = []

    def one(port: int, args: str = "", **settings: Any) -> Bench:
        given = {"path": PATH, "port": port, "python": os.environ.get("COMFY_PYTHON", ""), "args": f"{ARGS} {args}"}
        made.append(Bench(tmp_path_factory.mktemp("real") / "bench", {**given, **settings}))
        return made[-1]

    yield one
    for bench in made:
        bench.handler.close()
    for bench in made:
        assert all(gone(int(fields["pid"])) for name, fields in bench.facts if name == "comfy.started")


@pytest.fixture(scope="module")
def first(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    warm = tmp_path_factory.mktemp("warm") / "warm.json"
    warm.write_text(json.dumps(picture("models", 0xFF)))
    one = make(free_port(), warmup_workflow=str(warm))
    one.handler.warm()
    return one


@pytest.fixture(scope="module")
def second(make: Make, first: Bench) -> Bench:
    """On the port that the first one's ComfyUI has, with the same checkout."""
    one = make(port_of(first))
    one.handler.warm()
    return one


def port_of(one: Bench) -> int:
    return next(int(detail["port"]) for state, detail in reversed(one.states) if state == "ready")


def test_a_real_server_is_warmed_up_and_keeps_nothing_of_it(first: Bench) -> None:
    assert "comfy.warmed_up" in first.names()
    assert not list(first.engine.rglob("*.png"))
    assert requests.get(f"http://127.0.0.1:{port_of(first)}/history", timeout=10).json() == {}


def test_a_real_result_records_its_versions(first: Bench) -> None:
    engine = first.succeeds({"workflow": picture()}).engine
    assert engine["name"] == "comfyui" and engine["version"].count(".") == 2
    assert engine["torch"] and engine["python"].startswith("3.") and engine["device"] == "cpu"
    if (Path(PATH) / "custom_nodes" / "ComfyUI-VideoHelperSuite").is_dir():
        assert engine["vhs"].count(".") == 2


def test_another_comfyui_on_the_port_is_untouched(first: Bench, second: Bench) -> None:
    assert port_of(second) != port_of(first)
    before = requests.get(f"http://127.0.0.1:{port_of(first)}/history", timeout=10).json()
    second.succeeds({"workflow": picture()})
    assert requests.get(f"http://127.0.0.1:{port_of(first)}/history", timeout=10).json() == before


def test_two_workers_on_one_checkout_mix_nothing(first: Bench, second: Bench) -> None:
    """The same prefix and the same time; what differs is the colour."""
    colors = (0xFF0000, 0x0000FF)
    seen: list[list[Any]] = [[], []]

    def work(index: int) -> None:
        bench = (first, second)[index]
        for _ in range(ROUNDS):
            outcome = bench.handler.run(bench.job({"workflow": picture("same", colors[index])}, TASKS[index]))
            assert isinstance(outcome, Succeeded)
            with Image.open(bench.work_dir / outcome.artifacts[0].path) as image:
                seen[index].append(image.convert("RGB").getpixel((4, 4)))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[(255, 0, 0)] * ROUNDS, [(0, 0, 255)] * ROUNDS]
    assert first.left_behind() == second.left_behind() == []
    words = [psutil.Process(one.server_pid()).cmdline() for one in (first, second)]
    own = [word for word in words[0] if str(first.engine) in word]
    assert len(own) == 5 and not set(own) & set(words[1])  # input, output, temp, user, database


def test_a_freed_server_gives_its_cache_back(first: Bench) -> None:
    """Real ComfyUI keeps the last graph's images until the next one, or until it is asked."""
    graph = picture("large")
    graph["1"]["inputs"] |= {"width": 2048, "height": 2048, "batch_size": 6, "color": 7}
    graph["3"] = {"class_type": "ImageFromBatch", "inputs": {"image": ["1", 0], "batch_index": 0, "length": 1}}
    graph["2"]["inputs"]["images"] = ["3", 0]
    first.succeeds({"workflow": graph})
    process = psutil.Process(first.server_pid())
    full = process.memory_info().rss
    first.handler.unload()
    until(lambda: full - process.memory_info().rss > 200 * 2**20)


def test_a_custom_node_that_does_not_import_is_named_in_status_and_in_the_error(make: Make, tmp_path: Path) -> None:
    nodes = tmp_path / "custom_nodes" / "broken-nodes"
    nodes.mkdir(parents=True)
    (nodes / "__init__.py").write_text("import a_module_that_nobody_has\n")
    one = make(free_port(), f"--base-directory {shlex.quote(str(tmp_path))}")
    one.handler.warm()
    (words,) = one.states[-1][1]["custom_nodes_failed"]
    assert words.startswith("broken-nodes (No module named 'a_module_that_nobody_has'")
    failure = one.fails({"workflow": {"1": {"class_type": "FaceSwap", "inputs": {}}}})
    assert "FaceSwap" in failure.message and "broken-nodes" in failure.message
