"""Couriers as real processes that share one place for the files of models."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.model_server import safetensors
from tests.test_courier import Courier, start, until
from wan2gp.model_places import place_of
from wan2gp.protocol import Cancel, Event, Fetch, Fetched, Progress, Source

if TYPE_CHECKING:
    from tests.model_server import ModelServer

__all__ = ["start"]
Start = Callable[..., Courier]


def shared(start: Start, models: Path) -> Courier:
    limits = {"weights_bytes": 2**30, "loras_bytes": 2**30, "lora_max_bytes": 2**20}
    return start(models_dir=str(models), cache_bytes=2**20, **limits)


def ask(courier: Courier, task: str, url: str, kind: str = "lora") -> None:
    courier.send(Fetch(task, "l1", {"x": Source(url, kind)}, ""))


def part_bytes(models: Path) -> int:
    return sum(part.stat().st_size for part in models.glob("*/.store/*.part"))


def test_a_courier_that_is_killed_leaves_what_the_next_one_goes_on_with(
    start: Start, hub: ModelServer, tmp_path: Path
) -> None:
    hold, body = threading.Event(), safetensors(50_000)
    url = hub.show("/a.safetensors", body, hold=hold)
    first = shared(start, tmp_path)
    ask(first, "t1", url)
    until(lambda: part_bytes(tmp_path) > 50_000, "half of it is there")
    first.process.kill()
    first.process.wait()
    hold.set()
    second = shared(start, tmp_path)
    ask(second, "t1", url)
    answer = second.until(Fetched, "t1")
    assert answer.failure is None and Path(answer.files["x"]).read_bytes() == body
    asked = hub.ranges()[-1]
    assert asked is not None and int(asked[6:-1]) > 50_000


def test_two_couriers_fetch_one_file_once(start: Start, hub: ModelServer, tmp_path: Path) -> None:
    hold, body = threading.Event(), safetensors(50_000)
    url = hub.show("/a.safetensors", body, hold=hold)
    couriers = [shared(start, tmp_path), shared(start, tmp_path)]
    ask(couriers[0], "t1", url)
    assert hub.half_sent.wait(30)
    ask(couriers[1], "t2", url)
    assert couriers[1].until(Progress, "t2").phase == "download"  # it tells how far the other one is
    hold.set()
    answers = [couriers[0].until(Fetched, "t1"), couriers[1].until(Fetched, "t2")]
    assert answers[0].files == answers[1].files == {"x": str(tmp_path / "loras" / place_of("lora", url))}
    assert len(hub.requests) == 1
    names = [event.name for event in couriers[1].seen if isinstance(event, Event)]
    assert names == ["input.downloading", "input.kept"]


def test_a_cancelled_task_leaves_the_download_to_the_one_that_waits(
    start: Start, hub: ModelServer, tmp_path: Path
) -> None:
    hold, body = threading.Event(), safetensors(50_000)
    url = hub.show("/a.safetensors", body, hold=hold)
    courier = shared(start, tmp_path)
    ask(courier, "t1", url)
    assert hub.half_sent.wait(30)
    ask(courier, "t2", url)
    courier.send(Cancel("t1", "l1"))
    hold.set()
    answer = courier.until(Fetched, "t2")
    assert answer.failure is None and Path(answer.files["x"]).read_bytes() == body


def test_what_is_no_plain_url_costs_only_its_own_task(start: Start, hub: ModelServer, tmp_path: Path) -> None:
    courier = shared(start, tmp_path)
    for number, url in enumerate(["http://[::1", "", "file:///etc/passwd", "http://127.0.0.1:1/a.safetensors"]):
        ask(courier, f"bad{number}", url)
        assert courier.until(Fetched, f"bad{number}").failure is not None
    ask(courier, "good", hub.show("/a.safetensors", safetensors()))
    assert courier.until(Fetched, "good").failure is None
