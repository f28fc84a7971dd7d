"""Whatever ends, and in whatever way: a second later nothing that it started is left, however that tried to stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.comfy_jobs import picture
from tests.comfy_worker import checkout
from tests.conftest_comfy import free_port
from tests.conftest_db import PgServer
from tests.conftest_worker import Worker, eventually
from tests.shared_worker import shared_worker
from tests.survivors import CELLS, COMFY, Cell, kill_with_all, measure

Start = Callable[..., Worker]
GONE_WITHIN_S = 1.0
TRIES = 2
"""A machine that stood still has proved nothing: then it is done once more."""


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer) -> Iterator[Worker]:
    path = tmp_path_factory.mktemp("lasting")
    with shared_worker(path, _pg_session, **COMFY, COMFY_PORT=str(free_port())) as worker:
        yield worker


def nothing_is_left(worker: Callable[[], Worker], cell: Cell) -> None:
    for _ in range(TRIES):
        seconds, stalled = measure(worker(), cell)
        if not stalled:
            break
    assert seconds <= GONE_WITHIN_S, f"the last one lived on for {seconds:.3f} s"


@pytest.mark.parametrize(
    "cell", [cell for cell in CELLS if not cell.fatal and not cell.environ], ids=lambda cell: cell.name
)
def test_what_ends_leaves_no_process_while_the_worker_lives_on(lasting: Worker, cell: Cell) -> None:
    nothing_is_left(lambda: lasting, cell)


def starting(start_worker: Start, cell: Cell) -> Callable[[], Worker]:
    names = iter("abc")
    return lambda: start_worker(name=next(names), environ={**COMFY, "COMFY_PORT": str(free_port()), **cell.environ})


@pytest.mark.long
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.fatal], ids=lambda cell: cell.name)
def test_a_worker_that_ends_leaves_no_process(start_worker: Start, cell: Cell) -> None:
    nothing_is_left(starting(start_worker, cell), cell)


@pytest.mark.long
@pytest.mark.parametrize(
    "cell", [cell for cell in CELLS if cell.environ and not cell.fatal], ids=lambda cell: cell.name
)
def test_a_prompt_that_takes_too_long_leaves_no_process(start_worker: Start, cell: Cell) -> None:
    nothing_is_left(starting(start_worker, cell), cell)


# -- at a bad moment -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spawning", [pytest.param(number, marks=pytest.mark.long) for number in (1, 2, 3)] + [4])
def test_a_supervisor_killed_while_it_spawns_leaves_no_process(start_worker: Start, spawning: int) -> None:
    """A process so new may not know yet whose it is."""
    worker = start_worker()
    for name in ("noop", "maker", "sleeper", "raiser"):
        worker.insert(name, {"files": {}, "seconds": 600})
    eventually("it spawns", lambda: worker.log.count("Starting handler") >= spawning)
    assert kill_with_all(worker) <= GONE_WITHIN_S


def test_a_supervisor_killed_while_comfyui_starts_leaves_no_process(start_worker: Start, tmp_path: Path) -> None:
    """It has left processes of its own by then, and answers nobody."""
    notes = tmp_path / "notes"
    notes.mkdir()
    note = notes / "note"
    path = checkout(tmp_path / "comfy", f"from tests.litter import leave; leave({str(note)!r}); time.sleep(600)")
    comfy = {"COMFY_PATH": path, "COMFY_PORT": str(free_port()), "COMFY_WRITABLE_PATHS": str(notes)}
    worker = start_worker(environ=comfy)
    worker.insert("comfy", {"workflow": picture()})
    eventually("ComfyUI starts", note.exists)
    assert kill_with_all(worker) <= GONE_WITHIN_S
