"""The lease keeper alone, with a database that answers when the test says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from tests.conftest_worker import eventually
from wan2gp.supervisor import leases as module
from wan2gp.supervisor.leases import Key, LeaseKeeper
from wan2gp.supervisor.queue import HeartbeatReply, LeaseBeat, QueueError, QueueUnavailable

LEASE_S, RENEW_S, MARGIN_S = 90.0, 20.0, 5.0
TASK, OLD, NEW = "task", ("task", "old"), ("task", "new")


class Database:
    """Answers a heartbeat with what lies in `answer`, once `open` is set."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.asked = threading.Semaphore(0)
        self.answer: HeartbeatReply | QueueError = HeartbeatReply()
        self.beats: list[Sequence[LeaseBeat]] = []

    def heartbeat(
        self, worker_id: str, leases: Sequence[LeaseBeat], lease_s: float, metadata: Mapping[str, Any]
    ) -> HeartbeatReply:
        self.beats.append(leases)
        self.asked.release()
        assert self.open.wait(20)
        if isinstance(self.answer, QueueError):
            raise self.answer
        return self.answer


class Clock:
    """Seconds since boot, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "boot_clock", clock)
    return clock


class Kept:
    """A running keeper, and what it said."""

    def __init__(self) -> None:
        self.database = Database()
        self.heard: list[tuple[Sequence[Key], Sequence[Key]]] = []
        self.superseded = threading.Event()
        self.failures: list[BaseException] = []
        self.keeper = LeaseKeeper(
            self.database,  # type: ignore[arg-type]
            "w",
            LEASE_S,
            RENEW_S,
            self,  # type: ignore[arg-type]
            dict,
            lambda cancelled, lost: self.heard.append((cancelled, lost)),
            self.superseded.set,
            self.failures.append,
        )

    def __call__(self, name: str, /, **fields: Any) -> None:
        """A fact."""

    def begin_beat(self) -> None:
        self.keeper.poke()
        assert self.database.asked.acquire(timeout=20)

    def end_beat(self) -> None:
        self.database.open.set()
        eventually("the answer is in", lambda: not self.keeper._asking, 20)
        self.database.open.clear()


@pytest.fixture
def kept(clock: Clock) -> Iterator[Kept]:
    one = Kept()
    one.keeper.hold(*OLD, "token", clock.now)
    one.keeper.start()
    assert one.database.asked.acquire(timeout=20)
    yield one
    one.database.open.set()
    one.keeper.stop()
    assert not one.failures


def test_word_of_a_lease_that_has_ended_does_not_reach_the_next_run_of_its_task(kept: Kept, clock: Clock) -> None:
    kept.keeper.drop(*OLD)
    kept.keeper.hold(*NEW, "fresh", clock.now)
    kept.database.answer = HeartbeatReply(lost=(TASK,))
    kept.database.open.set()
    eventually("it is told", lambda: kept.heard)
    assert kept.heard == [([], [OLD])]


def test_a_heartbeat_that_hangs_puts_the_leases_in_danger_in_time(kept: Kept, clock: Clock) -> None:
    assert kept.keeper.danger_in(MARGIN_S) == LEASE_S - MARGIN_S
    clock.now += LEASE_S - MARGIN_S - 1
    assert kept.keeper.in_danger(MARGIN_S) == []
    clock.now += 1
    assert kept.keeper.in_danger(MARGIN_S) == [OLD]
    kept.end_beat()
    assert kept.keeper.contact


def test_a_worker_that_overslept_asks_before_it_gives_anything_up(kept: Kept, clock: Clock) -> None:
    kept.end_beat()
    clock.now += 10 * LEASE_S
    assert kept.keeper.in_danger(MARGIN_S) == []
    assert kept.keeper.danger_in(MARGIN_S) is None
    kept.begin_beat()
    assert kept.keeper.in_danger(MARGIN_S) == []  # the question has just gone out
    kept.end_beat()
    assert kept.keeper.danger_in(MARGIN_S) == LEASE_S - MARGIN_S


@pytest.mark.parametrize(("server_down", "danger"), [(True, []), (False, [OLD])])
def test_an_outage_of_the_database_is_no_danger_and_one_of_our_link_is(
    kept: Kept, clock: Clock, server_down: bool, danger: list[Key]
) -> None:
    kept.database.answer = QueueUnavailable("away", server_down=server_down)
    kept.end_beat()
    assert not kept.keeper.contact
    clock.now += LEASE_S
    assert kept.keeper.in_danger(MARGIN_S) == danger


def test_a_renewal_counts_from_when_it_was_asked_for(kept: Kept, clock: Clock) -> None:
    clock.now += 10
    kept.end_beat()
    assert kept.keeper.danger_in(MARGIN_S) == LEASE_S - MARGIN_S - 10


def test_a_lease_whose_claim_had_to_be_asked_for_again_is_renewed_at_once(kept: Kept, clock: Clock) -> None:
    """Its outage took most of it, or all."""
    kept.end_beat()
    clock.now += 1
    kept.keeper.hold(*NEW, "fresh", clock.now)
    assert not kept.database.asked.acquire(timeout=0.05)
    kept.keeper.hold(*NEW, "old", clock.now - LEASE_S - 1)
    assert kept.database.asked.acquire(timeout=20)
    assert [beat.token for beat in kept.database.beats[-1]] == ["token", "old"]
    clock.now += RENEW_S
    assert kept.keeper.in_danger(MARGIN_S) == []
    clock.now += LEASE_S / 3 - RENEW_S
    assert kept.keeper.in_danger(MARGIN_S) == [NEW]


def test_a_keeper_whose_workers_id_was_taken_over_says_so_once_and_renews_nothing_more(
    kept: Kept, clock: Clock
) -> None:
    kept.database.answer = HeartbeatReply(lost=(TASK,), superseded=True)
    kept.database.open.set()
    assert kept.superseded.wait(20)
    kept.keeper.stop()
    assert (len(kept.database.beats), kept.heard) == (1, [])
