"""The websocket goes, or falls silent, while the work goes on; and a dead server behind a silent one is found still."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.comfy_jobs import Bench, fault, picture, until
from tests.conftest_comfy import FAULTS, BuiltinServer
from tests.ws_proxy import before

Make = Callable[..., Bench]
ROOT = Path(__file__).parent.parent


class Veiled:
    """A handler whose own server stands behind the proxy, and the file that tells the proxy what to do."""

    def __init__(self, make: Make, path: Path, **settings: Any) -> None:
        self.mode = path / "mode"
        self.mode.write_text("honest")
        checkout = path / "ComfyUI"
        checkout.mkdir()
        (checkout / "main.py").write_text(
            f"import sys; from pathlib import Path; sys.path.insert(0, {str(ROOT)!r})\n"
            f"from tests.ws_proxy import behind\n"
            f"sys.exit(behind(sys.argv[1:], Path({str(self.mode)!r})))\n"
        )
        self.bench = make(path=str(checkout), python=sys.executable, args=f"--extra-nodes {FAULTS}", **settings)
        self.bench.succeeds({"workflow": picture()})
        self.bench.facts = [fact for fact in self.bench.facts if fact[0] == "comfy.started"]

    def said(self, word: str) -> bool:
        return any(word in str(fields) for _, fields in self.bench.facts)


def test_a_websocket_that_closes_for_good_in_a_run_does_not_end_the_work(bench: Make, tmp_path: Path) -> None:
    """The run is longer than the limit without progress, and nobody tells of any but the lines that it prints."""
    one = Veiled(bench, tmp_path, stuck_s=2.0)
    one.mode.write_text("close 3")
    one.bench.succeeds({"workflow": fault("FaultWorkUnseen", seconds=3, sign="print")})
    assert one.mode.read_text() == "refuse"
    assert one.said("websocket is gone")


@pytest.mark.parametrize("mode", ["swallow", pytest.param("greet", marks=pytest.mark.long)])
def test_a_silent_websocket_does_not_hide_a_result_that_history_has(bench: Make, tmp_path: Path, mode: str) -> None:
    """Open, and not a word of the prompt, nor of its end."""
    one = Veiled(bench, tmp_path, stuck_s=2.0)
    one.mode.write_text(mode)
    one.bench.handler._engine._live.stream.close()  # type: ignore[union-attr]
    one.bench.succeeds({"workflow": fault("FaultWorkUnseen", seconds=3, sign="print")})
    one.bench.succeeds({"workflow": picture("again")})


@pytest.mark.long
def test_a_silent_server_that_computes_is_left_to_compute(bench: Make, tmp_path: Path) -> None:
    """It prints nothing either: its CPU time is all that shows."""
    one = Veiled(bench, tmp_path, stuck_s=5.0)
    one.mode.write_text("close 3")
    one.bench.succeeds({"workflow": fault("FaultWorkUnseen", seconds=12, sign="burn")})


@pytest.mark.long
@pytest.mark.parametrize("mode", ["swallow", "refuse"])
def test_a_dead_worker_thread_is_found_behind_a_websocket_that_tells_nothing(
    bench: Make, tmp_path: Path, mode: str
) -> None:
    """No line, no CPU time, no word: nothing works there, whatever the page says."""
    one = Veiled(bench, tmp_path, stuck_s=2.0, cancel_grace_s=0.3)
    one.mode.write_text(mode)
    one.bench.handler._engine._live.stream.close()  # type: ignore[union-attr]
    failure = one.bench.fails({"workflow": fault("FaultSysExit")})
    assert (failure.code, failure.retryable) == ("comfy.stuck", True)
    one.mode.write_text("honest")
    one.bench.succeeds({"workflow": picture("again")})


@pytest.mark.long
def test_a_node_that_spins_and_says_nothing_on_a_good_websocket_is_stuck(bench: Make) -> None:
    """So does a GPU that hangs, whose process waits for it at full speed: what would be heard is believed."""
    failure = bench(stuck_s=3.0).fails({"workflow": fault("FaultWorkUnseen", seconds=60, sign="burn")})
    assert (failure.code, failure.retryable) == ("comfy.stuck", True)


@pytest.mark.long
def test_a_websocket_that_fell_silent_is_made_again_and_tells_of_the_rest(bench: Make, tmp_path: Path) -> None:
    """Under the same id: the messages of a prompt go to the one that it was posted with."""
    one = Veiled(bench, tmp_path, stuck_s=8.0)

    def deafen(name: str, _: dict[str, Any]) -> None:
        if name == "comfy.queued":
            one.mode.write_text("swallow")

    one.bench.heard = deafen
    one.bench.reports.clear()
    stream = one.bench.handler._engine._live.stream  # type: ignore[union-attr]
    stream_id, connected = stream.client_id, stream._thread

    def mend() -> None:
        until(lambda: stream._thread is not connected)
        one.mode.write_text("honest")

    mender = threading.Thread(target=mend)
    mender.start()
    one.bench.succeeds({"workflow": fault("TestSleep", seconds=10, steps=100)})
    mender.join()
    assert stream.client_id == stream_id
    assert len({fraction for fraction, phase in one.bench.reports if phase == "step"}) > 3


@pytest.mark.long
def test_a_server_elsewhere_without_a_websocket_gets_more_time_and_not_for_ever(
    bench: Make, builtin_server: BuiltinServer, tmp_path: Path
) -> None:
    """Nothing of it can be seen but its queue."""
    mode = tmp_path / "mode"
    mode.write_text("refuse")
    with before(builtin_server.port, mode) as url:
        one = bench(url=url, stuck_s=1.5)
        one.succeeds({"workflow": fault("FaultWorkUnseen", seconds=4, sign="none")})
        failure = one.fails({"workflow": fault("FaultWorkUnseen", seconds=60, sign="none")})
    assert (failure.code, failure.retryable) == ("comfy.stuck", True)
