"""Work that ends while its Supabase project is not itself: it is settled once, as soon as the project is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest_worker import eventually
from tests.front_faults import Fault
from tests.publish_bench import PATIENCE_S, Bench
from tests.supabase_stack import Stack
from wan2gp.config_options import Secret
from wan2gp.supervisor.supabase_project import SupabaseProject
from wan2gp.supervisor.supabase_queue import SupabaseQueue

FINISH = "rpc/wan2gp_finish"
HTML = {"Content-Type": "text/html"}
PASSING: dict[str, Fault] = {
    "the key is refused": Fault(FINISH, "status", 401, body={"message": "Invalid API key"}, times=None),
    "the gateway knows no such path": Fault(FINISH, "status", 404, body={}, times=None),
    "a firewall's page": Fault(FINISH, "status", 403, HTML, "<html>denied</html>", times=None),
    "a login page": Fault(FINISH, "status", 200, HTML, "<html>hello</html>", times=None),
    "the project is paused": Fault(FINISH, "status", 540, times=None),
    "too many requests": Fault(FINISH, "status", 429, times=None),
    "every answer is lost": Fault(FINISH, "cut_after", times=None),
}


@pytest.fixture
def bench(tmp_path: Path, lasting_stack: Stack) -> Iterator[Bench]:
    with closing(SupabaseProject(lasting_stack.url, Secret(lasting_stack.key))) as project:
        with closing(SupabaseQueue(project)) as queue:
            yield Bench(tmp_path, queue)  # type: ignore[arg-type]


def settled_once(bench: Bench, task: Any) -> None:
    row = bench.row(task)
    assert (row["status"], row["attempts"], row["error_message"]) == ("Complete", 1, None)
    names = [event["name"] for event in row["events"]]
    assert names == ["queued", "claimed", "completed"]
    assert (bench.shown(), bench.rest()) == ({"a.txt": "eins"}, [])


@pytest.mark.long
@pytest.mark.parametrize("what", list(PASSING))
def test_work_that_is_done_waits_until_its_project_will_have_it(bench: Bench, lasting_stack: Stack, what: str) -> None:
    fault = lasting_stack.front.faults.add(replace(PASSING[what], hits=0, lifted=threading.Event()))
    task = bench.claim()
    with bench.life() as settler:
        settler.submit(bench.ending(task, {"a.txt": "eins"}))
        eventually("it is said", lambda: {"queue.unavailable", "queue.refused"} & set(bench.facts.names()))
        assert fault.hits and bench.shown() == {}, "nothing is shown that the database does not know"
        lasting_stack.front.faults.clear()
        assert settler.flush(PATIENCE_S)
    settled_once(bench, task)
    assert not bench.failures


def test_an_outcome_that_the_database_will_never_have_fails_the_task(bench: Bench, lasting_stack: Stack) -> None:
    """Nobody's work is held up by it."""
    no = {"code": "P0001", "message": "no credit", "hint": None, "details": None}
    lasting_stack.front.faults.add(Fault(FINISH, "status", 400, body=no))
    task, other = bench.claim(), bench.claim()
    with bench.life() as settler:
        settler.submit(bench.ending(task, {"a.txt": "eins"}))
        assert settler.flush(PATIENCE_S)
        settler.submit(bench.ending(other, {"a.txt": "eins"}))
        assert settler.flush(PATIENCE_S)
    row = bench.row(task)
    assert row["status"] == "Failed" and "no credit" in row["error_message"]
    settled_once(bench, other)
