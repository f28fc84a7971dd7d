"""Clocks that jump. The database's: no living worker is robbed, no task stays where it is for as long as the clock went
back. The worker's own: nothing depends on it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests.conftest_worker import PATIENCE_S, ROOT, Worker, eventually, plugin
from tests.contract_bench import Admin, beat, claim, end, event_names, in_contact, row, status, take
from tests.turned_clock import own_server_start, turn_clock
from wan2gp.supervisor.postgres import PostgresQueue
from wan2gp.supervisor.queue import ClaimedTask, TaskQueue, Verb

Start = Callable[..., Worker]
OFTEN = ("--poll-interval", "0.2")
SHORT = {"WAN2GP_LEASE_S": "4", "WAN2GP_RENEW_S": "0.5"}
HOUR = 3600.0
POLL_S = 10.0
LEASE_S = 90.0


@pytest.fixture
def admin(queue_db: str) -> Iterator[Admin]:
    with psycopg.connect(queue_db, autocommit=True) as connection:
        own_server_start(connection)
        yield connection


@pytest.fixture
def task_queue(queue_db: str) -> Iterator[PostgresQueue]:
    with closing(PostgresQueue(queue_db)) as queue:
        yield queue


# -- the database's ----------------------------------------------------------------------------------------------------


def live_through(queue: TaskQueue, admin: Admin, seconds: float, *held: ClaimedTask) -> None:
    """Time passes, in which the worker ``alive`` polls in vain and the worker ``w`` keeps what it holds."""
    for _ in range(int(seconds / POLL_S)):
        turn_clock(admin, POLL_S)
        assert beat(queue, *held) == ([], [])
        assert claim(queue, "nothing", worker="alive") == []


@pytest.mark.parametrize("jump", [HOUR, -HOUR, 50.0, -50.0])
def test_a_clock_that_jumps_robs_no_living_worker_and_the_dead_ones_task_is_rescued_in_time(
    task_queue: TaskQueue, admin: Admin, jump: float
) -> None:
    for _ in range(2):
        task_queue.enqueue("comfy", {})
    held, orphan = take(task_queue), take(task_queue, worker="dead")
    in_contact(task_queue, admin, "alive")
    turn_clock(admin, jump)
    for worker in ("alive", "stranger"):
        assert task_queue.rescue(worker) == 0
    live_through(task_queue, admin, LEASE_S + 2 * POLL_S, held)
    assert event_names(task_queue, held.id) == ["queued", "claimed"]
    assert event_names(task_queue, orphan.id) == ["queued", "claimed", "retried"]
    assert row(task_queue, orphan.id)["losses"] == 1
    assert end(task_queue, held).accepted and take(task_queue, worker="alive").id == orphan.id


def test_a_pause_that_we_ordered_is_not_prolonged_by_a_clock_that_is_set_back(
    task_queue: TaskQueue, admin: Admin
) -> None:
    again = task_queue.enqueue("comfy", {})
    assert end(task_queue, take(task_queue), Verb.RETRY, retry_in_s=30).status == "Queued"
    later = task_queue.enqueue("wan", {}, run_after_s=60)
    in_contact(task_queue, admin, "alive")
    turn_clock(admin, -HOUR)
    assert claim(task_queue, "comfy", "wan", worker="alive") == []
    live_through(task_queue, admin, 40)
    assert [task.id for task in claim(task_queue, "comfy", "wan", worker="alive", limit=5)] == [again]
    live_through(task_queue, admin, 30)
    assert [task.id for task in claim(task_queue, "comfy", "wan", worker="alive", limit=5)] == [later]


def test_the_time_that_somebody_set_himself_is_what_he_meant(task_queue: TaskQueue, admin: Admin) -> None:
    task_queue.enqueue("comfy", {})
    task = take(task_queue)
    assert end(task_queue, task, Verb.RETRY, retry_in_s=30).status == "Queued"
    admin.execute("UPDATE tasks SET run_after = now() + interval '2 hours'")
    in_contact(task_queue, admin, "alive")
    turn_clock(admin, -HOUR)
    live_through(task_queue, admin, 60)
    assert claim(task_queue, worker="alive") == []
    assert admin.execute("SELECT run_after > now() + interval '170 minutes' FROM tasks").fetchone() == (True,)


def test_what_waits_for_a_task_that_is_nowhere_does_not_wait_for_the_clock_too(
    task_queue: TaskQueue, admin: Admin
) -> None:
    waiting = task_queue.enqueue("comfy", {}, depends_on=["00000000-0000-0000-0000-00000000dead"])
    in_contact(task_queue, admin, "alive")
    turn_clock(admin, -HOUR)
    task_queue.rescue("alive")
    turn_clock(admin, 11 * 60)
    task_queue.rescue("alive")
    assert status(task_queue, waiting) == "Failed"


@pytest.mark.long
def test_workers_live_through_a_database_whose_clock_jumps_an_hour_there_and_back(
    start_worker: Start, admin: Admin, tmp_path: Path
) -> None:
    gates = [tmp_path / f"gate{number}" for number in range(2)]
    living = [start_worker(*OFTEN, name=name, environ=SHORT) for name in ("one", "two")]
    one = living[0]
    held = [one.insert("tardy", {"gate": str(gate), "files": {"a.txt": "x"}}) for gate in gates]
    for task in held:
        eventually("it runs", lambda task=task: any(f"task {task}" in worker.log for worker in living))  # type: ignore[misc]
    for number, jump in enumerate((HOUR, -HOUR)):
        dead = start_worker(*OFTEN, name=f"dead{number}", environ=SHORT)
        for worker in living:
            worker.ctl("drain")  # so that it is the dead one's
        orphan = dead.insert("sleeper", {"seconds": 1})
        dead.running(orphan)
        dead.kill()
        for worker in living:
            worker.ctl("resume")
        turn_clock(admin, jump)
        at = one.sql("SELECT clock_timestamp() AS now")[0]["now"]
        ended = one.ended(orphan)
        assert (ended["status"], ended["attempts"]) == ("Complete", 2)
        (rescue,) = [event for event in one.events(orphan) if event["name"] == "retried"]
        assert 0 < (rescue["at"] - at).total_seconds() < PATIENCE_S, "by the clock as it is now, and not as it was"
    for gate, task in zip(gates, held, strict=True):
        gate.touch()
        row_ = one.ended(task)
        assert (row_["status"], row_["attempts"]) == ("Complete", 1)
        assert "retried" not in [event["name"] for event in one.events(task)]


# -- the worker's own --------------------------------------------------------------------------------------------------

SHIFTED = '''
import time
from pathlib import Path

real, place = time.time, Path(__file__).with_name("shift")


def shifted():
    """The time of day, as far off as the file says."""
    return real() + float(place.read_text())


time.time = shifted
'''
TELLS_THE_TIME = {
    "comfy_sidecar/builtin/execution.py": "stamps messages as ComfyUI does",
    "handlers/model_store.py": "tells drafts that were left for an hour from those of others that are written now",
    "logs.py": "stamps lines",
    "supervisor/app.py": "says since when the worker runs",
    "supervisor/edge_counts.py": "shows people how old a row is",
    "supervisor/edge_ends.py": "stamps rows as the predecessor's worker does",
    "supervisor/edge_people.py": "shows people how long a worker has been silent",
    "supervisor/gpus.py": "stamps what a pod scaler reads",
    "supervisor/supabase_project.py": "reads a Retry-After that is a date, and believes it within bounds",
}


@pytest.mark.long
def test_a_worker_whose_own_clock_jumps_goes_on_as_if_nothing_was(start_worker: Start, tmp_path: Path) -> None:
    """There and back, under a running task whose lease must be kept; the lines of its log show the jumps."""
    place = tmp_path / "shifted"
    plugin(place)
    shift = place / "shift"
    shift.write_text("0")
    (place / "sitecustomize.py").write_text(SHIFTED)
    worker = start_worker(*OFTEN, environ={**SHORT, "PYTHONPATH": f"{place}:{ROOT}"})
    gate = tmp_path / "gate"
    task = worker.insert("tardy", {"gate": str(gate), "files": {"a.txt": "x"}})
    worker.running(task)
    for hours in (1, -1):
        shift.write_text(str(hours * HOUR))
        before = worker.sql("SELECT expires_at FROM task_leases WHERE task_id = %s", task)[0]["expires_at"]
        worker.ended(worker.insert("noop"))
        eventually(
            "its lease is renewed",
            lambda before=before: worker.sql(  # type: ignore[misc]
                "SELECT 1 FROM task_leases WHERE task_id = %s AND expires_at > %s + interval '1 s'", task, before
            ),
        )
    gate.touch()
    found = worker.ended(task)
    assert (found["status"], found["attempts"]) == ("Complete", 1)
    assert {event["name"] for event in worker.events(task)} == {"queued", "claimed", "progress", "completed"}
    assert "Database unreachable" not in worker.log
    stamps = [line[:13] for line in worker.log.splitlines() if " completed" in line]
    assert len(set(stamps)) > 1, "it has seen the jumps"


def test_only_what_is_told_to_people_is_read_from_the_workers_own_clock() -> None:
    """Deadlines, pauses and leases are monotonic: the time of day may jump."""
    package = ROOT / "wan2gp"
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and (
                node.attr in {"now", "utcnow", "today"}
                or (node.attr == "time" and isinstance(node.value, ast.Name) and node.value.id == "time")
            ):
                found.add(str(path.relative_to(package)))
    assert found - {name for name in found if name.startswith("ctl")} == set(TELLS_THE_TIME)
