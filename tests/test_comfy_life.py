"""A server's life between tasks: warmed up, put to rest, asked for its memory, somebody else's, on a taken port."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.comfy_jobs import Bench, fault, gone, picture, until
from tests.conftest_comfy import BuiltinServer, free_port
from wan2gp.comfy_sidecar.about import failed_custom_nodes, video_helper_version
from wan2gp.config import ConfigError, load_config
from wan2gp.handlers.api import TaskFailure
from wan2gp.protocol import Cancelled

Make = Callable[..., Bench]
SERVE = "from wan2gp.comfy_sidecar.builtin.__main__ import main; sys.exit(main(sys.argv[1:]))"
TABLE = """
Cannot import /opt/ComfyUI/custom_nodes/broken-nodes module for custom nodes: No module named 'insightface'

Import times for custom nodes:
   0.0 seconds: /opt/ComfyUI/custom_nodes/websocket_image_save.py
   0.0 seconds (IMPORT FAILED): /opt/ComfyUI/custom_nodes/broken-nodes
   0.3 seconds (PRESTARTUP FAILED): /opt/ComfyUI/custom_nodes/early one.py
"""


def graph_file(tmp_path: Path, content: Any) -> str:
    path = tmp_path / "warm.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def said(one: Bench, name: str) -> list[dict[str, Any]]:
    return [fields for known, fields in one.facts if known == name]


# --- warm-up ---


def test_a_new_server_runs_the_warm_up_workflow_and_keeps_nothing_of_it(bench: Make, tmp_path: Path) -> None:
    one = bench(warmup_workflow=graph_file(tmp_path, picture("models")))
    one.handler.warm()
    assert one.names()[-4:] == ["comfy.ready", "comfy.warming_up", "comfy.warmed_up", "comfy.started_ok"]
    assert not [path for path in one.engine.rglob("*.png")]
    assert len(one.succeeds({"workflow": picture()}).artifacts) == 1


def test_every_life_of_the_server_is_warmed_up_once(bench: Make, tmp_path: Path) -> None:
    one = bench(warmup_workflow=graph_file(tmp_path, picture("models")))
    for _ in range(2):
        one.succeeds({"workflow": picture()})
    psutil.Process(one.server_pid()).kill()
    until(one.knows_of_the_end)
    one.succeeds({"workflow": picture()})
    assert one.names().count("comfy.warmed_up") == one.names().count("comfy.started") == 2


@pytest.mark.long
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "warm.json"),
        ({"nodes": [], "links": []}, "API"),
        ({"1": {"class_type": "NoSuchNode", "inputs": {}}}, "refused"),
        (fault("TestRaise", message="out of tune", kind="ValueError"), "out of tune"),
        (fault("FaultCrash", kind="abort"), "SIGABRT"),
        (fault("TestRaise", kind="KeyboardInterrupt"), "worker thread ended"),
    ],
)
def test_a_warm_up_that_fails_costs_a_warning_and_no_task(
    bench: Make, tmp_path: Path, content: Any, reason: str
) -> None:
    one = bench(warmup_workflow=graph_file(tmp_path, content))
    one.handler.warm()
    (failed,) = said(one, "comfy.warm_up_failed")
    assert reason in failed["reason"]
    assert one.states[-1][0] == "ready"
    one.succeeds({"workflow": picture()})


def test_a_warm_up_file_that_is_not_there_is_named(bench: Make, tmp_path: Path) -> None:
    one = bench(warmup_workflow=str(tmp_path / "nowhere.json"))
    one.succeeds({"workflow": picture()})
    assert "nowhere.json" in said(one, "comfy.warm_up_failed")[0]["reason"]


@pytest.mark.long
def test_a_warm_up_without_end_is_ended(bench: Make, tmp_path: Path) -> None:
    endless = fault("TestSleep", seconds=600, steps=6000)
    one = bench(warmup_workflow=graph_file(tmp_path, endless), start_timeout_s=4.0)
    one.handler.warm()
    assert "COMFY_START_TIMEOUT_S" in said(one, "comfy.warm_up_failed")[0]["reason"]
    one.succeeds({"workflow": picture()})
    assert one.names().count("comfy.started") == 1


@pytest.mark.long
def test_a_warm_up_that_silently_ends_the_worker_thread_spoils_no_task(bench: Make, tmp_path: Path) -> None:
    """SystemExit leaves no word in the log: the prompt runs for ever, and so would whatever comes behind it."""
    one = bench(warmup_workflow=graph_file(tmp_path, fault("FaultSysExit")), start_timeout_s=3.0)
    one.succeeds({"workflow": picture()})
    assert one.names().count("comfy.started") == 2
    assert one.names().count("comfy.warm_up_failed") == 1


def test_a_task_cancelled_during_the_warm_up_ends_both(bench: Make, tmp_path: Path) -> None:
    """The user who cancelled waits for nothing; the server stays, and its queue is empty."""
    endless = fault("TestSleep", seconds=600, steps=6000)
    one = bench(warmup_workflow=graph_file(tmp_path, endless))
    one.heard = lambda name, _: one.cancel.set() if name == "comfy.warming_up" else None
    assert isinstance(one.run({"workflow": picture()}), Cancelled)
    one.cancel.clear()
    one.succeeds({"workflow": picture()})
    assert one.names().count("comfy.started") == one.names().count("comfy.warming_up") == 1


# --- idle stop and free ---


def test_an_idle_server_gives_the_gpu_back_and_the_next_task_starts_it(bench: Make) -> None:
    one = bench(idle_stop_s=0.3)
    one.succeeds({"workflow": picture()})
    pid = one.server_pid()
    until(lambda: "comfy.idle_stopped" in one.names())
    assert gone(pid)
    until(lambda: one.states[-1][0] == "stopped")
    assert "idle for 0.3 s" in one.states[-1][1]["cause"]
    one.succeeds({"workflow": picture()})
    assert one.names().count("comfy.restarting") == 0  # nothing failed: no back-off


@pytest.mark.long
def test_a_long_task_is_not_idleness(bench: Make) -> None:
    one = bench(idle_stop_s=0.3)
    one.graph({**fault("TestSleep", seconds=2, steps=20), **{f"9{key}": node for key, node in _shifted().items()}})
    assert one.names().count("comfy.started") == 1
    assert one.names().index("comfy.completed") < _index(one, "comfy.idle_stopped")


def _shifted() -> dict[str, Any]:
    graph = picture()
    graph["2"]["inputs"]["images"] = ["91", 0]
    return graph


def _index(one: Bench, name: str) -> int:
    until(lambda: name in one.names())
    return one.names().index(name)


def test_unloading_asks_the_server_and_starts_none(bench: Make) -> None:
    one = bench()
    one.handler.unload()
    assert one.facts == []
    one.succeeds({"workflow": picture()})
    one.handler.unload()
    assert one.names()[-1] == "comfy.freed"
    one.succeeds({"workflow": picture()})


def test_a_server_that_cannot_be_asked_is_a_warning(bench: Make) -> None:
    one = bench()
    one.succeeds({"workflow": picture()})
    with one.handler._engine.turn():  # the watcher would notice the death first
        psutil.Process(one.server_pid()).kill()
        until(one.knows_of_the_end)
        one.handler._engine.free()
    assert one.names()[-1] == "comfy.log_warning"


# --- somebody else's ---


def test_an_external_server_that_dies_in_a_run_is_a_retryable_error_that_says_whose_it_is(
    bench: Make, builtin_server: BuiltinServer
) -> None:
    one = bench(url=builtin_server.url, unresponsive_s=1.0)

    def kill(name: str, _: Any) -> None:
        if name == "comfy.queued":
            threading.Timer(0.3, builtin_server.process.kill).start()

    one.heard = kill
    failure = one.fails({"workflow": fault("TestSleep", seconds=60, steps=6000)})
    assert (failure.code, failure.retryable, failure.engine_down) == ("comfy.unresponsive", True, False)
    assert "external server (COMFY_URL)" in failure.message
    assert said(one, "comfy.started") == []
    assert one.states[-1][0] == "failed" and "not ours to restart" in one.states[-1][1]["whose"]


def test_an_external_server_that_died_between_two_tasks_costs_none_and_may_come_back(
    bench: Make,
    builtin_server: BuiltinServer,
    start_builtin: Callable[..., BuiltinServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wan2gp.handlers.comfy_external.PATIENCE_S", 0.3)
    one = bench(url=builtin_server.url)
    one.succeeds({"workflow": picture()})
    builtin_server.process.kill()
    builtin_server.process.wait()
    failure = one.fails({"workflow": picture()})
    assert (failure.code, failure.engine_down) == ("comfy.not_ready", True)
    assert "external server (COMFY_URL)" in failure.message
    start_builtin(port=builtin_server.port)
    one.succeeds({"workflow": picture()})
    assert said(one, "comfy.started") == []


def test_the_end_of_an_idle_external_server_is_seen_in_status(
    bench: Make,
    builtin_server: BuiltinServer,
    start_builtin: Callable[..., BuiltinServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wan2gp.handlers.comfy_external.LOOK_S", 0.1)
    one = bench(url=builtin_server.url)
    one.handler.warm()
    assert one.states[-1][0] == "ready"
    builtin_server.process.kill()
    builtin_server.process.wait()
    until(lambda: one.states[-1][0] == "failed")
    assert said(one, "comfy.external_lost")
    start_builtin(port=builtin_server.port)
    until(lambda: one.states[-1][0] == "ready")


def test_an_external_server_is_never_stopped_for_idleness(bench: Make, builtin_server: BuiltinServer) -> None:
    one = bench(url=builtin_server.url, idle_stop_s=0.1)
    result = one.succeeds({"workflow": picture()})
    assert result.engine["external"] is True
    one.handler.close()
    assert builtin_server.process.poll() is None
    assert builtin_server.get("/queue") == {"queue_running": [], "queue_pending": []}


# --- the port ---


def test_another_program_on_the_port_is_not_even_spoken_to(bench: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        one = bench(port=port)
        one.succeeds({"workflow": picture()})
        other.settimeout(0)
        with pytest.raises(BlockingIOError):
            other.accept()
    assert one.states[-1][1]["port"] != port


def test_an_old_connection_on_the_port_does_not_drive_us_away(bench: Make) -> None:
    """A server that was killed leaves its port with connections in TIME_WAIT: free for us all the same."""
    port = free_port()
    one = bench(port=port)
    one.succeeds({"workflow": picture()})
    psutil.Process(one.server_pid()).send_signal(signal.SIGKILL)
    until(one.knows_of_the_end)
    one.succeeds({"workflow": picture()})
    assert [detail["port"] for state, detail in one.states if state == "ready"] == [port, port]


# --- what it says of itself ---


def test_custom_nodes_that_did_not_load_are_in_status_however_much_was_printed_since(
    bench: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "ComfyUI"
    folder.mkdir()
    noise = "[print('line', n) for n in range(1000)]"
    (folder / "main.py").write_text(f"import sys\nprint({TABLE!r})\n{noise}\nsys.stdout.flush()\n{SERVE}\n")
    one = bench(path=str(folder), args="")
    one.handler.warm()
    assert one.states[-1][1]["custom_nodes_failed"] == [
        "broken-nodes (No module named 'insightface')",
        "early one.py",
    ]
    failure = one.fails({"workflow": {"1": {"class_type": "FaceSwap", "inputs": {}}}})
    assert "FaceSwap" in failure.message and "broken-nodes (No module named 'insightface')" in failure.message


def test_a_server_without_a_table_has_no_failed_nodes() -> None:
    assert failed_custom_nodes([]) == ()
    assert failed_custom_nodes(TABLE.splitlines()[:5]) == ()
    assert [str(node) for node in failed_custom_nodes(["IMPORT FAILED: nodes_audio.py"])] == ["nodes_audio.py"]


def test_a_result_records_what_made_it(bench: Make) -> None:
    engine = bench().succeeds({"workflow": picture()}).engine
    assert engine["name"] == "builtin" and engine["version"] and engine["python"].count(".") == 2
    assert engine["device"] == "cpu" and "torch" in engine and engine["prompt_id"]


def test_the_video_helpers_version_is_read_from_its_checkout(tmp_path: Path) -> None:
    assert video_helper_version(tmp_path) == ""
    folder = tmp_path / "custom_nodes" / "ComfyUI-VideoHelperSuite"
    folder.mkdir(parents=True)
    assert video_helper_version(tmp_path) == ""
    (folder / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1.7.9"\n')
    assert video_helper_version(tmp_path) == "1.7.9"


# --- the configuration ---


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("COMFY_ARGS", "--cpu 'unclosed", "mend its quotes"),
        ("COMFY_URL", "comfy.example.com:8188", "http://10.0.0.7:8188"),
        ("COMFY_URL", "http://", "http://10.0.0.7:8188"),
    ],
)
def test_settings_that_no_server_could_use_are_found_at_start_up(name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(environ={name: value})
    (problem,) = caught.value.problems
    assert problem.startswith(name) and words in problem


def test_a_warm_up_file_that_is_not_there_is_told_at_start_up_and_stops_nothing(tmp_path: Path) -> None:
    """It may lie on a volume that is mounted later."""
    config = load_config(environ={"COMFY_WARMUP_WORKFLOW": str(tmp_path / "warm.json")})
    assert "warm.json is no file now" in config.warnings[0]


def test_flags_in_the_file_may_be_a_list(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[comfy]\nargs = ["--cpu", "--extra-model-paths-config", "/a b/c.yaml"]\n')
    assert load_config(environ={"WAN2GP_CONFIG": str(file)}).comfy_args.endswith("'/a b/c.yaml'")


def test_warming_an_external_server_that_is_not_there_raises(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan2gp.handlers.comfy_external.PATIENCE_S", 0.2)
    with pytest.raises(TaskFailure, match="does not answer"):
        bench(url=f"http://127.0.0.1:{free_port()}").handler.warm()
