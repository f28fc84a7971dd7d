"""What a handler can take from everybody: processes, memory, disk. Each limit holds, and the next task is served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from tests.conftest_db import PgServer
from tests.conftest_worker import Row, Worker, eventually
from tests.shared_worker import shared_worker

Start = Callable[..., Worker]
OFTEN = ("--poll-interval", "0.2")
PROCESSES, DISK_MIB, MEMORY_MIB = 40, 24, 200


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer) -> Iterator[SimpleNamespace]:
    """A worker with low limits, and what it was given to do, all at once."""
    limits = {
        "WAN2GP_SANDBOX_PROCESSES": str(PROCESSES),
        "WAN2GP_SANDBOX_DISK_MIB": str(DISK_MIB),
        "WAN2GP_MEMORY_HARD_MIB": str(MEMORY_MIB),
    }
    with shared_worker(tmp_path_factory.mktemp("limits"), _pg_session, *OFTEN, **limits) as worker:
        yield SimpleNamespace(
            worker=worker,
            bystander=worker.insert("sleeper", {"seconds": 4}),
            bomb=worker.insert("breeder", {"processes": 10_000, "fork": True}),
            hog=worker.insert("hog", {"mib": 4 * MEMORY_MIB, "hold_s": 60}),
            flood=worker.insert("gusher", {"mib": DISK_MIB + 40, "hold_s": 60}),
        )


def codes(row: Row) -> list[tuple[str, str]]:
    return [(cause["code"], cause["verb"]) for cause in row["result_data"]["attempts"]]


def test_a_fork_bomb_ends_with_its_handler_and_twice_is_enough(scene: SimpleNamespace) -> None:
    worker = scene.worker
    row = worker.ended(scene.bomb)
    assert (row["status"], row["attempts"]) == ("Failed", 2)
    assert codes(row) == [("handler.process_limit", "loss")] * 2
    assert "(sandbox.processes): look for what starts them" in row["error_message"]
    after = worker.ended(worker.insert("breeder", {"processes": 2, "hold_s": 0}))
    assert (after["status"], after["attempts"], after["result_data"]["begun"]) == ("Complete", 1, 2)


def test_a_flood_of_files_ends_with_its_handler_and_is_removed(scene: SimpleNamespace) -> None:
    worker = scene.worker
    row = worker.ended(scene.flood)
    assert (row["status"], row["attempts"]) == ("Failed", 2)
    assert codes(row) == [("handler.disk_limit", "loss")] * 2
    assert f"the limit is {DISK_MIB} MiB (sandbox.disk_mib)" in row["error_message"]
    after = worker.ended(worker.insert("gusher", {"mib": 1}))
    assert (after["status"], after["attempts"]) == ("Complete", 1)
    eventually("the flood is removed", lambda: not list((worker.data_dir / "handlers").glob(".gone-*")))


def test_memory_that_is_taken_faster_than_anybody_looks_ends_with_its_handler(scene: SimpleNamespace) -> None:
    """By the kernel where it can, else by the watch; the cause is the same."""
    worker = scene.worker
    row = worker.ended(scene.hog)
    assert (row["status"], row["attempts"]) == ("Failed", 2)
    assert codes(row) == [("engine.memory_limit", "loss")] * 2
    assert "memory.hard_mib" in row["error_message"]
    after = worker.ended(worker.insert("hog", {"mib": 16}))
    assert (after["status"], after["attempts"]) == ("Complete", 1)


def test_the_tasks_of_others_go_on_beside_both(scene: SimpleNamespace) -> None:
    row = scene.worker.ended(scene.bystander)
    assert (row["status"], row["attempts"]) == ("Complete", 1)
