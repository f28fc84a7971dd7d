"""What a handler can take from everybody: processes, memory, disk. Each limit holds, and the next task is served."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest_db import PgServer
from tests.conftest_worker import ROOT, Row, Worker, eventually, plugin
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


WITHOUT_GROUPS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
if os.path.exists("/sys/fs/cgroup/pids") and libc.unshare(0x00020000) == 0:  # CLONE_NEWNS
    libc.mount(b"none", b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
    libc.mount(b"tmpfs", b"/sys/fs/cgroup", b"tmpfs", 1, None)  # MS_RDONLY
"""


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/sys/fs/cgroup/pids"), reason="needs root")
def test_where_there_are_no_control_groups_the_watches_keep_the_limits(start_worker: Start, tmp_path: Path) -> None:
    (tmp_path / "customs").mkdir()
    (tmp_path / "customs" / "sitecustomize.py").write_text(WITHOUT_GROUPS)
    plugin(tmp_path / "plugin")
    limits = {"WAN2GP_SANDBOX_PROCESSES": str(PROCESSES), "WAN2GP_MEMORY_HARD_MIB": str(MEMORY_MIB)}
    path = f"{tmp_path / 'customs'}:{tmp_path / 'plugin'}:{ROOT}"
    worker = start_worker(*OFTEN, environ={**limits, "PYTHONPATH": path})
    assert not list(Path(f"/proc/{worker.process.pid}/root/sys/fs/cgroup").iterdir())
    bomb = worker.insert("breeder", {"processes": 10_000, "fork": True})
    hog = worker.insert("hog", {"mib": 2 * MEMORY_MIB, "hold_s": 60})
    assert codes(worker.ended(bomb, 60)) == [("handler.process_limit", "loss")] * 2
    assert codes(worker.ended(hog, 60)) == [("engine.memory_limit", "loss")] * 2
    assert "it had " in worker.log and "the kernel refused" not in worker.log
    assert worker.ended(worker.insert("noop"))["status"] == "Complete"
