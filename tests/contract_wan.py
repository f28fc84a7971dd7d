"""What any engine must do that is driven by :class:`WanEngine`, without weights: the stand-in, and a real Wan2GP where
``WAN2GP_PATH`` names one. A machine without CUDA has its own part of the contract: a real engine says so, in time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import psutil
import pytest
from PIL import Image

from wan2gp.handlers.wan_models import facts_of
from wan2gp.wan_sidecar.engine import WanEngine
from wan2gp.wan_sidecar.errors import Unavailable, UnknownModel, Why
from wan2gp.wan_sidecar.verdict import Outcome, Verdict
from wan2gp.wan_sidecar.work import EngineAbout, EngineJob, Event, Loaded, Loading, Step, Want
from wan2gp.wan_types import TYPES

STAND_IN = Path(__file__).parent / "wan_root"
NEW_MODELS = {"z_image_img2img"}
"""Models of types that an engine may lack: their rows are refused with a sentence."""


def never() -> bool:
    return False


@dataclass
class Driven:
    """An engine, and all that it said."""

    engine: WanEngine
    place: Path
    wants: list[Want] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    jobs: int = 0

    def ensure(self) -> EngineAbout:
        return self.engine.ensure(lambda line: None, never)

    def run(self, prompt: str = "a boat", **settings: Any) -> Verdict:
        """One job, in a directory of its own, small unless the settings say otherwise."""
        self.ensure()
        self.events.clear()
        return self.engine.run(self.job(prompt, **settings), self.events.append, never)

    def job(self, prompt: str = "a boat", **settings: Any) -> EngineJob:
        self.jobs += 1
        small = {"model_type": "t2v", "resolution": "64x64", "video_length": 5, "seed": 1, "num_inference_steps": 2}
        given = {**small, "multi_prompts_gen_type": "FG", "prompt": prompt, **settings}
        return EngineJob(given, self.output, self.place / "preview.jpg")

    @property
    def output(self) -> Path:
        return self.place / f"out-{self.jobs}"

    @property
    def root(self) -> Path:
        return self.place / "home" / "root"

    def noted(self, event: str) -> list[dict[str, Any]]:
        """What the stand-in has written down."""
        path = self.place / "home" / "stand-in.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [note for line in lines if (note := json.loads(line))["event"] == event]


@contextlib.contextmanager
def driven(checkout: Path, place: Path, python: str = "", **options: Any) -> Iterator[Driven]:
    """An engine that is surely ended, with all below it."""
    wants: list[Want] = []

    def supply(want: Want) -> Path | str:
        wants.append(want)
        return "there is no download in this test"

    environ = {**os.environ, **options.pop("environ", {})}
    log = os.open(place / "engine.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    engine = WanEngine(
        checkout, python, place / "home", **{"supply": supply, "environ": environ, "log_fd": log, **options}
    )
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    try:
        yield Driven(engine, place, wants)
    finally:
        engine.stop()
        os.close(log)
        left = {child.pid for child in psutil.Process().children(recursive=True)} - before
        assert left == set()


def files_of(checkout: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for folder, _, files in os.walk(checkout):
        for name in files:
            status = os.lstat(path := os.path.join(folder, name))
            found[path] = (status.st_size, status.st_mtime_ns)
    return found


def video(path: Path, frames: int, size: int = 64) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for number in range(frames):
            picture = Image.new("RGB", (size, size), (number * 20, 0, 0))
            output.mux(stream.encode(av.VideoFrame.from_image(picture)))
        output.mux(stream.encode(None))
    return path


def frames_of(path: Path) -> int:
    with av.open(str(path)) as media:
        return sum(1 for _ in media.decode(video=0))


class Contract:
    """Subclasses give the fixture ``started``: one engine for all of them, as one start of a real one is slow."""

    def test_it_is_ready_or_says_what_it_lacks(self, started: Driven | Unavailable) -> None:
        if isinstance(started, Unavailable):
            assert started.why in (Why.NO_CUDA, Why.IMPORT) and str(started) and started.tail
            return
        about = started.engine.about
        assert about is not None and about.version and about.pid == started.engine.pid
        assert started.engine.unload() and started.engine.loaded is None, "a name of a model is no model in memory"

    def test_it_lists_the_models_of_all_types_and_their_definitions_can_be_read(self, engine: Driven) -> None:
        names = engine.engine.models()
        for model in {row.model for row in TYPES.values()} - NEW_MODELS:
            assert model in names
            facts = facts_of(model, engine.engine.model_def(model))
            assert facts.architecture and facts.block > 1
            assert engine.engine.availability(model) in ("available", "partial", "missing")

    def test_a_model_that_it_does_not_have_is_said_to_be_unknown(self, engine: Driven) -> None:
        for ask in (engine.engine.model_def, engine.engine.availability):
            with pytest.raises(UnknownModel, match="no_such_model"):
                ask("no_such_model")
        found = engine.run(model_type="no_such_model")
        assert found.outcome is Outcome.UNKNOWN_MODEL and "no_such_model" in found.sentence and not found.fresh

    def test_a_model_of_ours_is_listed_beside_its_own(self, engine: Driven) -> None:
        assert "t2v__plain" in engine.engine.models()
        assert engine.engine.model_def("t2v__plain")["architecture"] == "t2v"

    def test_settings_that_it_refuses_are_refused_with_its_own_words(self, engine: Driven) -> None:
        assert engine.run(prompt="").outcome is Outcome.VALIDATION
        submitted = engine.run(video_length="abcs")
        assert submitted.outcome is Outcome.VALIDATION and "seconds" in submitted.sentence
        gone = engine.run(activated_loras=["/nowhere/lora.safetensors"])
        assert gone.outcome is Outcome.VALIDATION and "lora.safetensors" in gone.sentence

    def test_a_size_that_is_none_and_a_file_that_is_not_there_fail_that_job_alone(self, engine: Driven) -> None:
        pid = engine.engine.pid
        for settings in ({"resolution": "64*64"}, {"model_type": "i2v", "image_start": "/nowhere/picture.png"}):
            found = engine.run(**settings)
            assert found.outcome in (Outcome.FAILED, Outcome.VALIDATION) and found.sentence and not found.files
        assert engine.engine.pid == pid

    def test_a_missing_file_is_asked_for_and_named(self, engine: Driven) -> None:
        assert engine.engine.unload()
        engine.wants.clear()
        found = engine.run("@missing")
        assert found.outcome is Outcome.MISSING_WEIGHTS and not found.fresh
        want = engine.wants[0]
        assert f"{want.repo}/{want.file}" in found.sentence and "no download in this test" in found.sentence
        assert want.url.startswith("https://huggingface.co/DeepBeepMeep/") and want.place.is_absolute()
        assert engine.place in want.place.parents, "the engine would write outside of its own place"

    def test_a_result_is_worked_on_without_a_model_and_left_as_it_is(self, engine: Driven) -> None:
        source = video(engine.place / "raw.mp4", 5)
        before = source.read_bytes()
        output = engine.place / "post"
        found = engine.engine.postprocess(source, {"spatial_upsampling": "lanczos2"}, output, lambda event: None, never)
        if shutil.which("ffprobe") is None and found.outcome is not Outcome.OK:
            assert "ffprobe" in found.sentence  # a real engine needs the program, and names it
            return
        assert found.outcome is Outcome.OK, found
        assert [path.parent for path in found.files] == [output] and frames_of(found.files[0]) == 5
        assert source.read_bytes() == before
        refused = engine.engine.postprocess(source, {"temporal_upsampling": "rife3"}, output, lambda event: None, never)
        assert refused.outcome is Outcome.VALIDATION and source.exists()

    def test_releasing_a_model_that_is_not_there_is_no_error(self, engine: Driven) -> None:
        assert engine.engine.unload() and engine.engine.loaded is None

    def test_it_writes_nothing_into_its_checkout(self, started: Driven | Unavailable, before: dict[str, Any]) -> None:
        assert files_of(self.checkout()) == before

    def checkout(self) -> Path:
        raise NotImplementedError

    @pytest.fixture
    def engine(self, started: Driven | Unavailable) -> Driven:
        if isinstance(started, Unavailable):
            pytest.skip(f"the engine does not start here: {started}")
        started.ensure()
        return started


class Jobs:
    """What any engine must do with a model that takes some time to load and to sample, and fails by words of its
    prompt. Beside the contract: it needs a model, or one in its place."""

    MODEL = "t2v"

    def job(self, engine: Driven, prompt: str, steps: int = 4) -> Verdict:
        model = {"model_type": self.MODEL, "resolution": "128x96", "num_inference_steps": steps}
        return engine.run(f"{prompt} @steps={steps}", **model)

    def cancelled(self, engine: Driven, kind: type[Event]) -> Verdict:
        """When it has said something of that kind, with a number of a step if it is one."""

        def asked() -> bool:
            said = [event for event in engine.events if isinstance(event, kind)]
            return any(not isinstance(event, Step) or event.step for event in said)

        engine.ensure()
        engine.events.clear()
        more = {"model_type": self.MODEL, "resolution": "128x96", "num_inference_steps": 200}
        job = engine.job("@steps=200 @step_s=0.05 @load_s=0.3", **more)
        return engine.engine.run(job, engine.events.append, asked)

    def test_a_task_makes_its_file_with_steps_and_previews_and_a_warm_one_loads_nothing(self, engine: Driven) -> None:
        for warm in (False, True):
            found = self.job(engine, "a boat")
            assert found.outcome is Outcome.OK and frames_of(found.files[0]) == 5, found
            assert [path.parent for path in found.files] == [engine.output]
            loads = [type(event) for event in engine.events if isinstance(event, (Loading, Loaded))]
            assert loads == ([] if warm else [Loading, Loaded]) and engine.engine.loaded == self.MODEL
            steps = [event for event in engine.events if isinstance(event, Step) and event.steps]
            assert {event.steps for event in steps} == {4} and {1, 2, 3} <= {event.step for event in steps}

    def test_a_cancel_lands_between_two_steps_and_leaves_the_model(self, engine: Driven) -> None:
        assert self.job(engine, "before").outcome is Outcome.OK
        found = self.cancelled(engine, Step)
        assert found.outcome is Outcome.CANCELLED and not found.files and not found.fresh
        assert self.job(engine, "after").outcome is Outcome.OK
        assert not any(isinstance(event, Loading) for event in engine.events)

    def test_a_cancel_in_the_load_comes_after_it_and_leaves_the_model(self, engine: Driven) -> None:
        assert engine.engine.unload() and engine.engine.loaded is None
        found = self.cancelled(engine, Loading)
        assert found.outcome is Outcome.CANCELLED and engine.engine.loaded == self.MODEL
        assert self.job(engine, "after").outcome is Outcome.OK

    @pytest.mark.parametrize("form", ["oom-a", "oom-c"])
    def test_memory_that_is_not_enough_is_told_with_the_bytes(self, engine: Driven, form: str) -> None:
        found = self.job(engine, f"@{form}")
        assert found.outcome is Outcome.OUT_OF_MEMORY and "allocate" in found.sentence and not found.fresh
        assert self.job(engine, "after").outcome is Outcome.OK

    def test_any_other_error_is_told_as_it_is(self, engine: Driven) -> None:
        found = self.job(engine, "@boom")
        assert found.outcome is Outcome.FAILED and found.sentence.endswith("error: 'boom'"), found
        assert self.job(engine, "after").outcome is Outcome.OK
