"""What a hostile handler may say costs at most its own task: the supervisor, its log and other processes stay whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest_db import PgServer
from tests.conftest_worker import ROOT, Worker, eventually
from tests.shared_worker import shared_worker
from wan2gp.supervisor.control_door import INTRUSIONS


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer) -> Iterator[Worker]:
    with shared_worker(tmp_path_factory.mktemp("lasting"), _pg_session) as worker:
        yield worker


@pytest.mark.parametrize("how", ["numbers", "lines", "progress", "hello", "want", "deep"])
def test_it_says_odd_things_and_its_task_completes_all_the_same(lasting: Worker, how: str) -> None:
    row = lasting.ended(lasting.insert("forger", {"how": how}))
    assert (row["status"], row["attempts"]) == ("Complete", 1)
    assert lasting.ended(lasting.insert("noop"))["status"] == "Complete"


def test_an_outcome_too_deep_to_be_stored_is_one_clear_failure(lasting: Worker) -> None:
    row = lasting.ended(lasting.insert("forger", {"how": "deeper"}, max_attempts=1))
    assert row["status"] == "Failed"
    assert "nested more than" in row["error_message"]
    assert lasting.ended(lasting.insert("noop"))["status"] == "Complete"


def test_no_line_of_the_log_is_forged(lasting: Worker) -> None:
    lasting.ended(lasting.insert("forger", {"how": "lines"}))
    lines = lasting.log.splitlines()
    assert any("forged" in line for line in lines)
    assert not [line for line in lines if line.startswith("2026-01-01") or line.startswith("2026 CRITICAL")]
    assert "\x1b" not in lasting.log


def test_no_other_task_is_ended_or_told_of_by_it(lasting: Worker) -> None:
    sleeper = lasting.insert("sleeper", {"seconds": 60})
    lasting.running(sleeper)
    lease = str(lasting.sql("SELECT lease_id FROM task_leases WHERE task_id = %s", sleeper)[0]["lease_id"])
    before = lasting.handler("forger")["unheard"]
    row = lasting.ended(lasting.insert("forger", {"how": "others", "task": sleeper, "lease": lease}))
    assert (row["status"], row["attempts"], row["result_data"]["how"]) == ("Complete", 1, "others")
    assert lasting.row(sleeper)["status"] == "In Progress"
    assert f"Task {sleeper} completed" not in lasting.log and "said.task.completed" in lasting.log
    assert lasting.handler("forger")["unheard"] == before + 3
    lasting.ctl("cancel", sleeper)
    assert lasting.ended(sleeper)["status"] == "Cancelled"


@pytest.mark.long
def test_a_flood_of_facts_does_not_drown_the_log(lasting: Worker) -> None:
    before = lasting.handler("forger")["unheard"]
    assert lasting.ended(lasting.insert("forger", {"how": "noise"}))["status"] == "Complete"
    log = lasting.log
    assert 0 < log.count("noise number=") < 1000 and "x" * 5000 not in log
    assert log.count("Handler forger says more than is listened to") == 1
    assert lasting.handler("forger")["unheard"] > before + 2000


def test_a_process_that_it_names_as_its_engine_is_not_killed_by_the_next_life(lasting: Worker) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        lasting.ended(lasting.insert("forger", {"how": "pid", "pid": stranger.pid}))
        noted = (lasting.data_dir / "children.json").read_text()
        assert str(stranger.pid) not in noted
    finally:
        stranger.communicate(b"\n")


@pytest.mark.parametrize("depth", [pytest.param(150, marks=pytest.mark.long), 600])
def test_deep_params_of_a_stranger_reach_the_handler_or_fail_alone(lasting: Worker, depth: int) -> None:
    deep: Any = "x"
    for _ in range(depth):
        deep = [deep]
    import json

    statement = "INSERT INTO tasks (task_type, params, status) VALUES ('fetcher', %s, 'queued') RETURNING id"
    params = json.dumps({"deep": deep, "url": "http://127.0.0.1:1/x"})
    row = lasting.ended(str(lasting.sql(statement, params)[0]["id"]))
    assert row["status"] == "Failed"
    assert row["error_message"].split(":")[0] in ("input.forbidden_address", "input.too_large", "input.bad_params")
    assert lasting.ended(lasting.insert("noop"))["status"] == "Complete"


# -- on the sockets of the supervisor -------------------------------------------------------------------------------


@pytest.mark.long
def test_a_child_with_more_connections_than_the_supervisor_has_descriptors(lasting: Worker) -> None:
    """An assertion of libzmq ended the whole worker here."""
    supervisor = psutil.Process(lasting.process.pid)
    before = supervisor.rlimit(psutil.RLIMIT_NOFILE)
    supervisor.rlimit(psutil.RLIMIT_NOFILE, (supervisor.num_fds() + 40, before[1]))
    try:
        row = lasting.ended(lasting.insert("intruder", {"how": "connections", "count": 200}))
    finally:
        supervisor.rlimit(psutil.RLIMIT_NOFILE, before)
    assert row["result_data"]["attempts"][0]["message"] == "broke the protocol: it opens connection after connection"
    assert (row["status"], row["attempts"]) == ("Complete", 2)
    assert lasting.ended(lasting.insert("noop"))["status"] == "Complete"


@pytest.mark.long
def test_a_message_without_an_end_costs_the_supervisor_no_memory(lasting: Worker) -> None:
    supervisor = psutil.Process(lasting.process.pid)
    before = supervisor.memory_info().rss
    row = lasting.ended(lasting.insert("intruder", {"how": "endless", "times": 400}))
    assert row["result_data"]["attempts"][0]["message"] == "broke the protocol: a message of several frames"
    assert (row["status"], row["attempts"]) == ("Complete", 2)
    assert supervisor.memory_info().rss - before < 64 << 20
    assert lasting.ended(lasting.insert("noop"))["status"] == "Complete"


@pytest.mark.long
def test_an_end_told_under_anothers_name_ends_nobody_elses_task(lasting: Worker) -> None:
    sleeper = lasting.insert("sleeper", {"seconds": 60})
    lasting.running(sleeper)
    lease = lasting.sql("SELECT lease_id FROM task_leases WHERE task_id = %s", sleeper)[0]["lease_id"]
    forged = {"how": "forged", "identity": "sleeper#1#" + "0" * 32, "task": sleeper, "lease": str(lease)}
    row = lasting.ended(lasting.insert("intruder", forged))
    assert row["result_data"]["attempts"][0]["message"] == "broke the protocol: a connection under another's name"
    assert lasting.row(sleeper)["status"] == "In Progress"
    lasting.ctl("cancel", sleeper)
    assert lasting.ended(sleeper)["status"] == "Cancelled"


@pytest.mark.long
@pytest.mark.parametrize("how", ["chatter", "second"])
def test_what_is_only_too_much_costs_its_sender_time_alone(lasting: Worker, how: str) -> None:
    task = lasting.insert("intruder", {"how": how, "count": 6000})
    assert lasting.ended(lasting.insert("noop"))["status"] == "Complete"
    row = lasting.ended(task)
    assert (row["status"], row["attempts"]) == ("Complete", 1)


@pytest.mark.long
def test_garbage_on_the_socket_is_told_as_what_it_is(lasting: Worker) -> None:
    row = lasting.ended(lasting.insert("intruder", {"how": "garbage"}))
    assert (row["status"], row["attempts"]) == ("Complete", 2)
    assert "a greeting that is not ZMTP's" in row["result_data"]["attempts"][0]["message"]


def test_a_handler_with_thousands_of_connections_to_the_control_socket_ends_itself_alone(lasting: Worker) -> None:
    """An assertion of libzmq ended the whole worker here."""
    supervisor = psutil.Process(lasting.process.pid)
    before = supervisor.rlimit(psutil.RLIMIT_NOFILE)
    supervisor.rlimit(psutil.RLIMIT_NOFILE, (supervisor.num_fds() + 40, before[1]))
    try:
        row = lasting.ended(lasting.insert("intruder", {"how": "control", "count": 1_000_000}))
    finally:
        supervisor.rlimit(psutil.RLIMIT_NOFILE, before)
    (attempt,) = row["result_data"]["attempts"]
    assert attempt["message"] == "broke the protocol: it opens connection after connection to the control socket"
    assert (row["status"], row["attempts"]) == ("Complete", 2)
    assert lasting.status()["worker"]["turned_away"]["handler"] > INTRUSIONS.burst
    assert "Connections to the control socket were turned away so far: " in lasting.log
    assert lasting.ended(lasting.insert("noop"))["status"] == "Complete"


@pytest.mark.long
def test_a_handlers_endless_message_to_the_control_socket_is_not_even_read(lasting: Worker) -> None:
    supervisor = psutil.Process(lasting.process.pid)
    before = supervisor.memory_info().rss
    row = lasting.ended(lasting.insert("intruder", {"how": "control_endless", "times": 400}))
    assert (row["status"], row["attempts"]) == ("Complete", 1)
    assert supervisor.memory_info().rss - before < 64 << 20
    eventually("it is counted", lambda: lasting.status()["worker"]["turned_away"]["handler"])


@pytest.mark.long
def test_the_operators_command_is_answered_while_a_handler_floods_its_socket(lasting: Worker) -> None:
    script = "import socket, sys\nown = socket.socket(1)\nown.connect(sys.argv[1])\nwhile own.recv(64): pass"
    path = str(Path(lasting.environ["WAN2GP_RUN_DIR"]) / "control")
    outsiders = [subprocess.Popen([sys.executable, "-c", script, path], cwd=ROOT) for _ in range(4)]
    try:
        task = lasting.insert("intruder", {"how": "control", "count": 1_000_000})
        while lasting.row(task)["status"] not in ("Complete", "Failed"):
            assert lasting.status()["worker"]["state"] == "running"
    finally:
        for each in outsiders:
            each.kill()
            each.wait()
