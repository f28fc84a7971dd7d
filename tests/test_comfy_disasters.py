"""ComfyUI dies, hangs, lies dead with a living face: the task gets a cause, the next task a server that works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.comfy_jobs import Bench, fault, gone, make_video, picture, spec_row, until
from wan2gp.protocol import Cancelled

Make = Callable[..., Bench]


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "words"),
    [("exit3", "exit code 3"), ("segv", "SIGSEGV"), ("sigkill", "lack of memory")],
)
def test_a_server_that_dies_under_a_prompt_is_the_cause_and_is_replaced(bench: Make, kind: str, words: str) -> None:
    one = bench()
    failure = one.fails({"workflow": fault("FaultCrash", kind=kind)})
    assert (failure.code, failure.retryable) == ("comfy.exited", True)
    assert words in failure.message and "got prompt" in failure.message
    assert gone(one.server_pid())
    one.succeeds({"workflow": picture()})
    assert one.names().count("comfy.started") == 2
    assert one.names().count("comfy.first_task") == 1
    delays = [fields["delay_s"] for name, fields in one.facts if name == "comfy.restarting"]
    assert delays == [0.0]


def test_a_server_killed_while_idle_is_noticed_and_the_next_task_gets_another(bench: Make) -> None:
    one = bench()
    one.succeeds({"workflow": picture()})
    os.kill(one.server_pid(), signal.SIGKILL)
    until(lambda: "comfy.stopped" in one.names())
    assert one.states[-1][0] == "stopped" and "SIGKILL" in one.states[-1][1]["cause"]
    one.succeeds({"workflow": picture()})


def test_a_frozen_server_is_replaced(bench: Make) -> None:
    """It takes connections and answers nothing."""
    one = bench(unresponsive_s=2.0)
    failure = one.fails({"workflow": fault("FaultFreezeServer")})
    assert (failure.code, failure.retryable) == ("comfy.unresponsive", True)
    assert gone(one.server_pid())
    one.succeeds({"workflow": picture()})


@pytest.mark.long
def test_a_dead_worker_thread_behind_a_healthy_page_is_found(bench: Make) -> None:
    """HTTP answers, the prompt stays running for ever, an interrupt does nothing: only missing progress shows it."""
    one = bench(stuck_s=2.0, cancel_grace_s=0.3)
    failure = one.fails({"workflow": fault("FaultSysExit")})
    assert (failure.code, failure.retryable) == ("comfy.stuck", True)
    assert gone(one.server_pid())
    one.succeeds({"workflow": picture()})


def test_a_worker_thread_that_dies_aloud_is_found_at_once(bench: Make) -> None:
    one = bench(stuck_s=0)
    failure = one.fails({"workflow": fault("TestRaise", kind="KeyboardInterrupt")})
    assert (failure.code, failure.retryable) == ("comfy.stuck", True)
    assert "worker thread" in failure.message
    assert gone(one.server_pid())
    one.succeeds({"workflow": picture()})


@pytest.mark.long
def test_a_connection_that_breaks_in_a_run_is_made_again(bench: Make) -> None:
    """Deaf, the rest of the run would look stuck."""
    one = bench()
    one.succeeds({"workflow": picture()})

    def cut(name: str, _: dict[str, Any]) -> None:
        if name == "comfy.queued":
            live = one.handler._engine._live
            assert live is not None
            cut_off.append(live.stream.client_id)
            live.stream.close()

    cut_off: list[str] = []
    one.heard = cut
    one.reports.clear()
    one.run({"workflow": fault("TestSleep", seconds=4, steps=40)})
    assert len(cut_off) == 1
    assert len({fraction for fraction, phase in one.reports if phase == "step"}) > 3


def test_a_server_that_swells_is_replaced_between_tasks(bench: Make) -> None:
    one = bench(memory_bytes=1)
    for _ in range(2):
        one.succeeds({"workflow": picture()})
    assert one.names().count("comfy.started") == 2
    assert [fields["verdict"] for name, fields in one.facts if name == "comfy.verdict"] == ["bloated"] * 2


@pytest.mark.long
def test_a_server_that_froze_while_idle_is_replaced(bench: Make) -> None:
    one = bench(unresponsive_s=2.0)
    one.handler.warm()
    pid = one.server_pid()
    os.kill(pid, signal.SIGSTOP)
    assert one.fails({"workflow": picture()}).code == "comfy.unresponsive"
    assert gone(pid)
    one.succeeds({"workflow": picture()})


def test_a_server_that_dies_during_the_download_costs_nothing(bench: Make, tmp_path: Path) -> None:
    one = bench(make_video(tmp_path / "in.mp4"))
    one.handler.warm()

    def kill() -> None:
        os.kill(one.server_pid(), signal.SIGKILL)
        until(one.knows_of_the_end)

    one.obtained = kill
    one.succeeds(spec_row())
    assert one.names().count("comfy.started") == 2


@pytest.mark.long
def test_a_stuck_prompt_that_can_be_interrupted_costs_no_restart(bench: Make) -> None:
    """One step takes longer than the limit."""
    one = bench(stuck_s=2.0, cancel_grace_s=30.0)
    one.run({"workflow": picture()})
    failure = one.fails({"workflow": fault("TestSleep", seconds=7, steps=2)})
    assert failure.code == "comfy.stuck"
    assert "node 1 (TestSleep)" in failure.message
    one.succeeds({"workflow": picture()})
    assert one.names().count("comfy.started") == 1


def test_a_prompt_that_takes_longer_than_allowed_is_ended(bench: Make) -> None:
    one = bench(run_timeout_s=0.5)
    failure = one.fails({"workflow": fault("TestSleep", seconds=60, steps=6000)})
    assert (failure.code, failure.retryable) == ("comfy.stuck", False)
    assert "COMFY_RUN_TIMEOUT_S" in failure.message


def test_a_node_whose_result_is_no_json_takes_the_server_down_but_is_the_graphs_fault(bench: Make) -> None:
    one = bench()
    failure = one.fails({"workflow": fault("FaultUiNotJson")})
    assert (failure.code, failure.retryable) == ("comfy.node_failed", False)
    one.succeeds({"workflow": picture()})


def test_a_cancelled_prompt_that_cannot_be_interrupted_takes_the_server_along(bench: Make) -> None:
    one = bench(cancel_grace_s=0.3)
    one.succeeds({"workflow": picture()})
    pid = one.server_pid()
    one.heard = lambda name, _: one.cancel.set() if name == "comfy.queued" else None
    assert isinstance(one.run({"workflow": fault("TestSleep", seconds=60, steps=0)}), Cancelled)
    assert gone(pid)
    one.cancel.clear()
    one.heard = None
    one.succeeds({"workflow": picture()})


@pytest.mark.long
def test_cancelling_a_frozen_server_ends_too(bench: Make) -> None:
    one = bench(cancel_grace_s=0.3)
    one.succeeds({"workflow": picture()})
    pid = one.server_pid()

    def freeze(name: str, _: dict[str, Any]) -> None:
        if name == "comfy.queued":
            os.kill(pid, signal.SIGSTOP)
            one.cancel.set()

    one.heard = freeze
    assert isinstance(one.run({"workflow": fault("TestSleep", seconds=60, steps=6000)}), Cancelled)
    assert gone(pid)


def test_an_idle_server_is_stopped_after_its_time(bench: Make) -> None:
    one = bench(idle_stop_s=0.2)
    one.succeeds({"workflow": picture()})
    until(lambda: one.states[-1][0] == "stopped")
    assert gone(one.server_pid())
    one.succeeds({"workflow": picture()})
    assert "comfy.restarting" not in one.names()


def test_close_leaves_no_process_and_no_temp_directory(bench: Make) -> None:
    one = bench()
    one.succeeds({"workflow": picture()})
    family = [one.server_pid(), *(child.pid for child in psutil.Process(one.server_pid()).children(recursive=True))]
    one.handler.close()
    one.handler.close()
    assert all(gone(pid) for pid in family)
    assert list((one.engine / "temp").iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("comfy-")]


def test_the_server_dies_with_a_handler_that_is_killed(tmp_path: Path) -> None:
    """Nobody is left to stop it: the kernel does."""
    program = f"""
import sys, time
from pathlib import Path
from tests.comfy_jobs import Bench, picture
one = Bench(Path({str(tmp_path)!r}) / "bench", {{"path": "builtin", "port": 0}})
one.succeeds({{"workflow": picture()}})
print("PID", one.server_pid(), flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    ) as handler:
        assert handler.stdout is not None
        pid = next(int(line.split()[1]) for line in handler.stdout if line.startswith("PID"))
        handler.kill()
        until(lambda: gone(pid))
