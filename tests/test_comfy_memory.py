"""ComfyUI runs out of memory, aloud, silently, by being killed, by swelling: freed, started anew, or told apart."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.comfy_jobs import Bench, fault, gone, picture, until
from tests.conftest_comfy import FAULTS, free_port
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.comfy_killed import REMEMBERED, KilledTasks
from wan2gp.processes import held
from wan2gp.protocol import Failed

Make = Callable[..., Bench]
MIB = 1 << 20


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One handler for the tests whose server is as good at the end as at the beginning."""
    path = tmp_path_factory.mktemp("shared")
    one = Bench(path / "bench", {"path": "builtin", "port": free_port(), "args": f"--extra-nodes {FAULTS}"})
    one.handler.warm()
    yield one
    one.handler.close()


@pytest.fixture
def warm(shared: Bench) -> Bench:
    """As new, but for its server: no node of it has failed, and what it said is forgotten."""
    shared.facts = [fact for fact in shared.facts if fact[0] == "comfy.started"][-1:]
    for mark in (shared.engine / "input").glob("failed-*"):
        mark.unlink()
    return shared


def test_out_of_memory_that_passes_when_memory_is_freed_ends_well_in_the_same_server(warm: Bench) -> None:
    outcome = warm.succeeds({"workflow": fault("FaultFailOnce", until="again", kind="OutOfMemoryError")})
    assert outcome.data["text"] == {"1": ["recovered"]}
    assert [warm.names().count(f"comfy.{name}") for name in ("queued", "freed", "started")] == [2, 1, 1]
    assert any("asked to free" in warning for warning in outcome.warnings)


def test_out_of_memory_that_passes_in_a_fresh_process_only_ends_well_there(warm: Bench) -> None:
    outcome = warm.succeeds({"workflow": fault("FaultFailOnce", until="fresh", kind="RuntimeError")})
    assert outcome.data["text"] == {"1": ["recovered"]}
    assert [warm.names().count(f"comfy.{name}") for name in ("queued", "freed", "started")] == [3, 1, 2]
    assert any("started anew" in warning for warning in outcome.warnings)


def test_an_empty_success_that_swallowed_its_lack_of_memory_is_run_again(warm: Bench) -> None:
    """ComfyUI says `success`; only its log says why there is no file."""
    outcome = warm.succeeds({"workflow": fault("FaultSwallow", until="again", filename_prefix="x")})
    assert len(outcome.artifacts) == 1
    assert warm.names().count("comfy.queued") == 2


@pytest.mark.long
def test_an_empty_success_that_swallows_it_every_time_is_out_of_memory_and_not_no_output(warm: Bench) -> None:
    failure = warm.fails({"workflow": fault("FaultSwallow", until="never", filename_prefix="x")})
    assert (failure.code, failure.retryable) == ("comfy.out_of_memory", False)
    assert "No outputs generated" in failure.message and "larger GPU" in failure.message
    assert warm.names().count("comfy.queued") == 3


def partly(message: str, until: str) -> Any:
    """A picture that is saved, and a model that is not."""
    return picture() | {"9": fault("FaultSwallow", message=message, until=until, filename_prefix="x")["1"]}


def test_a_file_that_is_missing_among_others_for_lack_of_memory_is_run_for_again(warm: Bench) -> None:
    """Half of what was asked for is no success."""
    outcome = warm.succeeds({"workflow": partly("torch.OutOfMemoryError: CUDA out of memory", "again")})
    assert {artifact.node_id for artifact in outcome.artifacts} == {"2", "9"}
    assert warm.left_behind() == []


@pytest.mark.long
def test_a_file_that_stays_missing_for_lack_of_memory_is_named(warm: Bench) -> None:
    failure = warm.fails({"workflow": partly("torch.OutOfMemoryError: CUDA out of memory", "never")})
    assert (failure.code, failure.retryable) == ("comfy.out_of_memory", False)
    assert "node 9 (FaultSwallow) saved nothing" in failure.message


def test_lack_of_memory_that_a_node_dealt_with_costs_nothing(warm: Bench) -> None:
    """ComfyUI itself decodes in tiles when it must, and says so."""
    message = "Warning: Ran out of memory when regular VAE decoding, retrying with tiled VAE decoding."
    outcome = warm.succeeds({"workflow": partly(message, "never")})
    assert [artifact.node_id for artifact in outcome.artifacts] == ["2"]
    assert warm.names().count("comfy.queued") == 1


@pytest.mark.parametrize(
    "graph",
    [
        fault("TestRaise", kind="RuntimeError", message="CUDA error: an illegal memory access was encountered"),
        pytest.param(
            fault(
                "FaultSwallow", message="CUDA error: device-side assert triggered", until="never", filename_prefix="x"
            ),
            marks=pytest.mark.long,
        ),
    ],
    ids=["raised", "swallowed"],
)
def test_a_broken_cuda_context_ends_the_server_and_is_reported_as_one(warm: Bench, graph: Any) -> None:
    """Whatever runs in that process next would fail too, or give garbage."""
    pid = warm.server_pid()
    failure = warm.fails({"workflow": graph})
    assert (failure.code, failure.retryable) == ("engine.cuda_broken", True)
    assert gone(pid)
    warm.succeeds({"workflow": picture()})
    assert warm.server_pid() != pid


def test_a_kill_is_remembered_by_task_and_a_crash_is_none() -> None:
    """The handler remembers so many tasks, and a task that it forgot is tried once more."""
    killed, died = KilledTasks(), TaskFailure("comfy.exited", "it died", detail={"killed": True})
    assert killed.judge("a", TaskFailure("comfy.exited", "it crashed")).code == "comfy.exited"
    assert killed.judge("a", died).code == "comfy.exited"
    assert killed.judge("a", died).code == "comfy.out_of_memory"
    for number in range(REMEMBERED):
        assert killed.judge(f"{number}", died).code == "comfy.exited"
    assert killed.judge("a", died).code == "comfy.exited"


# --- swelling --------------------------------------------------------------------------------------------------------


def held_bytes(one: Bench) -> int:
    server = one.handler._engine._server
    assert server is not None
    return held(server.process.pids())


def swelling(make: Make, warm: Bench, until: str) -> tuple[Bench, Any]:
    """A handler whose limit is a little above what such a server holds, and a graph that exceeds it."""
    one = make(memory_hard_bytes=held_bytes(warm) + 150 * MIB)
    return one, one.run({"workflow": fault("FaultGrow", mib=300, seconds=60.0, until=until)})


def test_a_server_that_swells_in_a_run_is_replaced_and_the_run_ends_well_in_a_fresh_one(
    bench: Make, warm: Bench
) -> None:
    one, outcome = swelling(bench, warm, "fresh")
    assert outcome.data["text"] == {"1": ["took 0 MiB"]}
    assert [fields["verdict"] for name, fields in one.facts if name == "comfy.verdict"] == ["bloated", "out of memory"]
    assert [one.names().count(f"comfy.{name}") for name in ("queued", "freed", "started")] == [2, 0, 2]


@pytest.mark.long
def test_a_graph_that_swells_every_server_fails_with_advice_and_the_next_one_runs(bench: Make, warm: Bench) -> None:
    one, failure = swelling(bench, warm, "never")
    assert isinstance(failure, Failed)
    assert (failure.code, failure.retryable) == ("comfy.out_of_memory", False)
    assert "more than the limit" in failure.message and "larger GPU" in failure.message
    assert gone(one.server_pid())
    one.succeeds({"workflow": picture()})


# --- killed ----------------------------------------------------------------------------------------------------------


def test_a_second_kill_under_the_same_task_is_its_lack_of_memory(bench: Make) -> None:
    """The kernel ends what takes too much memory with SIGKILL, and says so to nobody."""
    one = bench()
    killing = {"workflow": fault("FaultCrash", kind="sigkill")}
    first = one.fails(killing)
    assert (first.code, first.retryable) == ("comfy.exited", True)
    one.succeeds({"workflow": picture()})
    with pytest.raises(Exception, match="ComfyUI died during the run") as of_another:
        one.handler.run(one.job(killing, "99999999-2222-3333-4444-555555555555"))
    assert of_another.value.code == "comfy.exited"  # type: ignore[attr-defined]
    second = one.fails(killing)
    assert (second.code, second.retryable) == ("comfy.out_of_memory", False)
    assert "killed twice" in second.message and "larger GPU" in second.message
    assert [fields["delay_s"] for name, fields in one.facts if name == "comfy.restarting"][0] == 0.0


@pytest.mark.parametrize(
    ("last_words", "said"),
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
            "ran out of memory while it started",
        ),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", "CUDA context broken"),
        ("Cannot import custom_nodes/x module for custom nodes: Unable to allocate 9.1 GiB", "ran out of memory"),
    ],
)
def test_a_server_that_could_not_start_for_its_memory_or_its_gpu_says_so(
    bench: Make, tmp_path: Path, last_words: str, said: str
) -> None:
    checkout = tmp_path / "ComfyUI"
    checkout.mkdir()
    (checkout / "main.py").write_text(f"import sys\nprint({last_words!r})\nprint('bye')\nsys.exit(1)\n")
    failure = bench(path=str(checkout), python=sys.executable, args="").fails({"workflow": picture()})
    assert failure.code == "comfy.start_failed" and failure.engine_down
    assert failure.message.startswith("ComfyUI startup failed: ")
    assert said in failure.message.partition("exit code")[0]


# --- somebody else ---------------------------------------------------------------------------------------------------


class Stranger:
    """A server that takes the port of one that died. It answers as a ComfyUI in trouble might."""

    def __init__(self, port: int) -> None:
        log = self.log = []  # type: list[tuple[str, str]]

        class Answer(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                log.append((self.command, self.path))
                self.send_response(500 if self.path.startswith("/history") else 200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_POST = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Answer)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_a_stranger_on_the_port_of_a_killed_server_hears_nothing_of_the_task(bench: Make) -> None:
    one = bench()
    strangers: list[Stranger] = []

    def replace(name: str, _: dict[str, Any]) -> None:
        if name == "comfy.queued":
            port = next(int(detail["port"]) for state, detail in one.states if state == "ready")
            os.kill(one.server_pid(), signal.SIGKILL)
            until(one.knows_of_the_end)
            strangers.append(Stranger(port))

    one.heard = replace
    try:
        failure = one.fails({"workflow": fault("TestSleep", seconds=60, steps=6000)})
        one.heard = None
        one.succeeds({"workflow": picture()})
    finally:
        for stranger in strangers:
            stranger.close()
    assert (failure.code, failure.retryable) == ("comfy.exited", True)
    assert [stranger.log for stranger in strangers] == [[]]


def test_ten_megabytes_of_output_in_a_run_hold_nothing_up(warm: Bench) -> None:
    assert warm.succeeds({"workflow": fault("FaultPrint", mib=10)}).data["text"] == {"1": ["printed 10 MiB"]}
