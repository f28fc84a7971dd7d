"""Processes killed, frozen and cut off from their database: no task is lost or finished twice, nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from psycopg.rows import dict_row

from tests.builtin_faults.nodes import HOLD
from tests.comfy_jobs import fault, picture
from tests.conftest_comfy import FAULTS, free_port
from tests.conftest_db import PgServer
from tests.conftest_worker import Row, Worker, eventually
from tests.shared_worker import shared_worker
from wan2gp.processes import alive, descendants

Start = Callable[..., Worker]
OFTEN = ("--poll-interval", "0.2")
ENGINE = "wan2gp.comfy_sidecar.builtin"


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer) -> Iterator[Worker]:
    path = tmp_path_factory.mktemp("lasting")
    comfy = {"COMFY_PORT": str(free_port()), "COMFY_ARGS": f"--extra-nodes {FAULTS}"}
    with shared_worker(path, _pg_session, **comfy) as worker:
        yield worker


def slow_picture(seconds: float, nonce: int) -> dict[str, Any]:
    """A graph that sleeps in small steps and saves a file. A server that has run this `nonce` does not run it again."""
    sleep = fault("TestSleep", seconds=seconds, steps=int(seconds * 20), nonce=nonce)["1"]
    return {"workflow": {**picture(), "9": sleep}}


def names(worker: Worker, task: str) -> list[str]:
    return [event["name"] for event in worker.events(task)]


def finished_once(worker: Worker, task: str, attempts: int) -> Row:
    row = worker.ended(task)
    assert (row["status"], row["attempts"]) == ("Complete", attempts), (row, worker.log[-3000:])
    assert names(worker, task).count("completed") == 1
    return row


def files_of(worker: Worker, task: str) -> list[Path]:
    return [path for path in (worker.data_dir / "outputs").rglob("*") if path.name.startswith(task)]


def engine_pid(worker: Worker) -> int:
    """The ComfyUI server's process."""

    def look() -> int | None:
        found = [process.pid for process in worker.family() if ENGINE in " ".join(command(process))]
        return found[0] if found else None

    return int(eventually("the server runs", look))


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def above(process: psutil.Process) -> list[str]:
    """The command of its parent. The database's own processes come and go: one that has gone counts as below it."""
    try:
        parent = process.parent()
    except psutil.NoSuchProcess:
        return ["postgres"]
    return command(parent) if parent is not None else []


def shim_of(worker: Worker, name: str) -> int:
    return psutil.Process(worker.handler_pid(name)).ppid()


VICTIMS: dict[str, Callable[[Worker], int]] = {
    "handler": lambda worker: worker.handler_pid("comfy"),
    "shim": lambda worker: shim_of(worker, "comfy"),
    "server": engine_pid,
}


@pytest.mark.long
@pytest.mark.parametrize("victim", list(VICTIMS))
def test_whoever_dies_under_a_prompt_it_is_run_again_and_nobody_else_is(lasting: Worker, victim: str) -> None:
    queued = lasting.log.count("Workflow queued")
    hold = lasting.data_dir / "handlers" / "comfy" / "engine" / "input" / HOLD
    hold.parent.mkdir(parents=True, exist_ok=True)
    hold.touch()  # the prompt cannot end before its killer comes, however slow the machine is
    beside = lasting.insert("sleeper", {"seconds": 2.5})
    lasting.running(beside)
    task = lasting.insert("comfy", slow_picture(0.5, nonce=list(VICTIMS).index(victim)), priority=1)
    behind = lasting.insert("comfy", {"workflow": picture(color=list(VICTIMS).index(victim))})
    eventually("the prompt runs", lambda: lasting.log.count("Workflow queued") > queued)
    shim = shim_of(lasting, "comfy")
    target = VICTIMS[victim](lasting)
    doomed = [target, *descendants(target)] + ([shim, *descendants(shim)] if victim != "server" else [])
    started = {pid: psutil.Process(pid) for pid in doomed}
    os.kill(target, signal.SIGKILL)
    hold.unlink()
    eventually(
        "nothing of it is left",
        lambda: not [pid for pid, process in started.items() if process.is_running() and alive(pid)],
        5.0,
    )
    row = finished_once(lasting, task, 2)
    assert [attempt["attempt"] for attempt in row["result_data"]["attempts"]] == [1]
    assert len(files_of(lasting, task)) == 1
    for other in (behind, beside):
        finished_once(lasting, other, 1)
        assert "retried" not in names(lasting, other)


def test_a_dead_supervisor_leaves_nothing_and_its_next_life_goes_on(tmp_path: Path, start_worker: Start) -> None:
    """With the database that it had embedded, which dies with it."""
    worker = start_worker(environ={"WAN2GP_QUEUE": "embedded"})
    worker.url = worker.ctl("db", "url").stdout.strip()
    done = worker.insert("maker", {"files": {"a.txt": "x"}})
    worker.ended(done)
    task = worker.insert("sleeper", {"seconds": 1})
    waiting = worker.insert("sleeper", {"seconds": 0})
    worker.running(task)
    assert any(command(process)[:1] and "postgres" in command(process)[0] for process in worker.family())
    worker.kill()
    eventually("nothing is left", lambda: not worker.survivors(), 5.0)
    again = start_worker(environ={"WAN2GP_QUEUE": "embedded"})
    again.url = again.ctl("db", "url").stdout.strip()
    finished_once(again, task, 2)
    finished_once(again, waiting, 1)
    assert (again.row(done)["status"], again.row(done)["attempts"]) == ("Complete", 1)
    assert again.row(task)["result_data"]["attempts"][0]["kind"] == "worker_died"


@pytest.mark.long
def test_a_frozen_supervisor_wakes_up_to_a_task_that_another_has_done(start_worker: Start, tmp_path: Path) -> None:
    short = {"WAN2GP_LEASE_S": "2", "WAN2GP_RENEW_S": "0.5"}
    frozen = start_worker(*OFTEN, name="frozen", environ=short)
    slow = frozen.insert("sleeper", {"seconds": 1.5})
    frozen.running(slow)
    gate = frozen.sql("SELECT token FROM task_leases WHERE task_id = %s", slow)[0]
    frozen.process.send_signal(signal.SIGSTOP)
    other = start_worker(*OFTEN, name="other", environ=short)
    finished_once(other, slow, 2)
    frozen.process.send_signal(signal.SIGCONT)
    eventually("the late outcome is dropped", lambda: "was refused" in frozen.log or "not ours any more" in frozen.log)
    assert names(other, slow).count("completed") == 1
    assert other.row(slow)["attempts"] == 2
    assert gate["token"] not in frozen.log
    finished_once(other, frozen.insert("noop"), 1)


@pytest.mark.long
def test_what_a_frozen_supervisor_made_too_late_is_deleted(start_worker: Start) -> None:
    short = {"WAN2GP_LEASE_S": "2", "WAN2GP_RENEW_S": "0.5"}
    frozen = start_worker(*OFTEN, name="frozen", environ=short)
    task = frozen.insert("tardy", {"files": {"a.txt": "x"}, "gate": str(frozen.data_dir / "gate")})
    frozen.running(task)
    frozen.process.send_signal(signal.SIGSTOP)
    (frozen.data_dir / "gate").touch()  # the handler is not frozen: it finishes
    other = start_worker(*OFTEN, name="other", environ=short)
    row = finished_once(other, task, 2)
    frozen.process.send_signal(signal.SIGCONT)
    eventually("the late outcome is refused", lambda: "was refused" in frozen.log or "not ours any more" in frozen.log)
    eventually("its files are gone", lambda: not list((frozen.data_dir / "work").glob("*/*/*")))
    assert files_of(frozen, task) == []
    assert [str(path) for path in files_of(other, task)] == [row["output_location"]]
    eventually("its spool is empty", frozen.spool_is_empty)
    assert (other.row(task), names(other, task).count("completed")) == (row, 1)


@pytest.mark.long
def test_a_database_that_is_away_for_longer_than_a_lease_robs_nobody(
    start_worker: Start, pg_server: PgServer, tmp_path: Path
) -> None:
    short = {"WAN2GP_LEASE_S": "2.5", "WAN2GP_RENEW_S": "0.5"}
    workers = [start_worker(*OFTEN, name=name, environ=short) for name in ("w1", "w2")]
    gate = tmp_path / "gate"
    held = {"gate": str(gate), "files": {"a.txt": "x"}}
    tasks = [workers[0].insert("tardy", held) for _ in range(2)]
    waiting = workers[0].insert("tardy", held)
    for task in tasks:
        eventually("both run", lambda task=task: any(f"task {task}" in worker.log for worker in workers))
    pids = [worker.handler_pid("tardy") for worker in workers]
    pg_server.stop_server()
    for worker in workers:
        eventually("it notices", lambda worker=worker: "Database unreachable" in worker.log)
    assert not eventually_false(lambda: any(worker.process.poll() is not None for worker in workers), leases=2)
    pg_server.start_server()
    for worker in workers:
        eventually("it is back", lambda worker=worker: "Database reachable again" in worker.log)
    assert [worker.handler_pid("tardy") for worker in workers] == pids  # nobody gave up what it ran
    gate.touch()
    for task in [*tasks, waiting]:
        finished_once(workers[0], task, 1)
        assert len([path for worker in workers for path in files_of(worker, task)]) == 1


def eventually_false(bad: Callable[[], bool], leases: int) -> bool:
    """Looks on for some lease times of 2.5 s; True as soon as it is bad."""
    try:
        return bool(eventually("something bad", bad, 2.5 * leases))
    except AssertionError:
        return False


def test_what_ended_while_the_database_was_away_outlives_the_worker_too(
    start_worker: Start, pg_server: PgServer, tmp_path: Path
) -> None:
    worker = start_worker()
    gate = tmp_path / "gate"
    tasks = {
        "tardy": worker.insert("tardy", {"files": {"a.txt": "x", "b.txt": "y"}, "gate": str(gate)}),
        "late": worker.insert("late", {"files": {"a.txt": "z"}, "gate": str(gate)}),
    }
    for task in tasks.values():
        worker.running(task)
    pg_server.stop_server()
    eventually("it notices", lambda: "Database unreachable" in worker.log)
    gate.touch()
    journal = worker.data_dir / "spool" / "journal"
    for task in tasks.values():
        eventually("its end is on the disk", lambda task=task: task.encode() in journal.read_bytes())
    worker.kill()
    eventually("nothing is left", lambda: not worker.survivors(), 5.0)
    pg_server.start_server()
    again = start_worker()
    for task in tasks.values():
        finished_once(again, task, 1)
    assert len(files_of(again, tasks["tardy"])) == 2
    assert len(files_of(again, tasks["late"])) == 1
    assert "Took back" not in again.log


def test_a_killed_worker_is_replaced_by_another_after_its_lease(start_worker: Start) -> None:
    short = {"WAN2GP_LEASE_S": "2", "WAN2GP_RENEW_S": "0.5"}
    first, second = (start_worker(*OFTEN, name=name, environ=short) for name in ("w1", "w2"))
    second.ctl("drain")
    task = first.insert("sleeper", {"seconds": 3})
    first.running(task)
    second.ctl("resume")
    first.kill()
    finished_once(second, task, 2)


@pytest.mark.long
def test_the_embedded_database_comes_back_under_a_running_task(start_worker: Start) -> None:
    worker = start_worker(environ={"WAN2GP_QUEUE": "embedded"})
    worker.url = worker.ctl("db", "url").stdout.strip()
    task = worker.insert("sleeper", {"seconds": 2})
    worker.running(task)
    (postmaster,) = [
        process
        for process in worker.family()
        if "postgres" in (command(process) or [""])[0] and "postgres" not in " ".join(above(process))
    ]
    postmaster.kill()

    def row() -> Row | None:
        try:
            with psycopg.connect(worker.url, connect_timeout=2, row_factory=dict_row) as connection:
                return connection.execute("SELECT * FROM tasks WHERE id = %s", (task,)).fetchone()
        except psycopg.OperationalError:
            return None

    ended = eventually("it completes", lambda: (found := row()) and found["status"] == "Complete" and found)
    assert ended["attempts"] == 1
    assert "The embedded Postgres ended" in worker.log


@pytest.fixture
def stranger() -> Iterator[int]:
    """The pid of a process that has nothing to do with us."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


def test_a_handler_cannot_have_a_stranger_killed_by_naming_it_as_its_engine(start_worker: Start, stranger: int) -> None:
    worker = start_worker()
    worker.ended(worker.insert("framer", {"pid": stranger}))
    worker.ended(worker.insert("noop"))
    noted = [pid for pid, _ in json.loads((worker.data_dir / "children.json").read_text())["processes"]]
    assert worker.handler_pid("framer") in noted and stranger not in noted
    worker.kill()
    start_worker()
    assert psutil.Process(stranger).status() != psutil.STATUS_ZOMBIE
