"""The database is away for longer than a lease, and takes calls with it that were on their way: what ran goes on,
nobody is robbed, and every task is done once, in its first attempt."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest_db import PgServer
from tests.conftest_worker import Row, Worker, eventually, plugin
from tests.faulty_link import FaultyLink
from tests.front_faults import Fault, Kind
from tests.supabase_stack import Stack

Start = Callable[..., Worker]
OFTEN = ("--poll-interval", "0.2")
LEASE_S = 3.0
SHORT = {"WAN2GP_LEASE_S": str(LEASE_S), "WAN2GP_RENEW_S": "0.5"}
BUCKET = "image_uploads"
TWO_MINUTES_S = 120.0
FULL = {"WAN2GP_LEASE_S": "90", "WAN2GP_RENEW_S": "2"}
KINDS = {"claim": "maker", "heartbeat": "tardy", "finish": "late"}
"""Which tasks each call is about; of different handlers, so that all can be under way at once."""


def idle(tmp_path: Path, **leases: str) -> dict[str, str]:
    """Variables of a worker that takes none of the tasks here, and looks out for leases that have expired."""
    place = tmp_path / "idle-plugin"
    if not place.exists():
        plugin(place, ("noop",))
    return {"PYTHONPATH": f"{place}:{Path(__file__).parent.parent}", **leases}


class Held:
    """Tasks of one worker: one to be claimed, one that runs and one that ends when the outage comes."""

    def __init__(self, worker: Worker, tmp_path: Path, places: Callable[[str], Sequence[object]] | None = None) -> None:
        """``places`` tells where the files of a task are."""
        self.worker = worker
        self.tasks: dict[str, str] = {}
        self._gates = {call: tmp_path / f"gate-{call}" for call in KINDS}
        self._places = places or self._shown

    def insert(self, call: str) -> str:
        params = {"gate": str(self._gates[call]), "files": {"a.txt": call}}
        self.tasks[call] = self.worker.insert(KINDS[call], params)
        return self.tasks[call]

    def run(self, call: str) -> None:
        self.worker.running(self.insert(call))

    def open(self, call: str) -> None:
        self._gates[call].touch()

    def done_once(self) -> None:
        """By the process that had them, in their first attempt, although all leases had run out meanwhile."""
        for call, task in self.tasks.items():
            self.open(call)
            row = self.worker.ended(task, 60)
            assert (row["status"], row["attempts"]) == ("Complete", 1), (call, row, self.worker.log[-3000:])
            names = [event["name"] for event in self.worker.events(task) if event["name"] != "progress"]
            assert names == ["queued", "claimed", "completed"], (call, self.worker.log[-3000:])
            assert len(self._places(task)) == 1
        eventually("the spool is empty", self.worker.spool_is_empty)
        assert self.worker.log.count("started. Polling") == 1

    def _shown(self, task: str) -> list[Path]:
        return [path for path in (self.worker.data_dir / "outputs").rglob("*") if path.name.startswith(task)]


def status_of(worker: Worker, task: str) -> str:
    row: Row = worker.row(task)
    return str(row["status"])


def pass_by(seconds: float, *workers: Worker) -> None:
    """The outage lasts; nobody dies of it."""
    for worker in workers:
        eventually("it notices", lambda worker=worker: "Database unreachable" in worker.log)  # type: ignore[misc]
    threading.Event().wait(seconds)
    assert [worker.process.poll() for worker in workers] == [None] * len(workers)


def seen_done(call: str, task: str, held: Held, watcher: Worker) -> None:
    """What the database has done of a call; the worker has not heard of it."""
    after = {"claim": "In Progress", "heartbeat": "In Progress", "finish": "Complete"}[call]
    eventually("the database has done it", lambda: status_of(watcher, task) == after)
    assert f"Task {task} completed" not in held.worker.log
    assert call != "claim" or f"task {task}" not in held.worker.log


# -- Postgres ----------------------------------------------------------------------------------------------------------

ANSWERS = {"claim": b'"token"', "heartbeat": None, "finish": b'"accepted"'}
"""What is lost of each call: the answer that holds these words, or the call itself."""


def caught(call: str, link: FaultyLink, held: Held, watcher: Worker) -> None:
    """The link holds a call, or the answer to one that the database has done."""
    tap = link.tap(call, answer=ANSWERS[call])
    task = held.insert("claim") if call == "claim" else held.tasks[call]
    if call == "finish":
        held.open(call)
    assert tap.caught.wait(30), f"no {call} came"
    seen_done(call, task, held, watcher)


@pytest.mark.long
def test_a_database_that_goes_away_under_a_claim_a_finish_and_a_heartbeat_costs_no_attempt(
    start_worker: Start, pg_server: PgServer, queue_db: str, tmp_path: Path
) -> None:
    """All at once: claim and finish are done and their answers are lost, the heartbeat never arrives."""
    with FaultyLink(queue_db) as link:
        busy = start_worker(*OFTEN, f"--database-url={link.url}", name="busy", environ=SHORT)
        other = start_worker(*OFTEN, name="other", environ=idle(tmp_path, **SHORT))
        held = Held(busy, tmp_path)
        held.run("heartbeat")
        held.run("finish")
        for call in ("finish", "claim", "heartbeat"):  # last the one that must not wait for long
            caught(call, link, held, other)
        link.cut()
        pg_server.stop_server()
        pass_by(1.3 * LEASE_S, busy, other)
        pg_server.start_server()
        link.mend()
        held.done_once()
        other.ended(other.insert("noop"))


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("call", "how"), [("claim", "stopped"), ("heartbeat", "cut"), ("finish", "stopped")])
def test_two_minutes_without_a_database_cost_nobody_anything(
    start_worker: Start, pg_server: PgServer, queue_db: str, tmp_path: Path, call: str, how: str
) -> None:
    """The leases are of 90 s. Where the link is cut, for all workers, the database itself never stopped."""
    with FaultyLink(queue_db) as link:
        through = f"--database-url={link.url}"
        busy = start_worker(*OFTEN, through, name="busy", environ=FULL)
        other = start_worker(*OFTEN, through, name="other", environ=idle(tmp_path, **FULL))
        held = Held(busy, tmp_path)
        for one in KINDS:
            if one != "claim":
                held.run(one)
        caught(call, link, held, other)
        link.cut()
        if how == "stopped":
            pg_server.stop_server()
        pass_by(TWO_MINUTES_S, busy, other)
        pg_server.start_server()
        link.mend()
        held.done_once()
        other.ended(other.insert("noop"))


# -- a Supabase project ------------------------------------------------------------------------------------------------


def cut_off(stack: Stack, call: str, held: Held) -> Fault:
    """Answers of a call are lost from now on, or the call itself, until what is meant by the test has happened."""
    kind: Kind = "hang" if call == "heartbeat" else "cut_after"
    fault = stack.front.faults.add(Fault(f"rpc/wan2gp_{call}", kind, times=None))
    task = held.insert("claim") if call == "claim" else held.tasks[call]
    if call == "finish":
        held.open(call)
    eventually(f"a {call} comes", lambda: fault.hits > 0)
    seen_done(call, task, held, held.worker)
    return fault


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("call", "how"), [("claim", None), ("heartbeat", 521), ("finish", 503)])
def test_two_minutes_without_a_project_cost_nobody_anything(
    start_supabase_worker: Start, supabase_stack: Stack, tmp_path: Path, call: str, how: int | None
) -> None:
    """It refuses connections, or its gateway answers that nothing is behind it. The leases are of 90 s."""
    busy = start_supabase_worker(name="busy", environ=FULL)
    other = start_supabase_worker(name="other", environ=idle(tmp_path, **FULL))
    held = Held(busy, tmp_path, lambda task: [path for path in supabase_stack.storage.paths(BUCKET) if task in path])
    for one in KINDS:
        if one != "claim":
            held.run(one)
    fault = cut_off(supabase_stack, call, held)
    front = supabase_stack.front
    if how is None:
        front.down()
    else:
        front.faults.add(Fault("/", "status", how, {"Content-Type": "text/html"}, "<html>away</html>", times=None))
    front.faults.remove(fault)
    pass_by(TWO_MINUTES_S, busy, other)
    front.faults.clear()
    front.up()
    held.done_once()
    other.ended(other.insert("noop"))
