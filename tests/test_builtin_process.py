"""The built-in engine as a server: its queue, its cache, its clients, and every way in which it can go wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.builtin_prompts import FRAMES, Probe, fault, made, saved_image, vhs

if TYPE_CHECKING:
    from tests.conftest_comfy import BuiltinServer


def test_new_bytes_under_the_old_name_run_again(server: BuiltinServer) -> None:
    first = made(server, vhs({"frame_load_cap": 2}))
    assert made(server, vhs({"frame_load_cap": 2})) == first
    shutil.copy(server.input / "input_noaudio.mp4", server.input / "input.mp4")
    assert made(server, vhs({"frame_load_cap": 2})).name == "out_00002.mp4"


@pytest.mark.parametrize(
    ("flags", "names"),
    [((), ["a1", "a1", "b1", "a2"]), (("--cache-none",), ["a1", "a2", "b1", "a3"]),
     (("--cache-lru", "10"), ["a1", "a1", "b1", "a1"])],
)  # fmt: skip
def test_cache_flags(start_builtin: Callable[..., BuiltinServer], flags: tuple[str, ...], names: list[str]) -> None:
    """91: A, A again, B, A again."""
    server = start_builtin(*flags)
    prompts = [saved_image(1, "a"), saved_image(1, "a"), saved_image(2, "b"), saved_image(1, "a")]
    entries = [server.run(prompt)["outputs"]["2"]["images"][0]["filename"] for prompt in prompts]
    assert entries == [f"{name[0]}_0000{name[1]}_.png" for name in names]


def test_interrupted_encoding_leaves_a_short_playable_file(server: BuiltinServer) -> None:
    """57"""
    with server.listen("c") as listener:
        server.post(vhs(loop_count=100, filename_prefix="cut"), client_id="c", prompt_id="cut")
        listener.until("progress", node="2", value=20)
        server.call("POST", "/interrupt", json={"prompt_id": "cut"})
        assert listener.until("executing", node=None)[-3]["type"] == "execution_interrupted"
    assert server.get("/history/cut")["cut"]["outputs"] == {}
    assert 0 < len(Probe(server.output / "cut_00001.mp4").greys) < FRAMES * 101


def test_websocket_without_id_is_given_one_and_features_are_answered(server: BuiltinServer) -> None:
    """64 and 18, and the same under /api (99)"""
    with server.listen(path="/api/ws") as listener:
        sid = listener.read()["data"]["sid"]
        assert len(sid) == 32
        flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
        listener.socket.send(json.dumps(flags))
        assert listener.read() == {"type": "feature_flags", "data": server.get("/features")}
        server.post(saved_image(6), client_id=sid)
        listener.until("executing", node=None)


def test_outputs_that_finished_before_an_error_are_kept(server: BuiltinServer) -> None:
    """50b"""
    raising = {"message": "late", "kind": "ValueError", "nonce": 1, "after": ["1", 0]}
    prompt = fault("TestSleep", seconds=0, steps=1) | {"2": {"class_type": "TestRaise", "inputs": raising}}
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "error"
    assert entry["outputs"] == {"1": {"text": ["slept 0.0"]}}


@pytest.mark.parametrize(("how", "size"), [("absent", None), ("truncated", 104), ("empty", 0)])
def test_success_is_no_proof_of_a_file(server: BuiltinServer, how: str, size: int | None) -> None:
    entry = server.run(fault("FaultLieAboutSuccess", how=how, filename=f"{how}.mp4"))
    assert entry["status"]["status_str"] == "success"
    path = Path(entry["outputs"]["1"]["gifs"][0]["fullpath"])
    assert (path.stat().st_size if path.exists() else None) == size


def test_success_without_output(server: BuiltinServer) -> None:
    entry = server.run(fault("FaultNoOutput"))
    assert (entry["status"]["status_str"], entry["outputs"], entry["meta"]) == ("success", {}, {})


def test_free_drops_the_cache(start_builtin: Callable[..., BuiltinServer]) -> None:
    """68: by the worker, after the prompt that runs. The larger cache outlives the prompt between."""
    server = start_builtin("--cache-lru", "10")
    first = server.run(saved_image(1, "a"))["outputs"]
    assert server.run(saved_image(1, "a"))["outputs"] == first
    server.post(fault("TestSleep", seconds=30, steps=300), prompt_id="busy")
    server.until_running("busy")
    assert server.call("POST", "/free", json={"free_memory": True}).text == ""
    server.post(saved_image(1, "a"), prompt_id="again")
    server.call("POST", "/interrupt", json={"prompt_id": "busy"})
    assert server.finished("again")["outputs"] != first


def test_memory_that_a_node_takes_is_reported(server: BuiltinServer) -> None:
    entry = server.run(fault("FaultHogMemory", mib=8, hold=True))
    assert entry["outputs"]["1"]["text"] == ["allocated 8 MiB hold=True"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "code"),
    [("segv", -signal.SIGSEGV), ("abort", -signal.SIGABRT), ("exit3", 3), ("sigkill", -signal.SIGKILL)],
)
def test_crash_of_a_node_ends_the_process(builtin_server: BuiltinServer, kind: str, code: int) -> None:
    """83"""
    builtin_server.post(fault("FaultCrash", kind=kind))
    assert builtin_server.wait_exit() == code


def test_sys_exit_of_a_node_leaves_a_server_that_runs_nothing(builtin_server: BuiltinServer) -> None:
    """80"""
    builtin_server.post(fault("FaultSysExit", code=1), prompt_id="dead")
    builtin_server.post(saved_image(), prompt_id="never")
    builtin_server.until_running("dead")
    queue = builtin_server.get("/queue")
    assert [[item[1] for item in queue[key]] for key in ("queue_running", "queue_pending")] == [
        ["dead"],
        ["never"],
    ]
    assert builtin_server.call("GET", "/system_stats").status_code == 200


def test_frozen_process_neither_answers_nor_exits(builtin_server: BuiltinServer) -> None:
    builtin_server.post(fault("FaultFreezeServer"), prompt_id="ice")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if Path(f"/proc/{builtin_server.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            break
        time.sleep(0.01)
    os.kill(builtin_server.process.pid, signal.SIGCONT)
    assert builtin_server.finished("ice")["status"]["status_str"] == "success"


def test_ui_that_is_no_json_ends_the_server_when_a_client_listens(builtin_server: BuiltinServer) -> None:
    """82 and 82b"""
    builtin_server.post(fault("FaultUiNotJson"), prompt_id="bad")
    builtin_server.run(saved_image(), prompt_id="good")
    assert builtin_server.call("GET", "/history").status_code == 500
    builtin_server.call("POST", "/history", json={"delete": ["bad"]})
    assert list(builtin_server.get("/history")) == ["good"]
    with builtin_server.listen("c"):
        builtin_server.post(fault("FaultUiNotJson"), client_id="c")
        assert builtin_server.wait_exit() == 1


def test_sigterm_kills_and_sigint_cleans_up(start_builtin: Callable[..., BuiltinServer]) -> None:
    """87"""
    killed, asked = start_builtin(), start_builtin()
    for server in (killed, asked):
        (server.temp / "left.txt").write_text("x")
    killed.process.send_signal(signal.SIGTERM)
    asked.post(fault("TestSleep", seconds=30, steps=300))
    asked.process.send_signal(signal.SIGINT)
    assert (killed.wait_exit(), asked.wait_exit()) == (-signal.SIGTERM, 0)
    assert "Stopped server" in asked.log
    assert (killed.temp.exists(), asked.temp.exists()) == (True, False)


def test_temp_is_emptied_at_the_start_and_a_taken_port_is_exit_1(
    start_builtin: Callable[..., BuiltinServer],
) -> None:
    """85 and 90"""
    first = start_builtin()
    (first.temp / "left.txt").write_text("x")
    log = first.log
    second = start_builtin(path=first.path, port=first.port, wait=False)
    assert second.wait_exit() == 1
    assert not (first.temp / "left.txt").exists()
    assert "Starting server" in log
    assert f"To see the GUI go to: http://127.0.0.1:{first.port}" in log
    assert f"error while attempting to bind on address ('127.0.0.1', {first.port})" in second.log
    assert first.get("/prompt") == {"exec_info": {"queue_remaining": 0}}


@pytest.mark.parametrize("flags", [("--nope",), ("--port", "abc"), ("--user-directory", "/nope")])
def test_bad_flag_is_exit_2(start_builtin: Callable[..., BuiltinServer], flags: tuple[str, ...]) -> None:
    """88"""
    assert start_builtin(*flags, wait=False).wait_exit() == 2


def test_flags_of_a_supervisor_are_accepted(start_builtin: Callable[..., BuiltinServer]) -> None:
    flags = "--cpu --verbose ERROR --dont-print-server --disable-metadata --disable-api-nodes --reserve-vram 1"
    flags += " --disable-all-custom-nodes --whitelist-custom-nodes a b --preview-method none --max-upload-size 1"
    server = start_builtin(*flags.split(), "--database-url", "sqlite:////x.db", "--enable-cors-header")
    assert server.log == ""
    assert server.get("/features")["max_upload_size"] == 1 << 20
    too_big = server.call("POST", "/prompt", data=b"x" * (2 << 20))
    assert too_big.status_code == 413


def test_foreign_origin_is_refused(server: BuiltinServer) -> None:
    """96"""
    for origin, status in [("http://evil.example", 403), (server.url, 200), ("http://localhost:1", 403)]:
        assert server.call("GET", "/prompt", headers={"Origin": origin}).status_code == status
    given = {"Origin": "http://evil.example", "Host": "comfy.invalid"}
    assert server.call("GET", "/prompt", headers=given).status_code == 200


def test_requests_are_answered_while_a_node_holds_the_worker(server: BuiltinServer) -> None:
    with server.listen("c") as listener:
        server.post(fault("TestSleep", seconds=30, steps=300), client_id="c", prompt_id="busy")
        listener.until("executing", node="1")
        for _ in range(5):
            assert server.get("/prompt") == {"exec_info": {"queue_remaining": 1}}
        assert server.get("/history/busy") == {}
        server.call("POST", "/interrupt", json={"prompt_id": "busy"})
        listener.until("executing", node=None)


def test_cached_output_node_that_shows_nothing_is_told_with_null(server: BuiltinServer) -> None:
    """29"""
    prompt = fault("FaultNoOutput")
    server.run(prompt)
    with server.listen("c") as listener:
        server.post(prompt, client_id="c")
        seen = listener.until("executing", node=None)
    assert [message["data"]["output"] for message in seen if message["type"] == "executed"] == [None]
