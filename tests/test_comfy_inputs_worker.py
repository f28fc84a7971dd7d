"""Inputs through whole workers: what is fetched ahead, what is left behind, and what must not be mixed up."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tests.comfy_worker import SERVE, checkout
from tests.conftest_comfy import free_port
from tests.conftest_worker import Worker, eventually
from tests.test_courier_cache import Store

Json = dict[str, Any]
Start = Callable[..., Worker]
PRIVATE = {"WAN2GP_ALLOW_PRIVATE_URLS": "1"}
GRAPHS = 50
JITTER = 8
"""Descriptors more or fewer that a moment may have: a connection that is being closed, a pool that is growing."""
MEMORY_JITTER = 30 * 10**6
"""Bytes that an allocator keeps without a leak; each graph that kept its picture's frames would add as much."""


def pixels(color: tuple[int, int, int]) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(content, "PNG")
    return content.getvalue()


def recoloured(**entry: Any) -> Json:
    """A row whose result is a picture of its input's colour, with a preview beside it."""
    return {
        "workflow": {
            "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "same"}},
            "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        },
        "inputs": [{"node_id": "1", **entry}],
    }


def color_in(row: Json) -> Any:
    assert row["status"] == "Complete", row["error_message"]
    # The row is first: only after it was accepted is the file moved to its place.
    eventually("its file is there", lambda: Path(row["output_location"]).exists())
    with Image.open(row["output_location"]) as image:
        return image.convert("RGB").getpixel((4, 4))


@pytest.fixture
def store() -> Iterator[Store]:
    server = Store()
    yield server
    server.close()


def holdings(worker: Worker) -> dict[str, tuple[int, int]]:
    """(descriptors, resident bytes) of each process of the worker, by its command."""
    found = {}
    for process in (psutil.Process(worker.process.pid), *worker.family()):
        with suppress(psutil.NoSuchProcess):
            name = " ".join(process.cmdline()[1:4])
            if "postgres" not in process.name():
                found[name] = (process.num_fds(), process.memory_info().rss)
    return found


def files(worker: Worker) -> list[Path]:
    """Everything in the engine's input, output and temp directories."""
    engine = worker.data_dir / "handlers" / "comfy" / "engine"
    roots = [engine / name for name in ("input", "output", "temp")]
    assert all(root.is_dir() for root in roots)
    return [path for root in roots for path in root.rglob("*") if not path.is_dir() and not path.name.startswith(".")]


@pytest.mark.long
def test_fifty_graphs_in_a_row_leave_no_file_no_descriptor_and_no_memory(start_worker: Start, store: Store) -> None:
    worker = start_worker(environ={**PRIVATE, "COMFY_PORT": str(free_port()), "WAN2GP_PREFETCH": "1"})
    for number in range(GRAPHS):
        store.put(f"/{number}/same.png", pixels((number, 0, 0)), ETag=f'"{number}"')

    def run(numbers: range) -> None:
        tasks = {worker.insert("comfy", recoloured(url=store.url(f"/{number}/same.png"))): number for number in numbers}
        for task, number in tasks.items():
            assert color_in(worker.ended(task)) == (number, 0, 0)

    run(range(5))
    before = holdings(worker)
    run(range(GRAPHS))
    eventually("the engine's directories are empty", lambda: not files(worker))
    eventually("the task directories are gone", lambda: not list((worker.data_dir / "work").glob("*/*/*")))
    after = holdings(worker)
    assert set(before) == set(after), "the processes are the same"
    for name, (descriptors, memory) in after.items():
        assert descriptors - before[name][0] <= JITTER, (name, before, after)
        assert memory - before[name][1] <= MEMORY_JITTER, (name, before, after)


@pytest.mark.long
def test_two_workers_on_one_checkout_mix_nothing(start_worker: Start, tmp_path: Path) -> None:
    """Same ComfyUI, same wish for a port, the same file names, the same prefix."""
    path = checkout(tmp_path / "ComfyUI", SERVE)
    environ = {"COMFY_PATH": path, "COMFY_PORT": str(free_port())}
    workers = [start_worker(name=name, environ=environ) for name in ("one", "two")]
    colors = [(number * 10, 255 - number * 10, number) for number in range(24)]
    tasks = [
        workers[0].insert("comfy", recoloured(base64=base64.b64encode(pixels(color)).decode())) for color in colors
    ]
    rows = [workers[0].ended(task) for task in tasks]
    assert [color_in(row) for row in rows] == colors
    eventually("the engines' directories are empty", lambda: not any(files(worker) for worker in workers))
    assert {row["worker_id"] for row in rows} <= {"one", "two"}
    assert sorted(each.name for each in Path(path).iterdir()) == ["main.py"], "nothing is written into the checkout"


def test_the_inputs_of_the_next_task_are_fetched_while_this_one_runs(start_worker: Start, store: Store) -> None:
    worker = start_worker(environ={**PRIVATE, "COMFY_PORT": str(free_port()), "WAN2GP_PREFETCH": "1"})
    for name in ("/a.png", "/b.png"):
        store.put(name, pixels((9, 9, 9)))
    first = recoloured(url=store.url("/a.png"))
    assert worker.ended(worker.insert("comfy", first))["status"] == "Complete"
    store.gate.clear()  # the next one waits for its download
    running = worker.insert("comfy", first)
    eventually("its input is asked for", lambda: len(store.asked) == 2)
    waiting = worker.insert("comfy", recoloured(url=store.url("/b.png")))
    eventually("that of the one behind it too", lambda: len(store.asked) == 3)
    store.gate.set()
    for task in (running, waiting):
        assert color_in(worker.ended(task)) == (9, 9, 9)
    assert len(store.asked) == 3, "the handler wants the very same sources: nothing is fetched twice"


def test_a_row_too_large_for_the_wire_fails_alone(start_worker: Start) -> None:
    """It used to end the worker that took it, and then the next one."""
    worker = start_worker()
    large = worker.ended(worker.insert("noop", {"inputs": "x" * 9_000_000}))
    assert large["status"] == "Failed"
    assert large["error_message"].startswith("input.too_large: the task's params are too large")
    assert worker.ended(worker.insert("noop"))["status"] == "Complete"
