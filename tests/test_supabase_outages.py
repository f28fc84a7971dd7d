"""The whole project goes away, twice, while two workers are at fifty tasks with uploads. Nothing is lost or doubled."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.conftest_worker import FINAL, Worker, eventually
from tests.front_faults import Fault
from tests.supabase_stack import Stack

Start = Callable[..., Worker]
BUCKET = "image_uploads"


@dataclass(frozen=True)
class Scale:
    """Of one run of the script; seconds and bytes."""

    tasks: int
    outage_s: float
    between_s: float
    work_s: float
    file_bytes: int
    lease_s: float
    renew_s: float
    patience_s: float


SHORT = Scale(50, outage_s=4.0, between_s=0.2, work_s=0.35, file_bytes=2_000, lease_s=3, renew_s=0.5, patience_s=60)
"""Longer than a lease: the project refuses connections, so nobody gives up what it runs."""
FULL = Scale(
    50, outage_s=60.0, between_s=30.0, work_s=5.0, file_bytes=8_000_000, lease_s=90, renew_s=20, patience_s=600
)


@pytest.mark.parametrize(
    "scale",
    [
        pytest.param(SHORT, id="short", marks=pytest.mark.long),
        pytest.param(FULL, id="full", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_the_project_goes_away_twice_during_fifty_tasks_with_uploads(
    start_supabase_worker: Start, supabase_stack: Stack, scale: Scale
) -> None:
    leases = {"WAN2GP_LEASE_S": str(scale.lease_s), "WAN2GP_RENEW_S": str(scale.renew_s)}
    workers = [start_supabase_worker(name=name, environ=leases) for name in ("one", "two")]
    pids = [worker.process.pid for worker in workers]
    params = {"files": {"a.bin": "0123456789"}, "times": scale.file_bytes // 10, "seconds": scale.work_s}
    tasks = [workers[0].insert("maker", params) for _ in range(scale.tasks)]
    for number in (1, 2):
        eventually("both work", lambda: all("Processing" in worker.log for worker in workers))
        before = done(workers[0])
        eventually("some more are done", lambda before=before: done(workers[0]) > before)  # type: ignore[misc]
        supabase_stack.front.down()
        until = time.monotonic() + scale.outage_s
        for worker in workers:
            eventually("status shows the outage", lambda worker=worker: shows_outage(worker))  # type: ignore[misc]
        threading.Event().wait(max(0.0, until - time.monotonic()))
        supabase_stack.front.up()
        for worker in workers:
            eventually("status shows its end", lambda worker=worker: not shows_outage(worker))  # type: ignore[misc]
        threading.Event().wait(scale.between_s if number == 1 else 0)
    eventually("all have ended", lambda: done(workers[0]) == len(tasks), scale.patience_s)
    rows = workers[0].sql("SELECT id::text, status, attempts, output_location FROM tasks")
    assert {(row["status"], row["attempts"]) for row in rows} == {("Complete", 1)}, "no worker robbed another"
    counts = workers[0].sql(
        "SELECT name, count(*) FROM task_events WHERE name <> 'progress' GROUP BY name ORDER BY name"
    )
    assert [(row["name"], row["count"]) for row in counts] == [
        (name, len(tasks)) for name in ("claimed", "completed", "queued")
    ]
    paths = supabase_stack.storage.paths(BUCKET)
    assert sorted(path.partition("/")[0] for path in paths) == sorted(tasks), "one file of each task"
    assert all(row["output_location"].endswith(tuple(paths)) for row in rows)
    assert [worker.process.poll() for worker in workers] == [None, None]
    assert [worker.process.pid for worker in workers] == pids
    for worker in workers:
        assert worker.log.count("started. Polling") == 1
        eventually("the spool is empty", worker.spool_is_empty)
        assert worker.status()["worker"]["database_ok"]


def done(worker: Worker) -> int:
    return int(worker.sql("SELECT count(*) FROM tasks WHERE status = ANY(%s)", list(FINAL))[0]["count"])


def shows_outage(worker: Worker) -> bool:
    shown = worker.ctl("status", "--json")
    return shown.returncode == 0 and not json.loads(shown.stdout)["worker"]["database_ok"]


@pytest.mark.long
def test_storage_alone_goes_away_and_work_goes_on_without_waiting_for_it(
    start_supabase_worker: Start, supabase_stack: Stack
) -> None:
    worker = start_supabase_worker()
    fault = supabase_stack.front.faults.add(Fault("/storage/v1/", "reset", times=None))
    tasks = [worker.insert("maker", {"files": {"a.txt": "x"}}) for _ in range(6)]
    worker.ended(worker.insert("noop"))
    eventually("all are run", lambda: worker.log.count("Processing maker") == 6)
    eventually("all wait in the spool", lambda: len(worker.status()["worker"]["publishing"]) == 6)
    assert [row["status"] for row in worker.sql("SELECT status FROM tasks WHERE task_type = 'maker'")] == (
        ["In Progress"] * 6
    )
    supabase_stack.front.faults.remove(fault)
    for task_id in tasks:
        row = worker.ended(task_id, 60)
        assert (row["status"], row["attempts"]) == ("Complete", 1)
    assert len(supabase_stack.storage.paths(BUCKET)) == 6
