"""The comfy handler with a real server under it: the row of the specification, and what users send instead."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import requests

from tests.comfy_jobs import Bench, fault, make_video, picture, spec_row
from wan2gp.protocol import Cancelled

Make = Callable[..., Bench]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One handler for the tests that leave its server as they found it."""
    path = tmp_path_factory.mktemp("shared")
    yield from one_bench(path, make_video(path / "in.mp4", frames=12))


def one_bench(path: Path, source: Path) -> Any:
    from tests.conftest_comfy import FAULTS, free_port

    one = Bench(path / "bench", {"path": "builtin", "port": free_port(), "args": f"--extra-nodes {FAULTS}"}, source)
    yield one
    one.handler.close()


@pytest.fixture
def warm(shared: Bench) -> Bench:
    """As a new handler would look, but for its running server."""
    shared.facts.clear()
    shared.reports.clear()
    shared.fetched.clear()
    shared.cancel.clear()
    shared.heard = None
    return shared


def server(one: Bench) -> str:
    return next(f"http://127.0.0.1:{detail['port']}" for state, detail in reversed(one.states) if state == "ready")


def test_the_row_of_the_specification_becomes_a_video(bench: Make, tmp_path: Path) -> None:
    one = bench(make_video(tmp_path / "in.mp4", frames=12))
    outcome = one.succeeds(spec_row())
    (artifact,) = outcome.artifacts
    assert (artifact.kind, artifact.mime, artifact.primary, artifact.node_id) == ("video", "video/mp4", True, "2")
    assert (artifact.width, artifact.height, artifact.frames) == (64, 48, 12)
    with av.open(str(one.work_dir / artifact.path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12
    assert any("loop_count" in warning and "filename_prefix" in warning for warning in outcome.warnings)
    assert outcome.engine["name"] == "builtin"
    assert one.left_behind() == []
    assert one.names() == [
        "comfy.first_task",
        "comfy.starting",
        "comfy.started",
        "comfy.ready",
        "comfy.started_ok",
        "comfy.uploaded",
        "comfy.filled_inputs",
        "comfy.queued",
        "comfy.completed",
    ]
    assert one.facts[5][1] == {"kind": "video", "name": "input.mp4"}


def test_a_second_task_finds_the_server_running(warm: Bench) -> None:
    warm.succeeds(spec_row())
    warm.facts.clear()
    warm.succeeds(spec_row())
    assert "comfy.starting" not in warm.names()


@pytest.mark.parametrize(
    "change",
    [
        {"video_node_id": 1},
        {"video_node_id": None, "video_input_field": None},
        {"video_input_field": None},
        {"workflow": json.dumps(spec_row()["workflow"])},
    ],
    ids=["number as id", "only loader", "default field", "graph as text"],
)
def test_the_row_may_be_written_in_other_ways(warm: Bench, change: dict[str, Any]) -> None:
    outcome = warm.succeeds({**spec_row(), **change})
    assert outcome.artifacts[0].frames == 12


def test_the_input_is_the_downloaded_file_and_not_one_of_that_name(warm: Bench) -> None:
    """Two jobs whose URLs end alike must not see each other's file: the name is only the end of the path."""
    warm.succeeds(spec_row())
    assert [dict(sources)["video_url"].url for sources in warm.fetched] == [spec_row()["video_url"]]
    assert not (warm.engine / "input" / "input.mp4").exists()


def test_the_same_row_twice_gives_a_fresh_file_each_time(warm: Bench) -> None:
    """With an unchanged prefix ComfyUI's cache would name the first run's file."""
    names = {warm.succeeds({"workflow": picture("same")}).artifacts[0].path for _ in range(2)}
    assert names == {"out/same_00001_.png"}


def test_a_preview_that_comes_from_the_cache_is_made_anew(warm: Bench) -> None:
    """Its file was taken by the first run; history names it all the same."""
    graph = picture()
    graph["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    for _ in range(2):
        (artifact,) = warm.succeeds({"workflow": graph}).artifacts
        assert (warm.work_dir / artifact.path).is_file()


def test_saved_files_win_over_previews(warm: Bench) -> None:
    graph = picture("kept")
    graph["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    assert [artifact.name for artifact in warm.succeeds({"workflow": graph}).artifacts] == ["kept_00001_.png"]
    assert list((warm.engine / "temp").rglob("*.png")) == []


def test_the_video_is_the_primary_among_several_files(warm: Bench) -> None:
    graph = spec_row()["workflow"]
    graph["0"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a/frame"}}
    outcome = warm.succeeds({**spec_row(), "workflow": graph})
    assert len(outcome.artifacts) == 13
    assert [artifact.kind for artifact in outcome.artifacts if artifact.primary] == ["video"]
    assert warm.left_behind() == []


def test_two_nodes_that_save_under_one_name_do_not_overwrite_each_other(warm: Bench) -> None:
    graph = picture("a/x")
    graph["3"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "b/x"}}
    outcome = warm.succeeds({"workflow": graph})
    assert len({artifact.path for artifact in outcome.artifacts}) == 2


@pytest.mark.parametrize("prefix", ["../../escape", "/abs/escape", "a/../../../escape", ""])
def test_a_prefix_cannot_climb_out_of_the_run(warm: Bench, prefix: str) -> None:
    (artifact,) = warm.succeeds({"workflow": picture(prefix)}).artifacts
    assert artifact.name == ("output_00001_.png" if prefix == "" else "escape_00001_.png")
    assert list((warm.engine / "output").rglob("*.png")) == []


def test_texts_a_graph_shows_are_kept(warm: Bench) -> None:
    graph = picture() | {"5": {"class_type": "TestSleep", "inputs": {"seconds": 0, "steps": 1, "nonce": 5}}}
    assert warm.succeeds({"workflow": graph}).data == {"text": {"5": ["slept 0.0"]}}


def test_progress_only_rises_and_names_its_phases(warm: Bench) -> None:
    graph = picture() | {"5": {"class_type": "TestSleep", "inputs": {"seconds": 0.6, "steps": 6, "nonce": 6}}}
    warm.succeeds({"workflow": graph})
    fractions = [fraction for fraction, _ in warm.reports if fraction is not None]
    assert fractions == sorted(fractions)
    assert {"step", "publish"} <= {phase for _, phase in warm.reports}


# --- what users send instead -----------------------------------------------------------------------------------------


def test_a_corrupt_input_is_said_to_be_one(warm: Bench, tmp_path: Path) -> None:
    good, warm.source = warm.source, tmp_path / "noise.mp4"
    warm.source.write_bytes(bytes(range(256)) * 64)
    try:
        failure = warm.fails(spec_row())
    finally:
        warm.source = good
    assert (failure.code, failure.retryable) == ("input.corrupt", False)
    assert "comfy.queued" not in warm.names()


def test_a_field_that_has_no_default_is_named(warm: Bench) -> None:
    graph = picture()
    del graph["2"]["inputs"]["images"]
    failure = warm.fails({"workflow": graph})
    assert failure.code == "comfy.validation"
    assert "node 2 (SaveImage)" in failure.message and "images" in failure.message


def test_an_unknown_node_class_is_named(warm: Bench) -> None:
    failure = warm.fails({"workflow": {"7": {"class_type": "NoSuchNode", "inputs": {}}}})
    assert failure.code == "comfy.validation"
    assert "node 7 (NoSuchNode)" in failure.message and "custom node is not installed" in failure.message


def test_a_graph_without_an_output_node_is_told_what_it_lacks(warm: Bench) -> None:
    graph = {"1": picture()["1"]}
    failure = warm.fails({"workflow": graph})
    assert failure.code == "comfy.validation"
    assert "SaveImage" in failure.message


def test_a_circle_is_refused_with_a_hint(warm: Bench) -> None:
    graph = picture()
    graph["1"] = {"class_type": "ImageScale", "inputs": {"image": ["1", 0]}}
    assert warm.fails({"workflow": graph}).code == "comfy.validation"


def test_one_bad_output_among_good_ones_fails_the_task(warm: Bench) -> None:
    """ComfyUI answers 200 and would run the rest, and the user would miss a file."""
    graph = picture()
    graph["9"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}
    failure = warm.fails({"workflow": graph})
    assert failure.code == "comfy.validation"
    assert "node 9 (SaveImage)" in failure.message
    queue = requests.get(server(warm) + "/queue", timeout=5).json()
    assert queue == {"queue_running": [], "queue_pending": []}
    assert warm.left_behind() == []


def test_a_node_that_raises_is_named_with_its_error(warm: Bench) -> None:
    failure = warm.fails({"workflow": fault("TestRaise", kind="ValueError", message="bad thing")})
    assert (failure.code, failure.retryable) == ("comfy.node_failed", False)
    assert "node 1 (TestRaise) raised ValueError: bad thing" in failure.message
    assert failure.detail["node_id"] == "1"


def test_a_run_that_shows_nothing_is_a_failure(warm: Bench) -> None:
    failure = warm.fails({"workflow": fault("FaultNoOutput")})
    assert (failure.code, failure.message) == ("comfy.no_outputs", "No outputs generated by workflow")


@pytest.mark.parametrize("how", ["absent", "truncated", "empty"])
def test_success_reported_for_a_broken_file_is_a_failure_worth_a_retry(warm: Bench, how: str) -> None:
    failure = warm.fails({"workflow": fault("FaultLieAboutSuccess", how=how)})
    assert (failure.code, failure.retryable) == ("comfy.bad_output", True)
    assert "lie.mp4" in failure.message


def test_a_linked_output_may_not_lead_out_of_the_directories(warm: Bench, tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    link = warm.engine / "output" / "lie.mp4"
    link.unlink(missing_ok=True)
    link.symlink_to(secret)
    try:
        failure = warm.fails({"workflow": fault("FaultLieAboutSuccess", how="absent", nonce=8)})
    finally:
        link.unlink()
    assert (failure.code, failure.retryable) == ("comfy.bad_output", False)
    assert secret.read_bytes() == b"secret"


def test_a_prompt_that_somebody_else_interrupts_is_retried(warm: Bench) -> None:
    def interrupt(name: str, _: dict[str, Any]) -> None:
        if name == "comfy.queued":
            threading.Thread(target=until_interrupted).start()

    def until_interrupted() -> None:
        for _ in range(200):
            requests.post(server(warm) + "/interrupt", json={}, timeout=5)
            queue = requests.get(server(warm) + "/queue", timeout=5).json()
            if not queue["queue_running"] and not queue["queue_pending"]:  # it may not have begun yet
                return

    warm.heard = interrupt
    failure = warm.fails({"workflow": fault("TestSleep", seconds=30, steps=3000)})
    assert (failure.code, failure.retryable) == ("comfy.interrupted", True)


# --- cancelling ------------------------------------------------------------------------------------------------------


def test_a_cancelled_prompt_leaves_the_queue_and_the_server_runs_on(warm: Bench) -> None:
    warm.heard = lambda name, _: warm.cancel.set() if name == "comfy.queued" else None
    outcome = warm.run({"workflow": fault("TestSleep", seconds=60, steps=6000)})
    assert isinstance(outcome, Cancelled)
    queue = requests.get(server(warm) + "/queue", timeout=5).json()
    assert queue == {"queue_running": [], "queue_pending": []}
    warm.cancel.clear()
    warm.heard = None
    warm.succeeds({"workflow": picture()})
    assert "comfy.starting" not in warm.names()


def test_out_of_memory_frees_then_restarts_then_gives_advice(bench: Make) -> None:
    one = bench()
    failure = one.fails({"workflow": fault("TestRaise", kind="OutOfMemoryError", message="CUDA out of memory")})
    assert (failure.code, failure.retryable) == ("comfy.out_of_memory", False)
    assert "larger GPU" in failure.message
    assert one.names().count("comfy.queued") == 3
    assert one.names().count("comfy.started") == 2
    one.succeeds({"workflow": picture()})
