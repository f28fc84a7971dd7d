"""docs/operations.md: its commands succeed on a live worker, its statements on a live database, its words are ours."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.conftest_db import PgServer
from tests.conftest_worker import ROOT, Worker
from tests.shared_worker import shared_worker
from wan2gp.config_options import OPTIONS
from wan2gp.errors import REGISTRY
from wan2gp.supervisor.profiles import CACHES

PAGE = (ROOT / "docs" / "operations.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
STATEMENTS = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer) -> Iterator[Worker]:
    with shared_worker(tmp_path_factory.mktemp("operations"), _pg_session) as running:
        running.ended(running.insert("noop"))
        running.ended(running.insert("raiser", {"code": "comfy.validation"}))
        yield running


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_succeeds(worker: Worker, command: str) -> None:
    program, *arguments = command.split()
    assert program == "wan2gp-ctl"
    done = worker.ctl(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("number", range(len(STATEMENTS)))
def test_the_statement_is_understood(worker: Worker, number: int) -> None:
    worker.sql(STATEMENTS[number])


def test_a_failed_row_set_to_queued_by_sql_is_run_again(worker: Worker) -> None:
    task = worker.insert("raiser", {"code": "comfy.exited"}, max_attempts=1)
    assert worker.ended(task)["status"] == "Failed"
    (statement,) = [text for text in STATEMENTS if "LIKE 'comfy.exited" in text]
    worker.sql(statement)
    worker.ended(task)
    assert [event["name"] for event in worker.events(task)].count("failed") == 2


def test_every_code_and_variable_that_it_names_is_there() -> None:
    codes = set(re.findall(r"`((?:comfy|task|input|handler|engine|worker|output)\.[a-z_]+)", PAGE))
    assert codes - {"worker.py"} and not codes - {"worker.py"} - set(REGISTRY)
    known = {option.env for option in OPTIONS.values()} | {"RUNPOD_POD_ID", "RUNPOD_WORKER_IMAGE", "PUBLIC_KEY"}
    known |= {*CACHES, "HF_ENDPOINT"}
    named = set(re.findall(r"`([A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+)(?:=[^`]*)?`", PAGE))
    assert named and not named - known
