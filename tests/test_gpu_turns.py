"""Two engines on one card, in a real worker: neither ever meets the other's models, and few models are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest_db import PgServer
from tests.conftest_worker import Row, Worker, eventually
from tests.gpu_card import Card, install
from tests.nvml_stand_in import compiler
from tests.shared_worker import shared_worker

CLAIMS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("turns")


@pytest.fixture(scope="module")
def card(place: Path) -> Iterator[Card]:
    with Card(place / "card").serving() as made:
        yield made


@pytest.fixture(scope="module")
def worker(place: Path, card: Card, _pg_session: PgServer) -> Iterator[Worker]:
    install(place)
    environ = {"WAN2GP_GPU_CLEAR_S": "3", "WAN2GP_CLAIM_FAIRNESS_CLAIMS": str(CLAIMS), **card.driver()}
    with shared_worker(place, _pg_session, "--poll-interval", "1", **environ) as started:
        yield started


@pytest.fixture(autouse=True)
def in_peace(card: Card) -> Iterator[None]:
    """Every test of this module ends with the same question."""
    yield
    card.lag_s = 0.0
    assert card.collisions == ""


def at_once(worker: Worker, *tasks: tuple[str, str]) -> list[str]:
    """Rows of (type, params), each a millisecond younger than the one before; all are there when the first is seen."""
    values = ", ".join(
        f"('{kind}', '{params}', 'Queued', now() - interval '{len(tasks) - n} ms')"
        for n, (kind, params) in enumerate(tasks)
    )
    statement = f"INSERT INTO tasks (task_type, params, status, created_at) VALUES {values} RETURNING id"
    return [str(row["id"]) for row in worker.sql(statement)]


def done(worker: Worker, *ids: str) -> list[Row]:
    rows = [worker.ended(each) for each in ids]
    assert [row["status"] for row in rows] == ["Complete"] * len(ids), [row["error_message"] for row in rows]
    return rows


def claimed_in_order(worker: Worker, ids: list[str]) -> list[str]:
    events = worker.sql(
        "SELECT task_id FROM task_events WHERE name = 'claimed' AND task_id = ANY (%s) ORDER BY id", ids
    )
    return [str(event["task_id"]) for event in events]


def passed_by(ids: list[str], order: list[str]) -> int:
    """The most younger tasks that any task saw go before it."""
    age = {each: n for n, each in enumerate(ids)}
    return max(sum(age[before] > age[each] for before in order[: order.index(each)]) for each in ids)


def test_a_warm_second_task_loads_nothing(worker: Worker, card: Card) -> None:
    (first,) = done(worker, worker.insert("paint"))
    loads = card.loads
    (second,) = done(worker, worker.insert("paint"))
    assert card.loads == loads and first["result_data"]["pid"] == second["result_data"]["pid"]
    assert worker.handler("painter")["engine"]["model"] == "small"
    assert worker.status()["worker"]["gpu_turns"]["model"] == "small"
    assert "held by painter with small" in worker.ctl("status").stdout


def test_alternating_models_are_batched_and_nobody_is_passed_too_often(worker: Worker, card: Card) -> None:
    before = len(card.loads)
    ids = at_once(worker, *[("paint", "{}"), ("portrait", "{}")] * 10)
    done(worker, *ids)
    assert len(card.loads) - before <= 20 / (CLAIMS + 1) + 1, card.loads
    assert passed_by(ids, claimed_in_order(worker, ids)) <= CLAIMS


def test_alternating_engines_are_batched_too(worker: Worker, card: Card) -> None:
    """The other handler was offered work while the first one ran: they changed places with every task."""
    before = len(card.loads)
    ids = at_once(worker, *[("film", "{}"), ("paint", "{}")] * 10)
    done(worker, *ids)
    assert len(card.loads) - before <= 20 / (CLAIMS + 1) + 1, card.loads
    assert passed_by(ids, claimed_in_order(worker, ids)) <= CLAIMS


@pytest.mark.long
def test_who_needs_no_gpu_waits_for_nobody(worker: Worker) -> None:
    slow = worker.insert("paint", {"hold_s": 20})
    worker.running(slow)
    done(worker, worker.insert("noop"))
    assert worker.row(slow)["status"] == "In Progress"
    worker.ctl("cancel", slow)
    worker.ended(slow)


def test_nothing_is_claimed_for_an_engine_that_would_have_to_wait(worker: Worker) -> None:
    slow = worker.insert("paint", {"hold_s": 60})
    worker.running(slow)
    film, paint = worker.insert("film"), worker.insert("paint")
    worker.ctl("cancel", slow)
    done(worker, film, paint)
    assert claimed_in_order(worker, [slow, film, paint]) == [slow, paint, film]  # the loaded model goes first


@pytest.mark.parametrize("how", ["raise", *(pytest.param(how, marks=pytest.mark.long) for how in ("not", "hang"))])
def test_an_engine_that_does_not_give_the_card_back_is_replaced(worker: Worker, card: Card, how: str) -> None:
    (stubborn,) = done(worker, worker.insert("paint", {"unload": how}))
    done(worker, worker.insert("film"))
    assert "Handler painter is replaced, so that filmer can have the GPU" in worker.log
    (after,) = done(worker, worker.insert("paint"))
    assert after["result_data"]["pid"] != stubborn["result_data"]["pid"]
    assert worker.handler("painter")["deaths"] == 0


@pytest.mark.long
@pytest.mark.skipif(compiler() is None, reason="no C compiler, so no driver")
def test_memory_of_a_dead_engine_is_waited_for(worker: Worker, card: Card) -> None:
    """The driver counts it a moment longer than the process lives."""
    for kind in ("paint", "film", "paint"):
        done(worker, worker.insert(kind))
    card.lag_s = 1.0
    dead = worker.insert("paint", {"die": True, "hold_s": 1}, max_attempts=1)
    film = worker.insert("film")
    worker.ended(dead)
    done(worker, film)


@pytest.mark.long
def test_a_task_cancelled_while_the_card_is_cleared_leaves_it_to_who_had_it(worker: Worker, card: Card) -> None:
    done(worker, worker.insert("paint", {"unload": "hang"}))
    seen = worker.log.count("is asked to give the GPU's memory back: filmer has work")
    film = worker.insert("film", {"hold_s": 60})  # which runs after all where this takes too long
    eventually("the card is cleared", lambda: worker.log.count("memory back: filmer has work") > seen)
    worker.ctl("cancel", film)
    assert worker.ended(film)["status"] == "Cancelled"
    worker.ctl("restart", "painter")  # it hangs in its unload
    done(worker, worker.insert("paint"))


@pytest.mark.long
def test_an_order_to_free_what_cannot_be_freed_replaces_the_process(worker: Worker, card: Card) -> None:
    (before,) = done(worker, worker.insert("paint", {"unload": "raise"}))
    worker.ctl("free", "painter")
    eventually("it is replaced", lambda: "could not give the GPU's memory back (RuntimeError: the alloc" in worker.log)
    (after,) = done(worker, worker.insert("paint"))
    assert after["result_data"]["pid"] != before["result_data"]["pid"]


@pytest.mark.long
def test_two_engines_that_are_brought_up_at_the_start_do_so_in_turn(
    place: Path, _pg_session: PgServer, tmp_path: Path
) -> None:
    """Both had their models on the card before the first task came."""
    install(tmp_path)
    with Card(tmp_path / "card").serving() as card:
        environ = {"WAN2GP_PREWARM": "painter,filmer", **card.driver()}
        with shared_worker(tmp_path, _pg_session, "--poll-interval", "1", **environ) as worker:
            eventually("both are up", lambda: worker.log.count("is ready (pid") == 2)
            assert sorted(card.loads) == ["filmer its own", "painter small"]
            done(worker, *at_once(worker, ("paint", "{}"), ("film", "{}"), ("portrait", "{}")))
        assert card.collisions == ""


@pytest.mark.long
def test_a_task_fetched_ahead_keeps_no_other_engine_from_its_turn(
    place: Path, _pg_session: PgServer, tmp_path: Path
) -> None:
    install(tmp_path)
    with Card(tmp_path / "card").serving() as card:
        environ = {"WAN2GP_PREFETCH": "1", "WAN2GP_CLAIM_FAIRNESS_CLAIMS": str(CLAIMS), **card.driver()}
        with shared_worker(tmp_path, _pg_session, "--poll-interval", "1", **environ) as worker:
            ids = at_once(worker, *[("film", "{}"), ("paint", "{}"), ("portrait", "{}")] * 8)
            done(worker, *ids)
            assert passed_by(ids, claimed_in_order(worker, ids)) <= 3 * CLAIMS  # of three models, each has its turn
        assert card.collisions == "" and len(card.loads) <= 24 / 2
