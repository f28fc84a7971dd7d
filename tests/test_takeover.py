"""Two workers and one name, and who has a task when its worker goes: never both, and never later than it must be."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.conftest_worker import Row, Worker, eventually
from tests.contract_bench import beat, claim, end
from wan2gp.config import load_config
from wan2gp.supervisor.app import App, Order, Superseded
from wan2gp.supervisor.health import Health
from wan2gp.supervisor.loop import Stage
from wan2gp.supervisor.postgres import PostgresQueue
from wan2gp.supervisor.protection import Protection

Start = Callable[..., Worker]
OFTEN = ("--poll-interval", "0.2")
NEVER = {"WAN2GP_LEASE_S": "3000", "WAN2GP_RENEW_S": "1"}
"""Leases that outlive every test: what changes hands does so for another reason than that one has expired."""


def files_of(worker: Worker, task: str) -> list[Path]:
    return [path for path in (worker.data_dir / "outputs").rglob("*") if path.name.startswith(task)]


def done_by_the_heir(worker: Worker, task: str) -> Row:
    """In the second claim. Whoever gave it back, no process had died: the first one cost nothing."""
    row = worker.ended(task)
    names = [event["name"] for event in worker.events(task)]
    assert (row["status"], row["attempts"]) == ("Complete", 1), (row, worker.log[-3000:])
    assert [names.count(name) for name in ("claimed", "released", "completed")] == [2, 1, 1]
    assert [str(path) for path in files_of(worker, task)] == [row["output_location"]]
    return row


def left_for_another(worker: Worker) -> None:
    """It has ended because its name is another's, says so, and leaves nothing running."""
    assert worker.process.wait(20) == 4, worker.screen[-3000:]
    assert "has taken the id w1 over" in worker.log
    assert "Traceback" not in worker.screen
    eventually("nothing is left of it", lambda: not worker.survivors())


@pytest.mark.parametrize("frozen", [False, pytest.param(True, marks=pytest.mark.long)], ids=["running", "frozen"])
def test_a_living_worker_whose_name_is_taken_over_loses_its_task_publishes_nothing_and_leaves(
    start_worker: Start, tmp_path: Path, frozen: bool
) -> None:
    first = start_worker(*OFTEN, name="w1", environ=NEVER)
    gate = tmp_path / "gate"
    task = first.insert("tardy", {"gate": str(gate), "files": {"a.txt": "x"}})
    first.running(task)
    first.family()
    if frozen:  # it wakes up when all is over, with a result
        first.process.send_signal(signal.SIGSTOP)
        gate.touch()
    second = start_worker("--worker", "w1", name="w2", environ=NEVER, wait=False)
    assert second.process.wait(20) == 4 and "--takeover" in second.screen
    assert first.process.poll() is None and first.row(task)["attempts"] == 1
    heir = start_worker(*OFTEN, "--worker", "w1", "--takeover", name="w2", environ=NEVER)
    heir.running(task)
    if frozen:
        done_by_the_heir(heir, task)
        first.process.send_signal(signal.SIGCONT)
    left_for_another(first)
    gate.touch()
    done_by_the_heir(heir, task)
    assert files_of(first, task) == [] and not list((first.data_dir / "work").glob("*/*/*"))
    heir.ended(heir.insert("noop"))
    (said,) = heir.sql("SELECT metadata FROM workers WHERE id = 'w1'")
    assert said["metadata"]["instance"] == (heir.data_dir / "instance").read_text()


def test_of_two_workers_of_one_name_that_start_at_once_one_works_and_the_other_leaves(start_worker: Start) -> None:
    twins = [start_worker(*OFTEN, "--worker", "w1", name=name, environ=NEVER, wait=False) for name in ("one", "two")]
    eventually("one starts", lambda: any("started. Polling" in twin.log for twin in twins))
    eventually("one leaves", lambda: any(twin.process.poll() is not None for twin in twins))
    (loser,) = [twin for twin in twins if twin.process.poll() is not None]
    (winner,) = [twin for twin in twins if twin.process.poll() is None]
    assert loser.process.returncode == 4 and "--worker" in loser.screen
    assert "started. Polling" in winner.log and "Took back" not in winner.log
    winner.ended(winner.insert("noop"))


@pytest.fixture
def late(lasting_database: str, tmp_path: Path) -> Iterator[App]:
    """A worker of the name w1 that has got it, and has not yet taken back what an earlier life left."""
    config = load_config(flags={"data_dir": str(tmp_path), "worker_id": "w1", "database_url": lasting_database})
    app = App(config, Order())
    app._instance = "late"
    app._loop = SimpleNamespace(  # type: ignore[assignment]
        stage=Stage.RUNNING,
        handlers={},
        desks=(),
        health=Health(lambda *_, **__: None),
        unable={},
        protection=Protection("best"),
    )
    queue = PostgresQueue(lasting_database)
    app._backend = SimpleNamespace(queue=queue, kind="postgres")  # type: ignore[assignment]
    app._take_worker_id()
    yield app
    queue.close()


def recover(app: App) -> None:
    """Nothing waits to be delivered."""
    settler: Any = SimpleNamespace(start=lambda: None, depth=0, error=None, unpublished=list)
    idle: Any = SimpleNamespace(start=lambda: None)
    app._recover(settler, idle, cast(Any, SimpleNamespace(leftovers=list)))


def test_a_worker_whose_name_is_taken_over_while_it_starts_takes_nothing_from_its_heir(late: App) -> None:
    """It had the name when it began, and its start took long."""
    queue = late._backend.queue
    queue.heartbeat("w1", (), 90, {"instance": "heir", "takeover": True})
    queue.enqueue("noop", {})
    (task,) = claim(queue, "noop", worker="w1")
    with pytest.raises(Superseded, match="has taken the id w1 over"):
        recover(late)
    assert beat(queue, task, worker="w1") == ([], [])
    assert end(queue, task).accepted


def test_a_worker_that_still_has_its_name_takes_back_what_it_left(late: App) -> None:
    queue = late._backend.queue
    queue.enqueue("noop", {})
    (task,) = claim(queue, "noop", worker="w1")
    recover(late)
    assert not end(queue, task).accepted


@pytest.mark.long
def test_a_worker_that_is_not_heard_of_for_a_lease_gives_its_name_free(start_worker: Start) -> None:
    short = {"WAN2GP_LEASE_S": "3", "WAN2GP_RENEW_S": "0.5"}
    first = start_worker(*OFTEN, name="w1", environ=short)
    first.process.send_signal(signal.SIGSTOP)
    eventually(
        "it is not heard of",
        lambda: first.sql("SELECT 1 FROM workers WHERE last_heartbeat < now() - interval '3 s'"),
    )
    heir = start_worker(*OFTEN, "--worker", "w1", name="w2", environ=short)
    first.process.send_signal(signal.SIGCONT)
    left_for_another(first)
    heir.ended(heir.insert("noop"))


@pytest.mark.long
def test_what_a_worker_leaves_is_taken_up_before_any_lease_could_have_ended(start_worker: Start) -> None:
    """A killed one takes it back itself, as soon as it starts again under its own name; a stopped one gives it to
    another, who waits for work."""
    first = start_worker(*OFTEN, name="w1", environ=NEVER)
    task = first.insert("sleeper", {"seconds": 600})
    first.running(task)
    first.kill()
    again = start_worker(*OFTEN, name="w1", environ={**NEVER, "WAN2GP_STOP_GRACE_S": "0.2"})
    eventually("it runs again", lambda: again.log.count(f"Processing sleeper task {task}") == 2)
    row = again.row(task)
    assert (row["status"], row["worker_id"], row["attempts"]) == ("In Progress", "w1", 2)
    other = start_worker(*OFTEN, name="w2", environ=NEVER)
    assert again.stop() == 0
    other.running(task)
    row = other.row(task)
    assert (row["status"], row["worker_id"], row["attempts"]) == ("In Progress", "w2", 2)
    events = [event for event in other.events(task) if event["name"] != "progress"]
    assert [event["name"] for event in events] == ["queued", "claimed", "retried", "claimed", "released", "claimed"]
    assert events[2]["detail"]["cause"]["kind"] == "worker_died"
    assert (events[-1]["at"] - events[0]["at"]).total_seconds() < float(NEVER["WAN2GP_LEASE_S"])
