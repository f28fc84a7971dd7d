"""The handler of generations with the engine's stand-in below it: memory, deaths, cancels, starts."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest_worker import eventually
from wan2gp.handlers.api import HandlerContext, Job, TaskFailure
from wan2gp.handlers.media_probe import probe
from wan2gp.handlers.wan import WanHandler
from wan2gp.handlers.wan_collect import Made, collect
from wan2gp.handlers.wan_progress import WanProgress
from wan2gp.handlers.wan_run import AGAIN
from wan2gp.handlers.wan_twins import plain_twins
from wan2gp.protocol import Cancelled, Outcome, Succeeded
from wan2gp.wan_sidecar.verdict import Outcome as End
from wan2gp.wan_sidecar.verdict import Verdict
from wan2gp.wan_sidecar.work import Event, Loaded, Loading, Preview, Step

WAN_ROOT = Path(__file__).parent / "wan_root"
SMALL = {"resolution": "64x64", "video_length": 17}


@dataclass
class Told:
    """All that a handler and its jobs said."""

    facts: list[str] = field(default_factory=list)
    states: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    progress: list[tuple[Any, ...]] = field(default_factory=list)

    def fact(self, name: str, /, **fields: Any) -> None:
        self.facts.append(name)

    def state(self, state: str, **detail: Any) -> None:
        self.states.append((state, detail))

    def report(self, *what: Any) -> None:
        self.progress.append(what)


class Bench:
    """A handler in this process, and tasks for it."""

    def __init__(self, place: Path, **settings: Any) -> None:
        self.place = place
        self.told = Told()
        home = place / "home"
        home.mkdir(parents=True)
        given = {"path": str(WAN_ROOT), "python": sys.executable, "allow_paths": [str(place)], **settings}
        self.handler = WanHandler(HandlerContext("wan", home, given, self.told.fact, self.told.state))
        self.count = 0

    def job(self, task_type: str, params: dict[str, Any], cancelled: Callable[[], bool], task_id: str) -> Job:
        self.count += 1
        self.told.progress.clear()
        place = self.place / "work" / str(self.count)

        def obtain(sources: Any) -> dict[str, Path]:
            raise AssertionError(f"nothing is to be fetched: {sources}")

        return Job(task_id, task_type, 1, "lease", params, place, obtain, self.told.report, self.told.fact, cancelled)

    def run(
        self,
        task_type: str,
        prompt: str = "a cat",
        *,
        cancelled: Callable[[], bool] = lambda: False,
        task_id: str = "task",
        **params: Any,
    ) -> Outcome:
        return self.handler.run(self.job(task_type, {"prompt": prompt, **params}, cancelled, task_id))

    def made(self, task_type: str, prompt: str = "a cat", **params: Any) -> Succeeded:
        outcome = self.run(task_type, prompt, **params)
        assert isinstance(outcome, Succeeded)
        return outcome

    def fails(self, task_type: str, prompt: str = "a cat", **params: Any) -> TaskFailure:
        with pytest.raises(TaskFailure) as caught:
            self.run(task_type, prompt, **params)
        return caught.value

    def noted(self, event: str) -> list[dict[str, Any]]:
        """By the stand-in."""
        path = self.place / "home" / "engine" / "stand-in.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if line["event"] == event]

    @property
    def work(self) -> Path:
        """Of the last task."""
        return self.place / "work" / str(self.count)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Benches of one's own."""
    started: list[Bench] = []

    def make(**settings: Any) -> Bench:
        started.append(Bench(tmp_path / f"bench-{len(started)}", **settings))
        return started[-1]

    yield make
    for one in started:
        one.handler.close()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One for all tests that leave an engine behind that works."""
    one = Bench(tmp_path_factory.mktemp("bench"))
    yield one
    one.handler.close()


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memory_that_another_tasks_model_held_is_given_back_and_the_result_made_again(bench: Bench) -> None:
    bench.made("t2v", **SMALL)
    outcome = bench.made("hunyuan", "@oom-once", **SMALL)
    assert AGAIN in outcome.warnings and "wan.verdict" in bench.told.facts
    assert [line["settings"]["prompt"] for line in bench.noted("task")][-2:] == ["@oom-once", "@oom-once"]


def test_a_fresh_engine_that_runs_out_of_memory_is_not_asked_in_vain(start: Callable[..., Bench]) -> None:
    """The worker itself gives the task another process; what is left after that is a smaller task."""
    bench = start()
    for prompt in ("@oom-b", "@oom-a"):  # in the load, and in sampling
        before = len(bench.noted("task"))
        bench.handler.unload()
        failure = bench.fails("t2v", prompt, **SMALL)
        assert failure.code == "engine.out_of_memory" and "fewer frames" in failure.message
        assert len(bench.noted("task")) == before + 1
    bench.made("t2v", **SMALL)
    assert bench.fails("t2v", "@oom-c", **SMALL).code == "engine.out_of_memory"
    assert len(bench.noted("task")) == 5  # warm: once more, without its model


# --- deaths and cancels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moment", ["step", *(pytest.param(name, marks=pytest.mark.long) for name in ("load", "decode"))]
)
def test_a_death_of_the_engine_is_not_that_of_the_handler(bench: Bench, moment: str) -> None:
    model = "t2v_22" if moment == "load" else "t2v"
    bench.made("t2v", **SMALL)
    failure = bench.fails(model, f"@kill-{moment}", task_id=f"killed in {moment}", **SMALL)
    assert (failure.code, failure.engine_down, failure.recycle) == ("wan.exited", False, None)
    assert bench.told.states[-1][0] == "stopped" and bench.told.states[-1][1]["model"] is None
    bench.made("t2v", **SMALL)
    assert bench.told.states[-1] == ("ready", {**bench.told.states[-1][1], "model": "t2v"})


def test_an_engine_that_the_kernel_kills_twice_under_a_task_lacks_memory(bench: Bench) -> None:
    codes = []
    for task_id in ("heavy", "another", "heavy"):
        failure = bench.fails("t2v", "@kill-step", task_id=task_id, **SMALL)
        codes.append((failure.code, failure.retryable))
    assert codes == [("wan.exited", None), ("wan.exited", None), ("engine.out_of_memory", False)]


def test_an_engine_with_a_broken_cuda_is_replaced_and_the_handler_stays(bench: Bench) -> None:
    bench.made("t2v", **SMALL)
    pid = bench.told.states[-1][1]["pid"]
    failure = bench.fails("t2v", "@cuda-error", **SMALL)
    assert failure.code == "engine.cuda_broken" and failure.recycle is False
    bench.made("t2v", **SMALL)
    assert bench.told.states[-1][1]["pid"] != pid


def test_an_engine_that_dies_while_idle_is_noticed_and_costs_nothing(start: Callable[..., Bench]) -> None:
    bench = start()
    bench.made("t2v", **SMALL)
    os.kill(bench.told.states[-1][1]["pid"], signal.SIGKILL)
    eventually("the death is noticed", lambda: bench.told.states[-1][0] == "stopped")
    bench.made("t2v", **SMALL)


def test_a_cancel_in_the_load_waits_for_the_model_and_keeps_it(bench: Bench) -> None:
    loads = len(bench.noted("load"))
    loading = lambda: any(said[1] == "load" for said in bench.told.progress)  # noqa: E731
    assert bench.run("hunyuan", "@load_s=0.3", cancelled=loading, **SMALL) == Cancelled()
    bench.made("hunyuan", **SMALL)
    assert len(bench.noted("load")) == loads + 1


@pytest.mark.long
def test_an_engine_that_does_not_hear_a_cancel_is_ended(start: Callable[..., Bench]) -> None:
    bench = start(cancel_grace_s=0.2)
    stepping = lambda: any(said[2] for said in bench.told.progress)  # noqa: E731
    assert bench.run("t2v", "@deaf @steps=100 @step_s=0.1", cancelled=stepping, **SMALL) == Cancelled()
    assert bench.told.states[-1][0] == "stopped"
    bench.made("t2v", **SMALL)


# --- starts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("no_cuda", "wan.no_cuda", "Torch not compiled with CUDA"),
        pytest.param("module", "wan.start_failed", "mmgp", marks=pytest.mark.long),
        ("exit", "wan.start_failed", "ended its own process"),
        pytest.param("kill", "wan.start_failed", "signal 9", marks=pytest.mark.long),
    ],
)
def test_an_engine_that_cannot_start_costs_no_task(
    start: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, how: str, code: str, words: str
) -> None:
    monkeypatch.setenv("WAN_ROOT_IMPORT", how)
    bench = start()
    failure = bench.fails("t2v", **SMALL)
    assert (failure.code, failure.engine_down) == (code, True) and words in failure.message
    assert bench.told.states[-1] == ("failed", {"reason": failure.message})
    monkeypatch.delenv("WAN_ROOT_IMPORT")
    bench.made("t2v", **SMALL)  # nothing is latched


def test_without_a_checkout_the_task_goes_back(start: Callable[..., Bench], tmp_path: Path) -> None:
    failure = start(path=str(tmp_path / "nowhere")).fails("t2v", **SMALL)
    assert failure.code == "wan.not_installed" and failure.engine_down


@pytest.mark.long
def test_a_start_that_takes_too_long_is_given_up(start: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAN_ROOT_IMPORT", "silent")
    failure = start(start_timeout_s=0.5).fails("t2v", **SMALL)
    assert failure.code == "wan.start_failed" and "0.5 s" in failure.message


def test_a_model_that_nobody_needs_is_unloaded_and_told_of(start: Callable[..., Bench]) -> None:
    bench = start(idle_unload_s=0.1)
    bench.made("t2v", **SMALL)
    eventually("the model is unloaded", lambda: "wan.unloaded" in bench.told.facts)
    assert bench.told.states[-1][1]["model"] is None
    pid = bench.told.states[-1][1]["pid"]
    bench.made("t2v", **SMALL)
    assert len(bench.noted("load")) == 2 and bench.told.states[-1][1]["pid"] == pid


# --- results ---------------------------------------------------------------------------------------------------------


def test_the_windows_of_a_long_video_are_one_file(bench: Bench) -> None:
    outcome = bench.made("t2v", "@windows", **SMALL)
    assert [artifact.frames for artifact in outcome.artifacts] == [17]


def test_windows_that_an_engine_keeps_are_not_results(tmp_path: Path, bench: Bench) -> None:
    """Some models write one file after each window, whatever the configuration says: the last is the whole."""
    outcome = bench.made("t2v", video_length=17, resolution="64x64", repeat_generation=2)
    folder = bench.work
    files = tuple(folder / artifact.path for artifact in outcome.artifacts)
    job = bench.job("t2v", {}, lambda: False, "other")
    moved = [job.work_dir / f"window-{number}.mp4" for number in (1, 2)]
    for source, target in zip(files, moved, strict=True):
        source.rename(target)
    whole = probe(moved[1])
    kept = collect(job, [Made(tuple(moved), 1, is_film=True)])
    assert len(kept.artifacts) == 1 and kept.primary.frames == whole.frames and moved[0].exists()


def test_all_images_of_a_batch_are_kept(bench: Bench) -> None:
    outcome = bench.made("flux", batch_size=3, resolution="64x64", seed=5)
    assert [(one.kind, one.width, one.primary) for one in outcome.artifacts] == [
        ("image", 64, True),
        ("image", 64, False),
        ("image", 64, False),
    ]


def test_more_frames_come_after_the_result_is_safe(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = bench.made("t2v", temporal_upsampling="rife2", **SMALL)
    assert [artifact.frames for artifact in outcome.artifacts] == [33]
    assert outcome.data["frames"] == {"asked": 17, "made": 33}
    failed = Verdict(End.OUT_OF_MEMORY, "the engine ran out of memory")
    monkeypatch.setattr("wan2gp.handlers.wan_engine.WarmEngine.postprocess", lambda *arguments: failed)
    outcome = bench.made("t2v", temporal_upsampling="rife2", **SMALL)
    assert [artifact.frames for artifact in outcome.artifacts] == [17]
    assert any("temporal_upsampling" in warning and "out of memory" in warning for warning in outcome.warnings)


def test_a_file_elsewhere_is_no_result(bench: Bench) -> None:
    """A link, or another task's file: nothing but what lies in the job's own directory counts."""
    for prompt in ("@link", "@others-file"):
        assert bench.fails("t2v", prompt, **SMALL).code == "wan.no_outputs"


def test_a_retry_makes_the_same_picture(bench: Bench) -> None:
    first, again = (bench.made("t2v", task_id="same", **SMALL) for _ in range(2))
    other = bench.made("t2v", task_id="other", **SMALL)
    assert first.engine["seed"] == again.engine["seed"] != other.engine["seed"]


def test_a_plan_of_its_own_is_not_mixed_with_the_loras_of_the_model(bench: Bench) -> None:
    phases = [{"guidance_scale": 3}, {"guidance_scale": 1}]
    guide = bench.place / "guide.mp4"
    video = bench.made("t2v", resolution="64x64", video_length=17)
    (bench.work / video.artifacts[0].path).rename(guide)
    plan = {"num_phases": 2, "steps_per_phase": [1, 1], "phases": phases}
    outcome = bench.made("vace", phase_config=plan, video_guide=str(guide), **SMALL)
    assert outcome.engine["model"] == "vace_14B_cocktail_2_2__plain"
    assert bench.noted("task")[-1]["settings"]["activated_loras"] == []


def test_a_twin_of_a_model_has_its_files_and_nothing_of_its_plan(tmp_path: Path) -> None:
    shutil.copytree(WAN_ROOT / "defaults", tmp_path / "defaults")
    (tmp_path / "finetunes").mkdir()
    for name, text in {"cut": '{"model": {', "list": "[]", "other": '{"model": []}', "deep": "[" * 100_000}.items():
        (tmp_path / "finetunes" / f"{name}.json").write_text(text)
    (tmp_path / "finetunes" / "mine.json").write_text('{"model": {"URLs": ["a"], "loras": ["b"]}, "flow_shift": 3}')
    twins = plain_twins(tmp_path)
    assert twins["mine__plain"] == {
        "model": {"URLs": "mine", "name": "mine, without its plan", "visible": False},
        "flow_shift": 3,
    }
    locked = twins["vace_14B_lightning_3p_2_2__plain"]["model"]
    assert "lock_guidance_phases" not in locked and locked["URLs2"] == "vace_14B_lightning_3p_2_2"
    assert sorted(twins) == ["mine__plain", "vace_14B_cocktail_2_2__plain", "vace_14B_lightning_3p_2_2__plain"]


def test_what_is_to_be_changed_is_painted_and_fitted(bench: Bench) -> None:
    picture, mask = bench.place / "a.png", bench.place / "b.png"
    Image.new("RGB", (128, 64), (200, 0, 0)).save(picture)
    marks = Image.new("L", (64, 32), 0)
    marks.paste(255, (0, 0, 32, 32))
    marks.save(mask)
    bench.made(
        "image_inpaint",
        image=str(picture),
        mask=str(mask),
        resolution="128x64",
        lightning_lora_strength=0,
        edit_lora_strength=0,
    )
    (given,) = bench.noted("task")[-1]["settings"]["image_refs"]
    assert Path(given).is_relative_to(bench.work)
    with Image.open(given) as seen:
        assert (seen.size, seen.getpixel((5, 5)), seen.getpixel((120, 5))) == ((128, 64), (0, 255, 0), (200, 0, 0))


def test_what_cannot_be_is_refused_before_anything_is_loaded(bench: Bench) -> None:
    loads = len(bench.noted("load")), len(bench.noted("task"))
    for params, code, words in (
        ({"model": "t2v_22"}, "wan.unknown_model", "t2v_2_2"),
        ({"guidance_phases": 3, "model": "hunyuan"}, "input.bad_params", "guidance_phases"),
        ({"image_start": "/etc/passwd"}, "input.bad_params", "allow_paths"),
    ):
        failure = bench.fails("t2v", **SMALL, **params)
        assert failure.code == code and words in failure.message
    assert (len(bench.noted("load")), len(bench.noted("task"))) == loads


# --- progress --------------------------------------------------------------------------------------------------------


def progress_of(results: int, events: list[tuple[float, Event | None]]) -> list[tuple[Any, ...]]:
    """What is reported for events at times (seconds); None: a result is done."""
    told, now = Told(), [0.0]
    job = Job("t", "t2v", 1, "l", {}, Path("/nowhere"), dict, told.report, told.fact, lambda: False)  # type: ignore[arg-type]
    progress = WanProgress(job, results, lambda: now[0])
    for at, event in events:
        now[0] = at
        if event is None:
            progress.one_done()
        else:
            progress.hear(event)
    return told.progress


def test_progress_never_falls_and_knows_the_time_left() -> None:
    steps = [(1.0 + step, Step(step, 4, "inference", "Denoising")) for step in range(5)]
    decode = (5.5, Step(None, None, "decoding", "VAE Decoding"))
    one = [(0.0, Loading("t2v")), (0.9, Loaded("t2v", 0.9)), *steps, decode, (7.5, None)]
    said = progress_of(2, [*one, (8.0, Step(0, 4, "inference", "Denoising")), (9.0, Step(1, 4, "inference", ""))])
    fractions = [line[0] for line in said]
    assert fractions == sorted(fractions) and 0 < fractions[0] and fractions[-1] < 0.95
    assert [line[1] for line in said[:2]] == ["load", "load"] and said[7][1] == "decode"
    second = said[3]
    assert second[2:4] == (1, 4) and second[5] == pytest.approx(3 + 4)  # a second for each step of both results
    assert said[-1][5] == pytest.approx(3 + 2)  # three steps, and two seconds of decoding as before


def test_steps_of_the_windows_before_count() -> None:
    said = progress_of(
        1,
        [
            (0.0, Step(0, 2, "inference", "Sliding Window 1/2 - Denoising")),
            (1.0, Step(1, 2, "inference", "Sliding Window 1/2 - Denoising")),
            (2.0, Step(2, 2, "inference", "Sliding Window 1/2 - Denoising")),
            (3.0, Step(0, 2, "inference", "Sliding Window 2/2 - Denoising")),
        ],
    )
    fractions = [line[0] for line in said]
    assert fractions == sorted(fractions) and fractions[-1] == fractions[-2] < 0.6
    assert said[1][5] == pytest.approx(3.0) and said[3][5] == pytest.approx(2.0)


def test_a_stale_phase_does_not_make_steps_decoding() -> None:
    said = progress_of(1, [(0.0, Step(0, 4, "decoding", "")), (1.0, Step(1, 4, "decoding", ""))])
    assert [line[1] for line in said] == ["step", "step"]


EVENTS = st.one_of(
    st.builds(Loading, st.just("t2v")),
    st.builds(Loaded, st.just("t2v"), st.floats(0, 100)),
    st.builds(Preview, st.just(Path("/w/preview.jpg"))),
    st.builds(
        Step,
        st.none() | st.integers(-2, 60),
        st.none() | st.integers(-2, 50),
        st.sampled_from(["inference", "decoding", "loading_model", "nonsense"]),
        st.sampled_from(["", "Denoising", "Sliding Window 2/3 - Denoising", "Sliding Window 9/0", "VAE Decoding"]),
    ),
)


@given(st.integers(1, 4), st.lists(st.tuples(st.floats(0, 10), st.none() | EVENTS), max_size=40))
def test_whatever_an_engine_says_progress_never_falls_nor_leaves_the_whole(
    results: int, said: list[tuple[float, Event | None]]
) -> None:
    """Steps may begin anew, be more than there are, or none; clocks may stand still."""
    times = itertools.accumulate(seconds for seconds, _ in said)
    told = progress_of(results, [(at, event) for at, (_, event) in zip(times, said, strict=True)])
    fractions = [line[0] for line in told]
    assert fractions == sorted(fractions) and all(0 <= fraction <= 0.95 for fraction in fractions)
    assert all(line[5] is None or line[5] >= 0 for line in told)
    assert all(line[2] is None or 0 <= line[2] <= line[3] for line in told)
