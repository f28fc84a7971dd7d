"""Clocks that jump. The database's: no living worker is robbed, no task stays where it is for as long as the clock went
back. The worker's own: nothing depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from tests.contract_bench import Admin, beat, claim, end, event_names, in_contact, row, status, take
from tests.turned_clock import own_server_start, turn_clock
from wan2gp.supervisor.postgres import PostgresQueue
from wan2gp.supervisor.queue import ClaimedTask, TaskQueue, Verb

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
