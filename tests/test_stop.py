"""How a worker ends: by a signal at any moment, by `--once`, or before it began; and what its exit code says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.conftest_db import PgServer
from tests.conftest_worker import Worker, eventually, launch, worker_environment
from tests.faulty_link import FaultyLink
from tests.stop_clock import StopClock
from wan2gp.supervisor.app import END_S

Start = Callable[..., Worker]
LONG = {"seconds": 600}
PATIENT = {"WAN2GP_STOP_GRACE_S": "600"}


AT_ONCE_S = 1.0
"""After the grace, for all that is left to do: to interrupt, to kill, to hand back and to leave, seconds."""


def begin_stop(worker: Worker) -> StopClock:
    worker.family()
    clock = StopClock()
    worker.process.send_signal(signal.SIGTERM)
    eventually("it has heard", lambda: "Stopping: no new tasks" in worker.log)
    return clock


def left(worker: Worker, clock: StopClock | None = None, grace_s: float = 0.0) -> int:
    """Its exit code. With a `clock`, it must have been gone a second after the grace."""
    code = worker.process.wait(20)
    took_s = clock.seconds() if clock is not None else 0.0
    eventually("nothing is left", lambda: not worker.survivors(), 5.0)
    assert "Traceback" not in worker.screen
    assert took_s <= grace_s + AT_ONCE_S, f"it took {took_s:.2f} s"
    return code


def settled(worker: Worker, task: str) -> tuple[str, int]:
    row = worker.row(task)
    return row["status"], row["attempts"]


# -- by a signal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_worker_leaves_at_once_and_in_order(worker: Worker, number: int) -> None:
    worker.ended(worker.insert("noop"))
    worker.family()
    clock = StopClock()
    worker.process.send_signal(number)
    assert left(worker, clock) == 0
    assert "Worker w1 stopped" in worker.log
    assert not (worker.data_dir / "run.json").exists()
    assert not Path(worker.environ["WAN2GP_RUN_DIR"]).exists()
    (said,) = worker.sql("SELECT metadata FROM workers WHERE id = 'w1'")
    assert said["metadata"]["state"] == "stopped"


@pytest.mark.long
def test_a_short_task_may_end_and_nothing_new_begins(start_worker: Start) -> None:
    worker = start_worker(environ=PATIENT)
    task = worker.insert("sleeper", {"seconds": 1})
    worker.running(task)
    begin_stop(worker)
    late = worker.insert("noop")
    assert left(worker) == 0
    assert settled(worker, task) == ("Complete", 1)
    assert settled(worker, late) == ("Queued", 0)


def test_a_long_task_is_handed_back_uncounted(start_worker: Start) -> None:
    worker = start_worker(environ={"WAN2GP_STOP_GRACE_S": "0.3"})
    task = worker.insert("sleeper", LONG)
    worker.running(task)
    clock = begin_stop(worker)
    assert left(worker, clock, 0.3) == 0
    assert settled(worker, task) == ("Queued", 0)
    row = worker.row(task)
    assert (row["worker_id"], row["error_message"], row["run_after"]) == (None, None, None)
    assert [event["name"] for event in worker.events(task)][-1] == "released"


def test_a_second_signal_hurries(start_worker: Start) -> None:
    worker = start_worker(environ=PATIENT)
    task = worker.insert("sleeper", LONG)
    worker.running(task)
    begin_stop(worker)
    clock = StopClock()
    worker.process.send_signal(signal.SIGTERM)
    assert left(worker, clock) == 0
    assert settled(worker, task) == ("Queued", 0)


def test_a_storm_of_signals_changes_nothing(start_worker: Start) -> None:
    worker = start_worker(environ=PATIENT)
    task = worker.insert("sleeper", LONG)
    worker.running(task)
    begin_stop(worker)
    while worker.process.poll() is None:
        worker.process.send_signal(signal.SIGTERM)
        worker.process.send_signal(signal.SIGINT)
    assert left(worker) == 0
    assert settled(worker, task) == ("Queued", 0)


def test_a_handler_that_hears_nothing_is_killed_and_its_task_not_counted(start_worker: Start) -> None:
    worker = start_worker(environ={"WAN2GP_STOP_GRACE_S": "0.2"})
    task = worker.insert("deaf", LONG)
    worker.running(task)
    clock = begin_stop(worker)
    assert left(worker, clock, 0.2) == 0
    assert settled(worker, task) == ("Queued", 0)


def test_a_frozen_handler_is_killed_too(start_worker: Start) -> None:
    worker = start_worker(environ={"WAN2GP_STOP_GRACE_S": "0.2"})
    task = worker.insert("sleeper", LONG)
    worker.running(task)
    os.kill(worker.handler_pid("sleeper"), signal.SIGSTOP)
    clock = begin_stop(worker)
    assert left(worker, clock, 0.2) == 0
    assert settled(worker, task) == ("Queued", 0)


@pytest.mark.long
def test_a_frozen_shim_does_not_hold_the_end_up(start_worker: Start) -> None:
    worker = start_worker(environ={"WAN2GP_STOP_GRACE_S": "0.2"})
    task = worker.insert("sleeper", LONG)
    worker.running(task)
    os.kill(psutil.Process(worker.handler_pid("sleeper")).ppid(), signal.SIGSTOP)
    clock = begin_stop(worker)
    assert left(worker, clock, 0.2) == 0
    assert settled(worker, task) == ("Queued", 0)


def test_a_handler_that_is_just_starting_does_not_hold_the_end_up(start_worker: Start) -> None:
    worker = start_worker(environ=PATIENT)
    worker.sql("INSERT INTO tasks (task_type, params, status) SELECT 'unimportable', '{}', 'queued'")
    task = worker.insert("sleeper", LONG)
    eventually("one is starting", lambda: "Starting handler" in worker.log)
    clock = StopClock()
    worker.process.send_signal(signal.SIGTERM)
    worker.process.send_signal(signal.SIGTERM)
    assert left(worker, clock) == 0
    assert settled(worker, task) == ("Queued", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_has_not_started_yet_leaves_as_well(start_worker: Start, queue_db: str, number: int) -> None:
    with FaultyLink(queue_db) as link:
        link.freeze()
        worker = start_worker(f"--database-url={link.url}", wait=False)
        run_dir = Path(worker.environ["WAN2GP_RUN_DIR"])
        eventually("it waits for its database", lambda: (run_dir / "lock").exists())
        worker.process.send_signal(number)
        assert left(worker) == 0
        assert not run_dir.exists()


@pytest.mark.long
def test_a_stop_while_the_database_is_away_keeps_what_ended(
    start_worker: Start, pg_server: PgServer, tmp_path: Path
) -> None:
    worker = start_worker(environ=PATIENT)
    gate = tmp_path / "gate"
    done = worker.insert("tardy", {"files": {"a.txt": "x"}, "gate": str(gate)})
    long = worker.insert("sleeper", LONG)
    for task in (done, long):
        worker.running(task)
    pg_server.stop_server()
    eventually("it notices", lambda: "Database unreachable" in worker.log)
    gate.touch()
    journal = worker.data_dir / "spool" / "journal"
    eventually("it ended", lambda: done.encode() in journal.read_bytes())
    begin_stop(worker)
    clock = StopClock()
    worker.process.send_signal(signal.SIGTERM)
    assert left(worker, clock, END_S) == 0
    pg_server.start_server()
    again = start_worker()
    again.ended(done)
    assert settled(again, done) == ("Complete", 1)
    eventually("it runs again", lambda: f"task {long}" in again.log[again.log.rindex("started. Polling") :])
    assert settled(again, long) == ("In Progress", 1)


@pytest.mark.long
def test_a_database_that_hangs_does_not_hold_the_end_up(start_worker: Start, queue_db: str) -> None:
    """What could not be said to it is said by the next life."""
    with FaultyLink(queue_db) as link:
        worker = start_worker(f"--database-url={link.url}", environ={"WAN2GP_STOP_GRACE_S": "0.2"})
        task = worker.insert("sleeper", LONG)
        worker.running(task)
        link.freeze()
        clock = begin_stop(worker)
        assert left(worker, clock, 0.2 + END_S) == 0
        assert settled(worker, task) == ("In Progress", 1)
        assert task.encode() in (worker.data_dir / "spool" / "journal").read_bytes()


# -- drain and once --------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_drained_it_ends_what_it_has_and_begins_nothing_until_resumed(worker: Worker) -> None:
    running = worker.insert("sleeper", {"seconds": 0.5})
    worker.running(running)
    assert worker.ctl("drain").returncode == 0
    waiting = worker.insert("noop")
    worker.ended(running)
    assert worker.status()["worker"]["state"] == "draining"
    assert settled(worker, waiting) == ("Queued", 0)
    assert worker.ctl("resume").returncode == 0
    worker.ended(waiting)


@pytest.mark.long
def test_once_drains_the_queue_with_its_retries_and_failures(start_worker: Start) -> None:
    first = start_worker()
    first.ctl("drain")
    good = first.insert("maker", {"files": {"a.txt": "x"}})
    bad = first.insert("raiser")
    again = first.insert("crasher", {"exit": 3})
    flaky = first.insert("raiser", {"code": "comfy.exited"}, max_attempts=2)
    after = first.insert("noop", dependant_on=good)
    foreign = first.insert("no_such_type")
    assert first.stop() == 0
    once = start_worker("--once", wait=False)
    assert left(once) == 0
    ends = [settled(once, task) for task in (good, bad, again, flaky, after, foreign)]
    assert ends == [("Complete", 1), ("Failed", 1), ("Complete", 2), ("Failed", 2), ("Complete", 1), ("Queued", 0)]


def test_once_with_nothing_to_do_leaves_at_once(start_worker: Start) -> None:
    worker = start_worker("--once", wait=False)
    assert left(worker) == 0
    assert "Starting handler" not in worker.log


# -- before it began -------------------------------------------------------------------------------------------------


def refused(worker: Worker, code: int, *words: str) -> None:
    assert worker.process.wait(20) == code, worker.screen
    assert all(word in worker.screen for word in words), worker.screen
    assert "Traceback" not in worker.screen
    lines = [line for line in worker.screen.splitlines() if line.startswith("wan2gp-supervisor: ")]
    assert len(lines) == 1


def test_a_database_that_is_not_there_is_exit_5(start_worker: Start) -> None:
    nowhere = "postgresql://somebody:sesame@127.0.0.1:1/nowhere"
    worker = start_worker("--database-url", nowhere, wait=False)
    refused(worker, 5, "cannot reach the database")
    assert "sesame" not in worker.screen + worker.log


def test_a_database_that_refuses_the_password_is_exit_5(start_worker: Start, queue_db: str) -> None:
    wrong = make_conninfo(**{**conninfo_to_dict(queue_db), "password": "open-sesame"})
    worker = start_worker("--database-url", wrong, wait=False)
    refused(worker, 5)
    assert "open-sesame" not in worker.screen + worker.log


def test_a_database_without_the_functions_is_exit_6(start_worker: Start, empty_db: str) -> None:
    worker = start_worker(f"--database-url={empty_db}", wait=False)
    refused(worker, 6, "db migrate")


def test_a_data_directory_in_use_is_exit_4(worker: Worker) -> None:
    second = launch(worker.data_dir, worker.url, worker.environ, wait=False)
    assert second.process.wait(20) == 4
    assert str(worker.process.pid) in second.screen
    worker.ended(worker.insert("noop"))


@pytest.mark.long
def test_a_worker_id_in_use_is_exit_4_until_it_is_taken_over(start_worker: Start, tmp_path: Path) -> None:
    first = start_worker(name="w1")
    task = first.insert("sleeper", LONG)
    first.running(task)
    eventually(
        "it has been heard of",
        lambda: first.sql("SELECT 1 FROM workers WHERE id = 'w1' AND last_heartbeat > now() - interval '5 s'"),
    )
    refused(start_worker("--worker", "w1", name="w2", wait=False), 4, "--takeover", "w1")
    assert settled(first, task) == ("In Progress", 1)
    first.kill()
    refused(start_worker("--worker", "w1", name="w3", wait=False), 4, "--takeover")
    heir = start_worker("--worker", "w1", "--takeover", name="w4")
    heir.running(task)
    eventually("it has the task, which was to blame for nothing", lambda: settled(heir, task) == ("In Progress", 1))


@pytest.mark.long
def test_a_worker_that_left_in_order_gives_its_id_free(start_worker: Start) -> None:
    assert start_worker(name="w1").stop() == 0
    heir = start_worker("--worker", "w1", name="w2")
    heir.ended(heir.insert("noop"))


def run_check(path: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    variables = worker_environment(path, path / "run", **environ)
    command = [sys.executable, "-m", "wan2gp.entry", "--data-dir", str(path / "data"), *options]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=30)


def test_check_tells_all_problems_at_once(tmp_path: Path) -> None:
    wrong = {"COMFY_PORT": "many", "WAN2GP_QUEUE": "redis", "WAN2GP_LEASE_S": "3", "WAN2GP_RENEW_S": "2"}
    done = run_check(tmp_path, "--poll-interval", "soon", "check", **wrong)
    assert done.returncode == 2
    for said in ("COMFY_PORT = 'many'", "WAN2GP_QUEUE = 'redis'", "'soon'", "lease.renew_s"):
        assert said in done.stderr
    assert not (tmp_path / "data").exists()


def test_check_of_what_is_right_says_so_and_shows_no_secret(tmp_path: Path) -> None:
    done = run_check(tmp_path, "check", DATABASE_URL="postgresql://me:sesame@db/x")
    assert done.returncode == 0
    assert "ok: queue postgres" in done.stdout and "sesame" not in done.stdout + done.stderr


def test_an_option_that_does_not_exist_is_exit_2(tmp_path: Path) -> None:
    done = run_check(tmp_path, "--pol-intervall=3")
    assert done.returncode == 2 and "--pol-intervall" in done.stderr


def test_a_worker_id_that_no_shell_expanded_is_read_from_the_environment(start_worker: Start) -> None:
    worker = start_worker("--worker", "$POD_NAME", environ={"POD_NAME": "pod-7"})
    assert "Worker pod-7 started" in worker.log
    assert "was the literal $POD_NAME" in worker.log
    task = worker.insert("noop")
    worker.ended(task)
    assert json.loads(worker.ctl("status", "--json").stdout)["worker"]["worker"] == "pod-7"
