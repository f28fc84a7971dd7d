"""The engine's eighteen traps, each met by the stand-in, which has them all; and what else its process can do wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tests.contract_wan import STAND_IN, Driven, driven, frames_of, never
from tests.test_wan_types import made, refusal
from wan2gp.wan_sidecar.errors import Abandoned, AnswerTooLong, Gone, NotInstalled, Unavailable, Why
from wan2gp.wan_sidecar.verdict import Outcome
from wan2gp.wan_sidecar.work import Event, Loaded, Loading, Preview, Step, WanLimits, Want

PATIENT = WanLimits(start_s=30, join_s=20, cancel_grace_s=20)
QUICK = replace(PATIENT, cancel_grace_s=0.3, join_s=0.3)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    """One engine for the jobs that should leave it as it was."""
    with driven(STAND_IN, tmp_path_factory.mktemp("warm"), limits=PATIENT) as engine:
        yield engine


@pytest.fixture
def same(warm: Driven) -> Iterator[Driven]:
    """:func:`warm`, for a test after which it must still be the same process, and do its work."""
    pid = warm.ensure().pid
    yield warm
    assert warm.engine.pid == pid
    works_again(warm)


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[Driven]:
    """One that the test may break, with short limits."""
    with driven(STAND_IN, tmp_path, limits=QUICK) as engine:
        yield engine


def unable(tmp_path: Path, how: str, **options: Any) -> Unavailable:
    limits = options.pop("limits", PATIENT)
    with driven(STAND_IN, tmp_path, environ={"WAN_ROOT_IMPORT": how}, limits=limits, **options) as engine:
        with pytest.raises(Unavailable) as found:
            engine.ensure()
        assert engine.engine.pid is None and engine.engine.about is None
        return found.value


def works_again(engine: Driven) -> None:
    """A picture is made sooner than a video."""
    found = engine.run(model_type="flux", image_mode=1)
    assert found.outcome is Outcome.OK and [path.name for path in found.files] == ["result_1_0.png"]
    assert sorted(engine.output.iterdir()) == sorted(found.files)


# The eighteen traps, in the order of the description of the engine.


def test_trap_1_a_success_without_a_file_is_a_failure(same: Driven) -> None:
    found = same.run("@no-file")
    assert found.outcome is Outcome.NO_OUTPUTS and found.files == ()
    refused = same.run(override_attention="sage9")
    assert refused.outcome is Outcome.NO_OUTPUTS
    assert "Attention mode sage9 is not supported" in refused.sentence, "the only word on it was not kept"


def test_trap_2_no_job_begins_before_the_one_before_is_torn_down(same: Driven) -> None:
    for _ in range(3):
        assert same.run("@late-teardown").outcome is Outcome.OK
    assert same.run().outcome is Outcome.OK
    assert same.noted("trampled") == []


def test_trap_3_a_worker_that_outlives_its_job_costs_its_process(fragile: Driven) -> None:
    pid = fragile.ensure().pid
    found = fragile.run("@orphan @orphan_s=30")
    assert found.outcome is Outcome.BROKEN and found.fresh and found.files == ()
    assert "cannot decode the latents" in found.sentence
    assert not psutil.pid_exists(pid)
    works_again(fragile)


def test_trap_3_a_worker_that_ends_a_little_later_costs_the_job_alone(same: Driven) -> None:
    found = same.run("@orphan @steps=1 @orphan_s=0.1")
    assert found.outcome is Outcome.FAILED and not found.fresh and "cannot decode the latents" in found.sentence


def test_trap_4_an_unknown_model_and_a_bad_size_are_told_apart(same: Driven) -> None:
    assert same.run(model_type="t2v_9").outcome is Outcome.UNKNOWN_MODEL
    bad_size = same.run(resolution="64*64")
    assert bad_size.outcome is Outcome.FAILED and "not enough values" in bad_size.sentence
    gone = same.run(model_type="i2v", image_start="/nowhere/picture.png")
    assert gone.outcome is Outcome.FAILED and "/nowhere/picture.png" in gone.sentence


def test_trap_5_what_is_refused_when_it_is_submitted_is_an_outcome_too(same: Driven) -> None:
    found = same.run(video_length="abcs")
    assert found.outcome is Outcome.VALIDATION and "video_length" in found.sentence


def test_trap_6_a_cancelled_job_with_an_error_beside_it_is_cancelled(same: Driven) -> None:
    found = cancelled_at(same, "@cancel-and-fail @steps=200", Step)
    assert found.outcome is Outcome.CANCELLED and not found.fresh
    assert "the tokenizer was interrupted" in found.errors


def test_trap_7_a_cancel_lands_at_the_next_step_and_the_next_job_knows_nothing_of_it(same: Driven) -> None:
    found = cancelled_at(same, "@steps=2000", Step)
    assert found.outcome is Outcome.CANCELLED and not found.fresh and found.files == ()


def test_trap_7_a_cancel_in_the_load_waits_for_it_and_the_model_stays(same: Driven) -> None:
    same.engine.unload()
    found = cancelled_at(same, "@load_s=0.5 @steps=2000", Loading)
    assert found.outcome is Outcome.CANCELLED and not found.fresh
    assert any(isinstance(event, Loaded) for event in same.events)
    loads = len(same.noted("load"))
    same.run()
    assert len(same.noted("load")) == loads


def test_trap_7_an_engine_that_hears_no_cancel_is_killed_after_the_grace(fragile: Driven) -> None:
    pid = fragile.ensure().pid
    found = cancelled_at(fragile, "@deaf @steps=100000", Step)
    assert found.outcome is Outcome.CANCELLED and found.fresh and found.files == ()
    assert not psutil.pid_exists(pid)
    works_again(fragile)


def test_trap_8_a_prompt_of_two_paragraphs_is_one_task(same: Driven) -> None:
    prompt = "a boat\n\nat sea"
    assert same.run(prompt, multi_prompts_gen_type="PG").outcome is Outcome.VALIDATION
    assert same.run(prompt).outcome is Outcome.OK
    assert made("t2v", prompt=prompt).settings["multi_prompts_gen_type"] == "FG"


def test_trap_9_a_model_of_images_is_told_that_it_makes_images(same: Driven) -> None:
    picture = same.place / "in.png"
    Image.new("RGB", (64, 64)).save(picture)
    settings = {"model_type": "flux", "image_guide": str(picture)}
    assert same.run(**settings).outcome is Outcome.VALIDATION
    found = same.run(**settings, image_mode=1, batch_size=2)
    assert [path.suffix for path in found.files] == [".png", ".png"]
    assert made("flux").settings["image_mode"] == 1


def test_trap_10_a_video_from_an_image_has_an_image(same: Driven) -> None:
    assert same.run(model_type="i2v_2_2").outcome is Outcome.OK, "the engine itself begins with black"
    assert "image" in refusal("i2v_22")


def test_trap_11_what_the_engine_drops_in_silence_is_refused_before(same: Driven) -> None:
    assert same.run(num_steps=7, height=9).outcome is Outcome.OK
    assert "num_steps" not in same.noted("task")[-1]["settings"]
    assert "num_inference_steps" in refusal("t2v", num_inference_step=7)
    assert "num_inference_steps" in refusal("t2v", num_inference_steps="many")


def test_trap_12_a_long_video_is_one_file_and_not_one_for_each_window(same: Driven) -> None:
    found = same.run("@windows", video_length=9)
    assert [frames_of(path) for path in found.files] == [9]


def test_trap_13_each_result_has_the_seed_that_is_told_for_it(same: Driven) -> None:
    task = made("t2v", repeat_generation=2, seed=5)
    assert task.settings["repeat_generation"] == 1 and task.results == 2
    assert [task.settings_of(result)["seed"] for result in range(2)] == [5, 6]
    same.run(seed=6)
    assert same.noted("task")[-1]["settings"]["seed"] == 6


def test_trap_14_a_failure_afterwards_does_not_cost_the_result(same: Driven) -> None:
    raw = same.run().files[0]
    before = raw.read_bytes()
    output = same.place / "afterwards"
    failed = same.engine.postprocess(raw, {"temporal_upsampling": "rife3"}, output, lambda event: None, never)
    assert failed.outcome is Outcome.VALIDATION and "rife3" in failed.sentence
    done = same.engine.postprocess(raw, {"temporal_upsampling": "rife2"}, output, lambda event: None, never)
    assert frames_of(done.files[0]) == 9 and done.files[0].parent == output
    assert raw.read_bytes() == before


def test_trap_15_a_frame_rate_that_the_engine_would_drop_never_reaches_it() -> None:
    assert "force_fps" in refusal("t2v", force_fps=23.976)
    assert made("t2v", force_fps=24).settings["force_fps"] == "24"


def test_trap_16_an_engine_that_ends_itself_with_success_is_unavailable(tmp_path: Path) -> None:
    found = unable(tmp_path, "exit")
    assert found.why is Why.EXIT and "ended its own process" in str(found)
    assert "mmgp" in (tmp_path / "engine.log").read_text()


def test_trap_17_steps_are_counted_by_numbers_and_not_by_the_name_of_the_phase(same: Driven) -> None:
    same.run("@steps=5")
    steps = [event for event in same.events if isinstance(event, Step)]
    numbers = [(event.step, event.steps) for event in steps if event.step is not None]
    assert numbers == [(0, 5), (1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert steps[0].status == "Encoding Prompt" and steps[-1].phase == "decoding"


def test_trap_18_a_job_that_says_very_much_is_heard_to_the_end(same: Driven) -> None:
    found = same.run("@many")
    assert found.outcome is Outcome.OK and len(found.tail) <= 200
    assert len([event for event in same.events if isinstance(event, Step)]) > 5000
    assert "line 4999" in (same.place / "engine.log").read_text()


def test_settings_that_are_too_long_to_be_said_cost_nobody_his_engine(same: Driven) -> None:
    found = same.run("x" * 2_000_000)
    assert found.outcome is Outcome.VALIDATION and "bytes" in found.sentence


def test_a_definition_that_is_too_long_to_be_said_is_told_as_such(tmp_path: Path) -> None:
    endless = {"endless": {"model": {"architecture": "t2v", "description": "x" * 2_000_000}}}
    with driven(STAND_IN, tmp_path, finetunes=endless, limits=PATIENT) as engine:
        pid = engine.ensure().pid
        with pytest.raises(AnswerTooLong):
            engine.engine.model_def("endless")
        assert engine.engine.pid == pid and engine.engine.availability("t2v") == "available"


# What stays in memory.


def test_a_warm_task_loads_nothing_and_another_model_is_a_load(same: Driven) -> None:
    same.engine.unload()
    assert same.engine.loaded is None
    loads = len(same.noted("load"))
    for model, count in (("t2v", 1), ("t2v", 1), ("i2v", 2), ("t2v", 3)):
        assert same.run(model_type=model).outcome is Outcome.OK
        assert (len(same.noted("load")) - loads, same.engine.loaded) == (count, model)
    assert not any(isinstance(event, Preview) for event in same.events) or (same.place / "preview.jpg").exists()


def test_previews_are_whole_pictures(same: Driven) -> None:
    sizes = []

    def look(event: Event) -> None:
        if isinstance(event, Preview):
            with Image.open(event.path) as picture:
                picture.load()
                sizes.append(picture.size)

    same.engine.run(same.job("@steps=3"), look, never)
    assert sizes and set(sizes) == {(120, 200)}


def test_no_file_of_an_earlier_job_is_a_result_of_a_later_one(same: Driven) -> None:
    first, second = same.run(seed=7), same.run(seed=7)
    assert first.files[0].name == second.files[0].name and first.files[0].parent != second.files[0].parent
    assert all(path.stat().st_size for path in (*first.files, *second.files))


# Out of memory.


@pytest.mark.parametrize("form", ["a", "a-ram", "b", "c"])
def test_out_of_memory_is_known_in_each_of_its_forms(warm: Driven, form: str) -> None:
    warm.ensure()
    warm.engine.unload()
    found = warm.run(f"@oom-{form}")
    assert found.outcome is Outcome.OUT_OF_MEMORY and found.files == ()
    assert "allocate" in found.sentence or "CUDA error: out of memory" in found.sentence, "no line names the bytes"
    works_again(warm)


def test_memory_that_a_second_job_does_not_find_either_is_looked_for_in_a_fresh_process(fragile: Driven) -> None:
    pid = fragile.ensure().pid
    assert [fragile.run("@oom-b").fresh for _ in range(2)] == [False, True]
    assert not psutil.pid_exists(pid)
    works_again(fragile)
    assert not fragile.run("@oom-b").fresh


def test_an_error_that_spoils_the_card_for_its_process_costs_the_process(fragile: Driven) -> None:
    found = fragile.run("@cuda-error")
    assert found.outcome is Outcome.FAILED and found.fresh and "illegal memory access" in found.sentence
    works_again(fragile)


def test_any_other_error_is_told_without_quotes_and_without_a_terminal(same: Driven) -> None:
    found = same.run("@boom")
    assert found.outcome is Outcome.FAILED and not found.fresh
    assert found.sentence.endswith("error: 'boom'") and "terminal" not in found.sentence and found.sentence[0] != '"'


# Deaths.


@pytest.mark.parametrize("where", ["load", "step", "decode"])
def test_a_killed_engine_publishes_nothing_and_the_next_job_has_a_new_one(fragile: Driven, where: str) -> None:
    pid = fragile.ensure().pid
    found = fragile.run(f"@kill-{where}")
    assert found.outcome is Outcome.EXITED and found.fresh and found.files == ()
    assert "killed by signal 9" in found.sentence
    assert fragile.engine.pid is None and fragile.engine.loaded is None
    works_again(fragile)
    assert fragile.engine.pid != pid and len(fragile.noted("load")) == (1 if where == "load" else 2)


def test_an_engine_that_was_killed_between_two_jobs_is_started_again(fragile: Driven) -> None:
    pid = fragile.ensure().pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: fragile.engine.pid is None)
    with pytest.raises(Gone, match="signal 9"):
        fragile.engine.availability("t2v")
    works_again(fragile)
    assert fragile.engine.pid != pid


def test_a_job_for_an_engine_that_was_not_started_is_an_outcome_too(fragile: Driven) -> None:
    found = fragile.engine.run(fragile.job(), fragile.events.append, never)
    assert found.outcome is Outcome.EXITED and found.fresh and "no process" in found.sentence
    assert fragile.engine.unload()


DRIVER = """
import sys, time
from pathlib import Path
from wan2gp.wan_sidecar.engine import WanEngine
engine = WanEngine(Path(sys.argv[1]), "", Path(sys.argv[2]), log_fd=2)
print(engine.ensure(lambda line: None, lambda: False).pid, flush=True)
time.sleep(60)
"""


def test_an_engine_does_not_outlive_whoever_drives_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DRIVER, str(STAND_IN), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        assert driver.stdout is not None
        engine = psutil.Process(int(driver.stdout.readline()))
        driver.kill()
    until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)


def test_an_engine_that_says_nothing_any_more_is_ended(fragile: Driven) -> None:
    fragile.engine._limits = replace(QUICK, stuck_s=0.4)
    found = fragile.run("@silent")
    fragile.engine._limits = PATIENT
    assert found.outcome is Outcome.BROKEN and found.fresh and "no sign of life" in found.sentence
    works_again(fragile)


def test_a_word_that_is_not_of_the_protocol_ends_the_process(fragile: Driven) -> None:
    found = fragile.run("@bad-word")
    assert found.outcome is Outcome.BROKEN and found.fresh and "protocol" in found.sentence
    works_again(fragile)


def test_what_is_printed_to_the_standard_output_is_no_word_of_the_protocol(tmp_path: Path) -> None:
    with driven(STAND_IN, tmp_path, environ={"WAN_ROOT_IMPORT": "noise"}, limits=PATIENT) as engine:
        assert engine.ensure().version == "12.60"
        assert engine.run("@noise").outcome is Outcome.OK
    log = (tmp_path / "engine.log").read_text()
    assert '{"is": "ready"}' in log and '"success": true' in log and "printed in a job" in log


# Files.


@pytest.mark.parametrize("trick", ["link", "others-file"])
def test_a_result_that_leads_elsewhere_is_none(same: Driven, trick: str) -> None:
    found = same.run(f"@{trick}")
    assert found.outcome is Outcome.NO_OUTPUTS and found.files == () and "not there" in found.sentence


def test_a_file_that_is_fetched_while_the_engine_waits_is_used(tmp_path: Path) -> None:
    store = tmp_path / "store.onnx"
    store.write_bytes(b"weights")
    wants: list[Want] = []

    def supply(want: Want) -> Path:
        wants.append(want)
        return store

    with driven(STAND_IN, tmp_path, supply=supply, limits=PATIENT) as engine:
        assert engine.run("@missing").outcome is Outcome.OK
        assert wants[0].place.resolve() == store and wants[0].file == "pose/dw-ll_ucoco_384.onnx"
        engine.engine.unload()
        assert engine.run("@missing").outcome is Outcome.OK and len(wants) == 1
        store.rename(tmp_path / "gone")  # the store made room: the link leads nowhere now
        engine.engine.unload()
        (tmp_path / "gone").rename(store)
        assert engine.run("@missing").outcome is Outcome.OK


def test_a_folder_is_asked_for_as_a_whole(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "model.bin").write_bytes(b"weights")
    wants: list[Want] = []

    def supply(want: Want) -> Path:
        wants.append(want)
        return store

    with driven(STAND_IN, tmp_path, supply=supply, limits=PATIENT) as engine:
        assert engine.run("@folder").outcome is Outcome.OK
        assert [want.file for want in wants] == ["pyannote/"] and (wants[0].place / "model.bin").exists()


def test_a_file_that_need_not_be_there_is_asked_of_nobody(same: Driven) -> None:
    same.engine.unload()
    same.wants.clear()
    found = same.run("@library")
    assert found.outcome is Outcome.OK and "no added tokens" in found.tail and same.wants == []


def test_a_cancel_while_a_file_is_fetched_ends_the_wait(tmp_path: Path) -> None:
    asked = []

    def supply(want: Want) -> str:
        asked.append(want)
        return "late"

    with driven(STAND_IN, tmp_path, supply=supply, limits=PATIENT) as engine:
        engine.ensure()
        found = engine.engine.run(engine.job("@missing"), lambda event: None, lambda: bool(asked))
        assert found.outcome is Outcome.CANCELLED and not found.fresh
        works_again(engine)


@pytest.mark.parametrize("who", ["supply", "on_event", "cancelled"])
def test_what_the_callers_functions_raise_comes_to_the_caller_when_the_job_is_over(tmp_path: Path, who: str) -> None:
    def raises(*given: Any) -> Any:
        raise LookupError(who)

    supply = raises if who == "supply" else (lambda want: "no")
    with driven(STAND_IN, tmp_path, supply=supply, limits=PATIENT) as engine:
        pid = engine.ensure().pid
        with pytest.raises(LookupError, match=who):
            engine.engine.run(
                engine.job("@missing @steps=2000"),
                raises if who == "on_event" else lambda event: None,
                raises if who == "cancelled" else never,
            )
        assert engine.engine.pid == pid
        works_again(engine)


# Starts.


def test_a_machine_without_cuda_is_told_from_a_broken_installation(tmp_path: Path) -> None:
    no_cuda, module = unable(tmp_path, "no_cuda"), unable(tmp_path, "module")
    assert no_cuda.why is Why.NO_CUDA and "CUDA" in str(no_cuda)
    assert module.why is Why.IMPORT and "mmgp" in str(module) and any("wgp.py" in line for line in module.tail)


def test_an_engine_that_is_killed_at_its_start_is_told_by_its_signal(tmp_path: Path) -> None:
    found = unable(tmp_path, "kill")
    assert found.why is Why.EXIT and "signal 9" in str(found)


def test_an_engine_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    found = unable(tmp_path, "silent", limits=WanLimits(start_s=0.5))
    assert found.why is Why.SLOW


def test_a_start_that_nobody_wants_any_more_is_abandoned(tmp_path: Path) -> None:
    with driven(STAND_IN, tmp_path, environ={"WAN_ROOT_IMPORT": "silent"}) as engine:
        with pytest.raises(Abandoned):
            engine.engine.ensure(lambda line: None, lambda: True)
        assert engine.engine.pid is None


def test_arguments_that_the_engine_does_not_know_make_it_unavailable(tmp_path: Path) -> None:
    with driven(STAND_IN, tmp_path, arguments=("--no-such-flag",)) as engine:
        with pytest.raises(Unavailable, match="exit code 2"):
            engine.ensure()


def test_an_interpreter_that_is_none_is_named(tmp_path: Path) -> None:
    with driven(STAND_IN, tmp_path, python="/nowhere/python") as engine:
        with pytest.raises(Unavailable) as found:
            engine.ensure()
        assert "/nowhere/python" in "".join((str(found.value), *found.value.tail))


def test_a_directory_that_holds_no_engine_is_said_to_hold_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place, word in ((tmp_path / "nowhere", "no directory"), (tmp_path / "empty", "wgp.py")):
        with driven(place, tmp_path) as engine, pytest.raises(NotInstalled, match=word):
            engine.ensure()
    (tmp_path / "empty" / "wgp.py").write_text("WanGP_version = '9.1'\n")
    with driven(tmp_path / "empty", tmp_path) as engine, pytest.raises(NotInstalled, match="too old"):
        engine.ensure()


def test_a_model_that_is_kept_when_it_is_released_costs_the_process(tmp_path: Path) -> None:
    with driven(STAND_IN, tmp_path, environ={"WAN_ROOT_KEEPS": "1"}, limits=PATIENT) as engine:
        works_again(engine)
        assert not engine.engine.unload()
        assert engine.engine.pid is None and engine.engine.loaded is None and engine.engine.unload()


def test_a_model_that_cannot_be_released_costs_the_process(fragile: Driven) -> None:
    pid = fragile.ensure().pid
    fragile.engine._limits = replace(QUICK, unload_s=0.2)
    os.kill(pid, signal.SIGSTOP)
    assert not fragile.engine.unload()
    assert not psutil.pid_exists(pid)
    works_again(fragile)


def cancelled_at(engine: Driven, prompt: str, kind: type[Event]) -> Any:
    """The verdict of a job that is cancelled as soon as it says something of that kind."""
    engine.ensure()
    engine.events.clear()
    return engine.engine.run(
        engine.job(prompt), engine.events.append, lambda: any(isinstance(event, kind) for event in engine.events)
    )


def until(look: Any) -> None:
    end = time.monotonic() + 20
    while not look():
        assert time.monotonic() < end
        time.sleep(0.01)
