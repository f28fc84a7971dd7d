"""Rows that no worker can run: each ends with a reason, and harms neither the worker nor the row behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest_db import PgServer
from tests.conftest_worker import Worker, eventually
from tests.shared_worker import shared_worker
from wan2gp.protocol import MAX_CONTAINERS, MAX_MESSAGE_BYTES


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer) -> Iterator[Worker]:
    with shared_worker(tmp_path_factory.mktemp("lasting"), _pg_session) as worker:
        yield worker


def nested(levels: int) -> str:
    return "[" * levels + "1" + "]" * levels


LARGE = "input.too_large: the task's params are too large"
BULKY = "input.too_large: the task's params cannot be read: what is in them "
UNREADABLE = "input.bad_params: the task's params cannot be read"
POISON = {
    "larger than a message may be": ('{"image": "' + "x" * MAX_MESSAGE_BYTES + '"}', LARGE),
    "nested three hundred deep": (nested(300), BULKY),
    "more lists than anybody means": ('{"x": [' + ", ".join(["[]"] * MAX_CONTAINERS) + "]}", BULKY),
    "an integer of 5000 digits": ('{"seed": ' + "9" * 5000 + "}", UNREADABLE),
    "nested three thousand deep": (nested(3000), UNREADABLE),
    "nested three thousand deep in a string": ('"' + nested(3000) + '"', UNREADABLE),
}
HARMLESS = {
    "nested too deep for the database, in a string": '"' + nested(200_000) + '"',
    "an integer of 40 digits": '{"seed": ' + "9" * 40 + "}",
    "a number that no float holds": '{"x": 1e400}',
    "a fraction of 500 digits": '{"x": 0.' + "3" * 500 + "}",
    "a word": '"word"',
    "nothing": "null",
    "a string with an object in it": '"{\\"a\\": [1]}"',
    "an object of an object in a string": '"\\"{}\\""',
    "a lone surrogate escaped twice": '{"x": "\\\\ud800"}',
    "nested a hundred deep": nested(100),
    "ten thousand keys": "{" + ",".join(f'"{number}": {number}' for number in range(10_000)) + "}",
}


def insert(worker: Worker, params: str) -> str:
    statement = "INSERT INTO tasks (task_type, params, status) VALUES ('noop', %s::jsonb, 'queued') RETURNING id"
    return str(worker.sql(statement, params)[0]["id"])


@pytest.mark.parametrize("what", list(POISON))
def test_a_row_that_cannot_be_told_to_a_handler_fails_alone(lasting: Worker, what: str) -> None:
    params, error = POISON[what]
    poison, behind = insert(lasting, params), lasting.insert("noop")
    assert lasting.ended(behind)["attempts"] == 1
    look = "SELECT status, attempts, error_message FROM tasks WHERE id = %s AND status <> 'In Progress'"
    (row,) = eventually("it has ended", lambda: lasting.sql(look, poison))  # its params no Python can hold
    assert (row["status"], row["attempts"]) == ("Failed", 1)
    assert row["error_message"].startswith(error)
    assert len(row["error_message"]) < 500
    assert "Traceback" not in lasting.ctl("task", poison).stderr
    assert lasting.ctl("tasks").returncode == 0
    assert lasting.process.poll() is None


@pytest.mark.parametrize("what", list(HARMLESS))
def test_an_odd_row_is_run_like_any_other(lasting: Worker, what: str) -> None:
    row = lasting.ended(insert(lasting, HARMLESS[what]))
    assert (row["status"], row["attempts"]) == ("Complete", 1)


@pytest.mark.parametrize(
    "task_type", ["noop'; DROP TABLE tasks; --", "../../../tmp/x", "\u202egpj.exe", "x" * 10_000, "{0.__class__}", " "]
)
def test_a_strange_type_is_left_alone_and_can_be_shown(lasting: Worker, task_type: str) -> None:
    task = lasting.insert(task_type)
    lasting.ended(lasting.insert("noop"))
    assert lasting.row(task)["status"] == "Queued"
    assert task_type in [entry["task_type"] for entry in lasting.status()["worker"]["unclaimable"]]
    assert lasting.ctl("status").returncode == lasting.ctl("tasks").returncode == 0
    lasting.sql("DELETE FROM tasks WHERE id = %s", task)


def test_nothing_of_them_is_left(lasting: Worker, tmp_path: Path) -> None:
    lasting.ended(lasting.insert("noop"))
    eventually("no work directory is left", lambda: not list((lasting.data_dir / "work").glob("*/*")))
    eventually("the spool is empty", lasting.spool_is_empty)
