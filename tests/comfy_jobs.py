"""A task's run without a supervisor: the handler in this process, its server a real one; what it said is kept."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest

from tests.conftest_comfy import FAULTS, free_port
from wan2gp.handlers.api import HandlerContext, Interrupted, Job
from wan2gp.handlers.classify import classify
from wan2gp.handlers.comfy import ComfyHandler
from wan2gp.protocol import Failed, Outcome, Source, Succeeded

Json = dict[str, Any]
WAIT_S = 20.0
VIDEO_URL = "https://example.com/input.mp4"


def make_video(path: Path, frames: int = 12, size: tuple[int, int] = (64, 48), rate: int = 12) -> Path:
    """A small clip in which every frame differs."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate), options={"preset": "ultrafast"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            pixels = np.full((size[1], size[0], 3), index * 20 % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def spec_row() -> Json:
    """The `params` of the specification's SQL, byte for byte."""
    return {
        "workflow": {
            "1": {
                "inputs": {
                    "video": "input.mp4",
                    "force_rate": 0,
                    "custom_width": 0,
                    "custom_height": 0,
                    "frame_load_cap": 0,
                    "skip_first_frames": 0,
                    "select_every_nth": 1,
                },
                "class_type": "VHS_LoadVideo",
            },
            "2": {
                "inputs": {
                    "images": ["1", 0],
                    "frame_rate": 30,
                    "format": "video/h264-mp4",
                    "save_output": True,
                    "pingpong": False,
                },
                "class_type": "VHS_VideoCombine",
            },
        },
        "video_url": VIDEO_URL,
        "video_node_id": "1",
        "video_input_field": "video",
    }


def picture(prefix: str | None = "pic", color: int = 0) -> Json:
    """The smallest graph that saves a file."""
    save: Json = {"images": ["1", 0]}
    if prefix is not None:
        save["filename_prefix"] = prefix
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": color}},
        "2": {"class_type": "SaveImage", "inputs": save},
    }


def fault(class_type: str, **inputs: Any) -> Json:
    """A graph of one misbehaving node."""
    return {"1": {"class_type": class_type, "inputs": {"nonce": 1, **inputs}}}


@dataclass
class Bench:
    """A handler and everything it said. `facts` are (name, fields), in order, of all its runs."""

    path: Path
    settings: Json
    source: Path | None = None
    facts: list[tuple[str, Json]] = field(default_factory=list)
    states: list[tuple[str, Json]] = field(default_factory=list)
    reports: list[tuple[float | None, str]] = field(default_factory=list)
    fetched: list[Mapping[str, Source]] = field(default_factory=list)
    cancel: threading.Event = field(default_factory=threading.Event)
    runs: int = 0
    heard: Callable[[str, Json], None] | None = None
    obtained: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        home = self.path / "home"
        home.mkdir(parents=True, exist_ok=True)
        self.context = HandlerContext("comfy", home, self.settings, self._fact, self._state)
        self.handler = ComfyHandler(self.context)

    def _fact(self, name: str, /, **fields: Any) -> None:
        self.facts.append((name, fields))
        if self.heard is not None:
            self.heard(name, fields)

    def _state(self, state: str, **detail: Any) -> None:
        self.states.append((state, detail))

    def _obtain(self, sources: Mapping[str, Source]) -> dict[str, Path]:
        self.fetched.append(sources)
        assert self.source is not None
        copies = {}
        for name in sources:
            copies[name] = self.work_dir / f"fetched-{name}{self.source.suffix}"
            shutil.copyfile(self.source, copies[name])
        if self.obtained is not None:
            self.obtained()
            self.obtained = None
        return copies

    def _report(self, fraction: float | None, phase: str, *_: Any) -> None:
        self.reports.append((fraction, phase))

    @property
    def work_dir(self) -> Path:
        return self.path / f"work{self.runs}"

    @property
    def engine(self) -> Path:
        return self.path / "home" / "engine"

    def job(self, params: Any, task_id: str = "11111111-2222-3333-4444-555555555555") -> Job:
        self.runs += 1
        self.work_dir.mkdir()
        lease_id = f"{self.runs:08x}-aaaa-bbbb-cccc-dddddddddddd"
        return Job(
            task_id=task_id,
            task_type="comfy",
            attempt=1,
            lease_id=lease_id,
            params=params,
            place=self.work_dir,
            obtain=self._obtain,
            report=self._report,
            fact=self._fact,
            cancel_flag=self.cancel.is_set,
        )

    def run(self, params: Any) -> Outcome:
        """The outcome, as the runtime would report it."""
        try:
            return self.handler.run(self.job(params))
        except Exception as error:
            return classify(error)

    def graph(self, graph: Any, **more: Any) -> Outcome:
        return self.run({"workflow": graph, **more})

    def succeeds(self, params: Any) -> Succeeded:
        outcome = self.run(params)
        assert isinstance(outcome, Succeeded), outcome
        return outcome

    def fails(self, params: Any) -> Failed:
        outcome = self.run(params)
        assert isinstance(outcome, Failed), outcome
        return outcome

    def names(self) -> list[str]:
        return [name for name, _ in self.facts]

    def server_pid(self) -> int:
        """Of the last server that was started."""
        return next(int(fields["pid"]) for name, fields in reversed(self.facts) if name == "comfy.started")

    def knows_of_the_end(self) -> bool:
        """Its guard has told the handler that the last server is gone."""
        server = self.handler._engine._server
        return gone(self.server_pid()) and (server is None or server.exit_code() is not None)

    def left_behind(self) -> list[str]:
        """Files of any run in the engine's directories."""
        roots = [self.engine / name / "wan2gp" for name in ("input", "output")]
        return [str(path) for root in roots for path in root.rglob("*") if path.is_file()]


def gone(pid: int) -> bool:
    """No such process; a zombie is none. While other threads of a killed one still end, its parent does not see it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
    return True


def until(true: Callable[[], bool]) -> None:
    """Waits for what must come to pass."""
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Makes handlers on the built-in engine with the fault nodes; ends them and their servers."""
    made: list[Bench] = []

    def make(source: Path | None = None, **settings: Any) -> Bench:
        given = {"path": "builtin", "port": free_port(), "args": f"--extra-nodes {FAULTS}", **settings}
        made.append(Bench(tmp_path / f"bench{len(made)}", given, source))
        return made[-1]

    yield make
    for one in made:
        one.handler.close()
    for one in made:
        assert all(gone(int(fields["pid"])) for name, fields in one.facts if name == "comfy.started")


__all__ = ["Bench", "Interrupted", "bench", "fault", "gone", "make_video", "picture", "spec_row", "until"]
