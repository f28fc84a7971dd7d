"""Whole workers by the predecessor's functions, on its tables and nothing of ours: "no database changes needed"."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.comfy_jobs import picture
from tests.conftest_supabase import POLLING
from tests.conftest_worker import Row, Worker, eventually, launch, surely_end, worker_environment
from tests.edge_projects import BUCKET, USER, EdgeProject
from tests.front_faults import Fault
from wan2gp.supervisor.edge_queue import WEAKER

Start = Callable[..., Worker]
WAYS = pytest.mark.parametrize(("key", "queue"), [("service", "edge"), ("pat", "auto")])
BOTH_IF_LONG = pytest.mark.parametrize(
    ("key", "queue"), [("service", "edge"), pytest.param("pat", "auto", marks=pytest.mark.long)]
)
"""Where the tests of the queue alone tell most of the difference."""
CLAIM, COMPLETE = "claim-next-task", "complete_task"


@pytest.fixture
def start(edge: EdgeProject, tmp_path: Path, run_dirs: Callable[[], Path]) -> Iterator[Start]:
    """Workers named ``w1`` on the project, by a key and a queue."""
    started: list[Worker] = []

    def begin(*options: str, key: str = "service", queue: str = "edge", wait: bool = True, **environ: str) -> Worker:
        given = {
            "SUPABASE_URL": edge.stack.url,
            "SUPABASE_SERVICE_ROLE_KEY": edge.stack.key if key == "service" else edge.pat,
            "WAN2GP_QUEUE": queue,
            "WORKER_ID": "w1",
        }
        variables = worker_environment(tmp_path, run_dirs(), **given, **environ)
        worker = launch(tmp_path / "w1", edge.stack.database, variables, *POLLING, *options, wait=wait)
        started.append(worker)
        return worker

    yield begin
    edge.stack.front.up()
    edge.stack.front.faults.clear()
    surely_end(started)


def completed_once(edge: EdgeProject, worker: Worker, task_id: str) -> bytes:
    """What anybody gets at the place that the row names."""
    row = worker.ended(task_id)
    assert row["status"] == "Complete", (row["output_location"], worker.log[-3000:])
    (generation,) = edge.generations(task_id)
    assert generation["location"] == row["output_location"]
    assert f"/object/public/{BUCKET}/{USER}/tasks/{task_id}/1-" in row["output_location"]
    with urlopen(row["output_location"]) as answer:
        return bytes(answer.read())


def text(word: str, **more: object) -> Row:
    return {"files": {"a.txt": word}, **more}


class TestWork:
    @WAYS
    def test_a_comfy_task_is_complete_at_a_public_url_and_a_bad_one_failed_with_the_reason(
        self, edge: EdgeProject, start: Start, key: str, queue: str
    ) -> None:
        worker = start(key=key, queue=queue)
        assert all(sentence in worker.log for sentence in WEAKER)
        good = edge.insert("comfy", {"workflow": picture()})
        bad = edge.insert("comfy", {"workflow": {"1": {"class_type": "NoSuchNode", "inputs": {}}}})
        foreign = edge.insert("magic_edit")
        assert completed_once(edge, worker, good).startswith(b"\x89PNG")
        row = worker.ended(bad)
        assert row["status"] == "Failed" and "NoSuchNode" in row["output_location"]
        assert ": " in row["output_location"]
        assert row["error_message"] == (row["output_location"] if key == "service" else None)
        assert edge.row(foreign)["status"] == "Queued"
        assert worker.sql("SELECT to_regclass('task_leases') AS ours") == [{"ours": None}]
        eventually("the spool is empty", worker.spool_is_empty)
        secret = edge.stack.key if key == "service" else edge.pat
        assert secret not in worker.log + worker.screen + str(edge.sql("SELECT * FROM tasks"))

    @pytest.mark.long
    @BOTH_IF_LONG
    def test_answers_that_are_lost_double_nothing(self, edge: EdgeProject, start: Start, key: str, queue: str) -> None:
        worker = start(key=key, queue=queue)
        faults = [
            edge.stack.front.faults.add(Fault("object/upload/sign", "cut_after")),
            edge.stack.front.faults.add(Fault(COMPLETE, "cut_after", times=2)),
        ]
        if key == "service":
            faults.append(edge.stack.front.faults.add(Fault(CLAIM, "cut_after", times=2)))
        tasks = [edge.insert("maker", text(f"number {number}")) for number in range(3)]
        for number, task_id in enumerate(tasks):
            assert completed_once(edge, worker, task_id) == f"number {number}".encode()
        eventually("all of them were met", lambda: all(fault.hits == fault.times for fault in faults))
        assert len([path for path in edge.stack.storage.paths(BUCKET) if any(one in path for one in tasks)]) == 3

    def test_once_drains_what_is_for_us_and_leaves_the_rest(self, edge: EdgeProject, start: Start) -> None:
        ours, foreign = edge.insert("maker", text("a")), edge.insert("magic_edit")
        worker = start("--once", wait=False)
        assert worker.process.wait(30) == 0
        assert edge.statuses(ours, foreign) == ["Complete", "Queued"]


class TestTrouble:
    @pytest.mark.long
    def test_a_killed_worker_puts_its_task_back_at_its_next_start(self, edge: EdgeProject, start: Start) -> None:
        worker = start()
        task_id = edge.insert("maker", text("a", seconds=1.0))
        worker.running(task_id)
        worker.kill()
        assert edge.row(task_id)["status"] == "In Progress"
        again = start()
        assert "Took back 1 task(s)" in again.log
        assert completed_once(edge, again, task_id) == b"a"

    def test_a_task_that_its_user_cancels_is_stopped_and_stays_cancelled(self, edge: EdgeProject, start: Start) -> None:
        worker = start()
        task_id = edge.insert("sleeper", {"seconds": 60})
        worker.running(task_id)
        assert worker.ctl("cancel", task_id).returncode == 0
        eventually("it is stopped", lambda: f"Task {task_id} cancelled" in worker.log)
        assert edge.row(task_id)["status"] == "Cancelled" and not edge.generations(task_id)
        assert completed_once(edge, worker, edge.insert("maker", text("b"))) == b"b"

    @pytest.mark.long
    @BOTH_IF_LONG
    def test_an_outage_kills_no_work_and_is_shown(self, edge: EdgeProject, start: Start, key: str, queue: str) -> None:
        """Longer than a lease would have lasted, were there one."""
        worker = start(key=key, queue=queue, WAN2GP_LEASE_S="2", WAN2GP_RENEW_S="0.4")
        tasks = [edge.insert("maker", text(f"{number}", seconds=1.0)) for number in range(2)]
        worker.running(tasks[0])
        edge.stack.front.down()
        time.sleep(2.8)  # how long it lasts, not what is waited for
        if key == "service":
            eventually("it is shown", lambda: not worker.status()["worker"]["database_ok"])
        edge.stack.front.up()
        for number, task_id in enumerate(tasks):
            assert completed_once(edge, worker, task_id) == f"{number}".encode()
        assert "Database reachable again" in worker.log and worker.process.poll() is None

    def test_people_see_the_queue_through_the_worker(self, edge: EdgeProject, start: Start) -> None:
        worker = start()
        foreign = edge.insert("magic_edit")
        told = worker.status()
        assert told["worker"]["queue"] == "edge" and told["worker"]["database_ok"]
        assert told["worker"]["unclaimable"][0]["task_type"] == "magic_edit"
        shown = worker.ctl("tasks", "--json")
        assert shown.returncode == 0 and foreign in shown.stdout
        assert [row["id"] for row in edge.sql("SELECT id, status FROM workers WHERE status = 'active'")] == ["w1"]

    def test_a_project_without_the_functions_ends_with_their_name_and_the_remedy(
        self, edge: EdgeProject, start: Start
    ) -> None:
        edge.functions.faults.missing = {CLAIM}
        worker = start(wait=False)
        assert worker.process.wait(30) == 6
        assert CLAIM in worker.screen and "wan2gp-ctl db migrate" in worker.screen
