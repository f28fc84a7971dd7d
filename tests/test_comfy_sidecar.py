"""The sidecar's judgement without a server: verdicts, back-off, what messages and history entries mean."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wan2gp.comfy_sidecar.errors import BadOutput
from wan2gp.comfy_sidecar.outputs import OutputFile, locate, read_ending
from wan2gp.comfy_sidecar.prompt_progress import PromptProgress
from wan2gp.comfy_sidecar.watchdog import Backoff, Limits, Observation, Verdict, describe_exit, judge
from wan2gp.engine_process import family
from wan2gp.engine_process.process import RING_LINES, DrainedProcess

CAPTURES = Path(__file__).parent / "captures"
LIMITS = Limits(unresponsive_s=10, stuck_s=100, memory_bytes=1000)


@pytest.mark.parametrize(
    ("exit_code", "silent_s", "still_s", "rss", "verdict"),
    [
        (None, 0, 0, 0, Verdict.OK),
        (None, 10, 100, 1000, Verdict.OK),
        (0, 0, 0, 0, Verdict.EXITED),
        (-9, 99, 999, 9999, Verdict.EXITED),
        (None, 11, 0, 0, Verdict.UNRESPONSIVE),
        (None, 11, 101, 1001, Verdict.UNRESPONSIVE),
        (None, 0, 101, 0, Verdict.STUCK),
        (None, 0, 101, 1001, Verdict.STUCK),
        (None, 0, None, 1001, Verdict.BLOATED),
        (None, 0, None, 0, Verdict.OK),
    ],
)
def test_the_verdict_is_a_table(
    exit_code: int | None, silent_s: float, still_s: float | None, rss: int, verdict: Verdict
) -> None:
    now = 5000.0
    seen = Observation(now, exit_code, now - silent_s, None if still_s is None else now - still_s, rss)
    assert judge(seen, LIMITS) is verdict


def test_a_limit_of_zero_is_none() -> None:
    seen = Observation(1e6, None, 0.0, 0.0, 1 << 50)
    assert judge(seen, Limits(0, 0, 0)) is Verdict.OK


def delays(backoff: Backoff, lived_s: float, deaths: int) -> list[float]:
    found = []
    for _ in range(deaths):
        backoff.died(100.0, lived_s)
        found.append(backoff.remaining_s(100.0))
    return found


def test_the_backoff_doubles_to_thirty_seconds_and_forgets_after_a_stable_life() -> None:
    backoff = Backoff()
    assert backoff.remaining_s(0.0) == 0.0
    assert delays(backoff, 0.0, 9) == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert backoff.remaining_s(129.0) == 1.0
    assert backoff.remaining_s(131.0) == 0.0
    assert delays(backoff, 60.0, 1) == [0.0]


def test_a_server_that_had_been_ready_is_started_again_at_once_and_one_that_dies_on_is_not() -> None:
    backoff = Backoff()
    assert delays(backoff, 1.0, 4) == [0.0, 0.5, 1, 2]
    assert delays(backoff, 0.0, 1) == [4]
    backoff.proved()
    assert delays(backoff, 1.0, 2) == [0.0, 0.5]
    backoff.proved()
    assert delays(backoff, 0.0, 2) == [0.5, 1]


@pytest.mark.parametrize(
    ("code", "words"),
    [(1, "exit code 1"), (-signal.SIGKILL, "lack of memory"), (-signal.SIGSEGV, "SIGSEGV"), (-64, "signal 64")],
)
def test_an_exit_is_put_in_words(code: int, words: str) -> None:
    assert words in describe_exit(code)


# --- messages --------------------------------------------------------------------------------------------------------


def captured(name: str) -> Any:
    return json.loads((CAPTURES / name).read_text())


def messages(name: str) -> list[dict[str, Any]]:
    return [message for message in captured(name)["ws"] if isinstance(message, dict)]


def prompt_id_of(name: str) -> str:
    return next(message["data"]["prompt_id"] for message in messages(name) if message["type"] == "execution_start")


@pytest.mark.parametrize("name", ["02_with_audio.json", "10_save_image.json", "06_corrupt.json", "52_interrupt.json"])
def test_a_real_servers_messages_are_followed_to_the_end(name: str) -> None:
    progress = PromptProgress(prompt_id_of(name), {"1": 1.0, "2": 1.0})
    fractions = []
    for message in messages(name):
        assert not progress.changed.is_set() or message["type"] in ("status", "execution_start")
        progress.apply(message["type"], message["data"])
        fractions.append(progress.snapshot().fraction)
    assert progress.changed.is_set()
    assert fractions == sorted(fractions)
    if name.startswith(("02", "10")):
        assert fractions[-1] == 1.0


def test_other_peoples_messages_are_not_ours() -> None:
    progress = PromptProgress("not-this-one", {"1": 1.0, "2": 1.0})
    for message in messages("02_with_audio.json"):
        progress.apply(message["type"], message["data"])
    assert progress.last_message_s is None and not progress.changed.is_set()


def test_a_monitor_that_chatters_for_ever_is_no_progress() -> None:
    progress = PromptProgress("p", {"1": 1.0})
    progress.apply("crystools.monitor", {"cpu": 1})
    progress.apply("status", {"status": {}})
    assert progress.last_message_s is None


def test_what_a_reconnection_is_told_says_where_the_run_stands_and_is_no_progress() -> None:
    """A worker thread that is dead is told of too, each time anew."""
    progress = PromptProgress("p", {"1": 1.0})
    progress.apply("executing", {"node": "1"})
    assert progress.last_message_s is None and progress.snapshot().node_id == "1"


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("progress", {"prompt_id": "p", "value": "x", "max": 0}),
        ("progress_state", {"prompt_id": "p", "nodes": [1]}),
        ("progress_state", {"prompt_id": "p", "nodes": {"1": {"value": None, "max": None}}}),
        ("execution_cached", {"prompt_id": "p", "nodes": None}),
        ("executed", {"prompt_id": "p"}),
    ],
)
def test_messages_of_another_shape_do_no_harm(kind: str, data: dict[str, Any]) -> None:
    progress = PromptProgress("p", {"1": 1.0})
    progress.apply(kind, data)
    assert 0 <= progress.snapshot().fraction <= 1


# --- history ---------------------------------------------------------------------------------------------------------


def entry(outputs: Any, status: str = "success", *extra: Any) -> dict[str, Any]:
    found = [["execution_start", {}], *extra]
    return {"outputs": outputs, "status": {"status_str": status, "completed": status == "success", "messages": found}}


def item(name: str, kind: str = "output") -> dict[str, str]:
    return {"filename": name, "subfolder": "", "type": kind}


def test_files_are_found_under_any_key_and_nothing_else_is_taken_for_one() -> None:
    shown = {"gifs": [item("a.mp4")], "images": [item("b.png")], "animated": [True], "text": ["filename"], "n": 5}
    ending = read_ending(entry({"1": shown, "2": None, "3": {"x": [{"filename": 5}, {"filename": ""}]}}))
    assert [file.filename for file in ending.files] == ["a.mp4", "b.png"]
    assert ending.texts == {"1": ["filename"]}


def test_temporary_files_count_only_alone() -> None:
    both = {"1": {"images": [item("t.png", "temp"), item("o.png")]}}
    assert [file.filename for file in read_ending(entry(both)).files] == ["o.png"]
    alone = {"1": {"images": [item("t.png", "temp")]}}
    assert [file.filename for file in read_ending(entry(alone)).files] == ["t.png"]


def test_an_interruption_is_told_from_an_error() -> None:
    assert read_ending(entry({}, "error", ["execution_interrupted", {}])).interrupted
    failed = read_ending(
        entry({}, "error", ["execution_error", {"node_id": 5, "node_type": "N", "exception_message": "x\n"}])
    )
    assert failed.error is not None and (failed.error.node_id, failed.error.message) == ("5", "x")
    blocked = read_ending(entry({}, "success", ["execution_error", {"exception_type": "ExecutionBlocked"}]))
    assert blocked.success and blocked.error is None


@pytest.mark.parametrize("odd", [{}, {"status": None}, {"outputs": []}, {"status": {"messages": [1, ["x"]]}}])
def test_entries_of_another_shape_are_read_as_far_as_they_go(odd: dict[str, Any]) -> None:
    assert read_ending(odd).files == ()


@pytest.mark.parametrize(
    ("subfolder", "name"),
    [("../..", "x.png"), ("/etc", "passwd"), ("", "../x.png"), ("a", "link.png"), ("dirlink", "y.png"), ("", "a")],
)
def test_a_file_outside_the_directories_is_refused(tmp_path: Path, subfolder: str, name: str) -> None:
    root = tmp_path / "output"
    (root / "a").mkdir(parents=True)
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    for path in (tmp_path / "x.png", outside / "y.png"):
        path.write_bytes(b"x")
    (root / "a" / "link.png").symlink_to(tmp_path / "x.png")
    (root / "dirlink").symlink_to(outside)
    with pytest.raises((BadOutput, FileNotFoundError)):
        locate(OutputFile("1", name, subfolder, "output"), root)


def test_a_root_that_is_itself_a_link_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.png").write_bytes(b"x")
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert len(locate(OutputFile("1", "x.png", "", "output"), tmp_path / "root")) == 1


def test_a_numbered_series_is_all_its_files(tmp_path: Path) -> None:
    for index in (1, 2, 10):
        (tmp_path / f"s_{index:03}.png").write_bytes(b"x")
    (tmp_path / "s_x.png").write_bytes(b"x")
    found = locate(OutputFile("1", "s_%03d.png", "", "output"), tmp_path)
    assert [path.name for path in found] == ["s_001.png", "s_002.png", "s_010.png"]


# --- processes -------------------------------------------------------------------------------------------------------


def run(program: str, tmp_path: Path) -> DrainedProcess:
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        return DrainedProcess([sys.executable, "-c", program], cwd=tmp_path, environ=os.environ, log_fd=os.dup(null))
    finally:
        os.close(null)


def test_the_last_lines_are_kept_and_progress_bars_count_as_lines(tmp_path: Path) -> None:
    process = run("for i in range(1000): print(i)\nprint('10%\\r20%\\r30%', end='')", tmp_path)
    assert process.wait(20) == 0
    process.drained()
    assert process.lines(3) == ["10%", "20%", "30%"]
    assert len(process.lines()) == RING_LINES
    assert process.printed == 1003
    process.stop()


def test_the_end_is_seen_by_everyone_who_waits_for_it(tmp_path: Path) -> None:
    process = run("import os; os.kill(os.getpid(), 9)", tmp_path)
    assert [process.wait(20) for _ in range(3)] == [-9, -9, -9]
    process.stop()
    assert not Path(f"/proc/{process.pid}").exists()
    assert process.exit_code() == -9
    process.stop()


def test_a_process_that_ignores_the_polite_signal_is_killed(tmp_path: Path) -> None:
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    process = run(program, tmp_path)
    while not process.lines():
        assert process.wait(0.01) is None
    process.stop(grace_s=0.2)
    assert process.exit_code() == -9


@pytest.mark.parametrize("listed", [True, False])
def test_all_that_a_server_started_is_found_with_the_kernels_lists_and_without(
    monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    monkeypatch.setattr(family, "_LISTED", listed)
    with subprocess.Popen(
        ["sh", "-c", "sh -c 'sleep 60 & echo; wait' & wait"], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = list(family.below(process.pid))
        os.killpg(process.pid, signal.SIGKILL)
    assert len(found) == 2 and process.pid not in found
    assert list(family.below(process.pid)) == []
