"""How far a prompt is: recorded messages of a real server, in order and in any other, and what is shown of them."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.comfy_jobs import Bench
from wan2gp.comfy_sidecar.prompt_progress import (
    LARGEST_PREVIEW,
    Pace,
    Preview,
    PromptProgress,
    weigh,
)
from wan2gp.control import ProgressReply
from wan2gp.ctl_progress import display_on
from wan2gp.handlers.comfy_preview import PreviewFile
from wan2gp.protocol import Progress
from wan2gp.supervisor.queue import ClaimedTask
from wan2gp.supervisor.running import Running

Json = dict[str, Any]
RECORDED: dict[str, Json] = json.loads((Path(__file__).parent / "captures" / "progress.json").read_text())
RUNS = [(name, prompt_id) for name, one in RECORDED.items() for prompt_id in one["graphs"]]
JPEG = b"\xff\xd8\xff\xe0 a picture"
PNG = b"\x89PNG\r\n\x1a\n a picture"


def all_outputs(_: str) -> bool:
    return True


def progress_of(name: str, prompt_id: str) -> PromptProgress:
    return PromptProgress(prompt_id, weigh(RECORDED[name]["graphs"][prompt_id], all_outputs))


def feed(progress: PromptProgress, messages: list[Any]) -> list[float]:
    fractions = []
    for kind, data in messages:
        progress.apply(kind, data)
        fractions.append(progress.snapshot().fraction)
    return fractions


@pytest.mark.parametrize(("name", "prompt_id"), RUNS, ids=[f"{name[:2]}-{prompt_id[:4]}" for name, prompt_id in RUNS])
def test_the_fraction_of_a_recorded_run_never_falls(name: str, prompt_id: str) -> None:
    messages = RECORDED[name]["messages"]
    progress = progress_of(name, prompt_id)
    fractions = feed(progress, messages)
    assert fractions == sorted(fractions) and fractions[0] == 0.0
    mine = [kind for kind, data in messages if data.get("prompt_id") == prompt_id]
    if "execution_success" in mine:
        assert fractions[-1] == 1.0
    elif mine:
        assert fractions[-1] < 1.0  # it failed, or was interrupted
    assert progress.changed.is_set() == ("executing" in mine)


@pytest.mark.parametrize(("name", "prompt_id"), RUNS[:12])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_messages_lost_repeated_or_out_of_order_never_set_it_back(name: str, prompt_id: str, data: Any) -> None:
    messages = RECORDED[name]["messages"]
    picked = data.draw(st.lists(st.sampled_from(messages), max_size=2 * len(messages)))
    fractions = feed(progress_of(name, prompt_id), picked)
    assert fractions == sorted(fractions) and all(0.0 <= fraction <= 1.0 for fraction in fractions)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["1", "2", "p"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("node", "nodes", "display_node", "value", "max", "state", "node_id", "display_node_id", "output")
STATE = st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=6)
DATA = st.fixed_dictionaries(
    {"prompt_id": st.just("p")},
    optional={
        "nodes": st.dictionaries(st.sampled_from("123"), STATE | ANYTHING, max_size=3) | ANYTHING,
        **{key: ANYTHING | st.sampled_from(["1", "2"]) for key in ("node", "display_node", "value", "max")},
    },
)
KINDS = st.sampled_from(["execution_cached", "executing", "progress", "progress_state", "executed", "x"])


@pytest.mark.long
@given(st.lists(st.tuples(KINDS, DATA), max_size=12))
@settings(max_examples=200, deadline=None)
def test_whatever_a_node_sends_ends_no_thread_and_stays_between_0_and_1(messages: list[Any]) -> None:
    fractions = feed(PromptProgress("p", {"1": 1.0, "2": 20.0}), messages)
    assert fractions == sorted(fractions) and all(0.0 <= fraction <= 1.0 for fraction in fractions)


def test_what_comes_from_the_cache_is_done_at_once() -> None:
    name = "23_cached_rerun"
    again = list(RECORDED[name]["graphs"])[1]
    progress = progress_of(name, again)
    for kind, data in RECORDED[name]["messages"]:
        progress.apply(kind, data)
        if kind == "execution_cached" and data["prompt_id"] == again:
            break
    assert progress.snapshot().fraction == 1.0


# --- weights ---------------------------------------------------------------------------------------------------------


def node(class_type: str = "N", **inputs: Any) -> Json:
    return {"class_type": class_type, "inputs": inputs}


def test_a_sampler_weighs_its_steps_and_what_no_output_needs_weighs_nothing() -> None:
    graph = {
        "1": node("CheckpointLoaderSimple"),
        "2": node("KSampler", model=["1", 0], steps=20),
        "3": node("KSamplerAdvanced", model=["1", 0], latent=["2", 0], steps=20, start_at_step=15, end_at_step=10000),
        "4": node("SaveImage", images=["3", 0]),
        "5": node("KSampler", steps=50, model=["1", 0]),
        "6": node("Loop", a=["6", 0], b=["no such node", 0], steps=["1", 0]),
    }
    weights = weigh(graph, lambda node_id: node_id == "4")
    assert weights == {"1": 1.0, "2": 21.0, "3": 6.0, "4": 1.0}
    assert weigh(graph, lambda _: False).keys() == graph.keys()


@pytest.mark.parametrize("steps", [0, -1, 10**9, "20", 2.5, None])
def test_steps_that_are_no_number_of_steps_weigh_nothing(steps: Any) -> None:
    assert weigh({"1": node(steps=steps)}, all_outputs) == {"1": 1.0}


def test_the_steps_of_a_long_sampler_move_the_bar() -> None:
    progress = PromptProgress("p", {"1": 1.0, "2": 21.0, "3": 1.0})
    progress.apply("executing", {"prompt_id": "p", "node": "1"})
    progress.apply("executing", {"prompt_id": "p", "node": "2"})
    before = progress.snapshot().fraction
    progress.apply("progress", {"prompt_id": "p", "node": "2", "value": 10, "max": 20})
    now = progress.snapshot()
    assert (now.node_id, now.step, now.steps) == ("2", 10, 20)
    assert before == pytest.approx(1 / 23) and now.fraction == pytest.approx((1 + 10.5) / 23)


def test_a_subgraph_moves_the_node_that_brought_it_forth() -> None:
    name = "26_subgraph_expansion"
    (prompt_id,) = RECORDED[name]["graphs"]
    progress = progress_of(name, prompt_id)
    seen = set()
    for kind, data in RECORDED[name]["messages"]:
        progress.apply(kind, data)
        seen.add(progress.snapshot().node_id)
    assert seen == {None, "1", "2"}, "a node of the subgraph is not in the user's graph"


def test_of_two_nodes_at_once_the_second_does_not_end_the_first() -> None:
    progress = PromptProgress("p", {"1": 1.0, "2": 1.0})
    running = {"prompt_id": "p", "nodes": {"1": {"node_id": "1", "value": 0, "max": 1, "state": "running"}}}
    progress.apply("progress_state", running)
    progress.apply("executing", {"prompt_id": "p", "node": "1"})
    progress.apply("executing", {"prompt_id": "p", "node": "2"})
    assert progress.snapshot().fraction == 0.0


# --- time left -------------------------------------------------------------------------------------------------------


def run_at(pace: Pace, *points: tuple[float, float]) -> float | None:
    eta = None
    for now_s, fraction in points:
        pace.note(now_s, fraction)
        eta = pace.eta_s(now_s, fraction)
    return eta


def test_the_time_left_is_unknown_until_something_was_done() -> None:
    assert run_at(Pace(), (0.0, 0.0)) is None
    assert run_at(Pace(), (0.0, 0.0), (30.0, 0.0)) is None
    assert run_at(Pace(), (0.0, 0.9), (0.2, 0.95)) is None


def test_an_even_pace_is_carried_on() -> None:
    assert run_at(Pace(), *((float(second), second / 100) for second in range(41))) == pytest.approx(60.0)


def test_what_was_cached_says_nothing_of_the_pace() -> None:
    assert run_at(Pace(), (0.0, 0.8), (10.0, 0.9)) == pytest.approx(10.0)


def test_a_slow_start_is_forgotten() -> None:
    """A model took 60 s to load; the sampler then needs 1 s a step."""
    pace = Pace()
    points = [(0.0, 0.0), *((60.0 + second, second / 100) for second in range(1, 51))]
    eta = run_at(pace, *points)
    assert eta is not None and 45 <= eta <= 62


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1)), max_size=200))
@settings(max_examples=100, deadline=None)
def test_the_time_left_is_never_negative_and_the_memory_of_it_small(points: list[tuple[float, float]]) -> None:
    pace, now_s = Pace(), 0.0
    for step_s, fraction in points:
        now_s += step_s
        pace.note(now_s, fraction)
        eta = pace.eta_s(now_s, fraction)
        assert eta is None or eta >= 0.0
    assert pace.eta_s(now_s, 1.0) == 0.0


# --- previews --------------------------------------------------------------------------------------------------------


def of_node(prompt_id: str, image: bytes = JPEG) -> bytes:
    metadata = json.dumps({"node_id": "1", "prompt_id": prompt_id, "image_type": "image/jpeg"}).encode()
    return struct.pack(">II", 4, len(metadata)) + metadata + image


def bare(image: bytes, form: int = 1) -> bytes:
    return struct.pack(">II", 1, form) + image


def running() -> PromptProgress:
    progress = PromptProgress("p", {"1": 1.0})
    progress.apply("executing", {"prompt_id": "p", "node": "1"})
    return progress


@pytest.mark.parametrize(
    ("payload", "image", "suffix"),
    [
        (of_node("p"), JPEG, ".jpg"),
        (bare(JPEG), JPEG, ".jpg"),
        (bare(PNG, 2), PNG, ".png"),
        (bare(struct.pack(">II16p", 1, 7, b"1") + JPEG), JPEG, ".jpg"),
    ],
    ids=["of a node", "bare", "png", "with an extension's own header"],
)
def test_a_picture_is_taken_as_it_was_sent(payload: bytes, image: bytes, suffix: str) -> None:
    progress = running()
    progress.apply_binary(payload)
    assert progress.preview == Preview(image, suffix, 1)


@pytest.mark.parametrize(
    "payload",
    [
        of_node("another"),
        struct.pack(">II", 4, 1 << 31) + JPEG,
        struct.pack(">II", 4, 3) + b"{{{" + JPEG,
        struct.pack(">II", 3, 1) + b"1 some text",
        bare(b"no picture"),
        bare(JPEG + b"x" * LARGEST_PREVIEW),
        b"",
        b"\0\0",
    ],
)
def test_what_is_no_picture_of_ours_is_passed_over(payload: bytes) -> None:
    progress = running()
    progress.apply_binary(payload)
    assert progress.preview is None


def test_a_picture_that_does_not_say_whose_it_is_counts_only_while_we_run() -> None:
    """An external server shows everybody the pictures of a prompt without a client."""
    progress = PromptProgress("p", {"1": 1.0})
    progress.apply_binary(bare(JPEG))
    assert progress.preview is None
    progress = running()
    progress.apply("executing", {"prompt_id": "p", "node": None})
    progress.apply_binary(bare(JPEG))
    assert progress.preview is None


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_survived(payload: bytes) -> None:
    running().apply_binary(payload)


def test_the_file_is_whole_at_any_time_and_written_once_a_second_at_most(bench: Any) -> None:
    one: Bench = bench()
    picture = PreviewFile(one.job({}))
    assert picture.keep(None, 0.0) is None
    assert not list(one.work_dir.iterdir()), "no picture, no file"
    assert picture.keep(Preview(b"first", ".jpg", 1), 0.0) == "preview.jpg"
    assert picture.keep(Preview(b"second", ".jpg", 2), 0.9) == "preview.jpg"
    assert (one.work_dir / "preview.jpg").read_bytes() == b"first"
    assert picture.keep(Preview(b"third", ".png", 3), 1.0) == "preview.png"
    assert [(path.name, path.read_bytes()) for path in one.work_dir.iterdir()] == [("preview.png", b"third")]


# --- told ------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_tells_title_steps_time_left_and_picture(bench: Any) -> None:
    one: Bench = bench()
    sleep = node("TestSleep", seconds=2.5, steps=25, preview=True, nonce=1)
    graph = {"1": {**sleep, "_meta": {"title": "My sampler"}}}
    told: list[tuple[Any, ...]] = []
    pictures = []

    def report(*said: Any) -> None:
        told.append(said)
        if said[6] is not None:
            pictures.append((one.work_dir / said[6]).read_bytes()[:3])

    one.handler.run(dataclasses.replace(one.job({"workflow": graph}), report=report))
    steps = [said for said in told if said[1] == "step"]
    assert {said[4] for said in steps} == {"My sampler"}
    assert any(said[2] and said[3] == 25 for said in steps)
    assert any(said[5] is not None and 0 < said[5] < 60 for said in steps)
    assert {said[6] for said in steps} <= {None, "preview.jpg"} and set(pictures) == {b"\xff\xd8\xff"}
    fractions = [said[0] for said in told]
    assert fractions == sorted(fractions) and len(set(fractions)) > 4


def claimed(work_dir: Path) -> Running:
    fields: Json = {field.name: "x" for field in dataclasses.fields(ClaimedTask)}
    fields |= {"attempt": 1, "params": {}}
    return Running(ClaimedTask(**fields), "comfy", str(work_dir), 0.0)


def said(**fields: Any) -> Progress:
    return Progress("x", "x", **fields)


def test_the_row_and_the_status_say_what_the_handler_said(tmp_path: Path) -> None:
    one = claimed(tmp_path)
    one.heard(said(fraction=0.5, step=3, steps=20, detail="KSampler", eta_s=34.6, preview="preview.jpg"))
    assert one.row_detail() == "KSampler, 3 of 20, 35 s left"
    shown = one.describe(10.0)
    assert (shown["eta_s"], shown["preview"]) == (24.6, f"{tmp_path}/preview.jpg"), "ten seconds passed since"
    assert one.describe(99.0)["eta_s"] == 0.0
    one.heard(said(fraction=0.4, phase="publish", detail="x.mp4"))
    assert (one.fraction, one.row_detail(), one.describe(1.0)["eta_s"]) == (0.5, "x.mp4", None)
    one.heard(said())
    assert one.row_detail() is None


@pytest.mark.parametrize(
    "name", ["../x.jpg", "/etc/passwd", "a/b.jpg", ".jpg", "x.svg", "x.jpg\n", "x" * 99 + ".jpg", ""]
)
def test_a_hostile_handler_names_no_picture_elsewhere(tmp_path: Path, name: str) -> None:
    one = claimed(tmp_path)
    one.heard(said(preview=name))
    assert one.describe(1.0)["preview"] is None


@pytest.mark.parametrize("eta_s", [-1.0, 1e300, float("inf"), float("nan")])
def test_a_time_left_that_is_none_is_not_shown(tmp_path: Path, eta_s: float) -> None:
    one = claimed(tmp_path)
    one.heard(said(eta_s=eta_s))
    assert one.describe(1.0)["eta_s"] is None and one.row_detail() is None


def replies() -> list[ProgressReply]:
    runs = [
        ProgressReply("t", "In Progress", 0.1 + step / 25, "step", "KSampler", step, 20, 40.0 - 2 * step)
        for step in range(1, 21)
    ]
    return [ProgressReply("t", "Queued"), *runs, ProgressReply("t", "Complete")]


def test_waiting_shows_node_steps_and_time_left_in_a_pipe_and_on_a_terminal() -> None:
    piped, seen = io.StringIO(), io.StringIO()
    for file, terminal in ((piped, False), (seen, True)):
        with display_on(Console(file=file, force_terminal=terminal, width=120)) as display:
            for reply in replies():
                display.show(reply)
                if terminal:
                    display._progress.refresh()  # type: ignore[attr-defined]
    lines = piped.getvalue().splitlines()
    assert lines[0] == "queued" and lines[-1] == "complete" and 8 <= len(lines) <= 14
    assert " 14% step KSampler 1 of 20, 38.0 s left" in lines
    assert "KSampler 20 of 20" in seen.getvalue() and "s left" in seen.getvalue()
