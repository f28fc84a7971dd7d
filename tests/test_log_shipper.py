"""Workers' lines in the database: through outages and floods, without secrets, and without anybody waiting for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest_db import PgServer
from wan2gp.logs import Log
from wan2gp.supervisor import log_shipper
from wan2gp.supervisor.log_shipper import LogShipper
from wan2gp.supervisor.postgres import PostgresQueue

TASK = "bbbbbbbb-0000-4000-8000-000000000001"
SECRET = "planted-in-the-environment"


def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    ends = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends, "it never came true"
        time.sleep(0.01)


class Bench:
    """A log whose lines go to a database."""

    def __init__(self, database: str, directory: Path, url: str | None = None, **settings: Any) -> None:
        self.database = database
        self.queue = PostgresQueue(url or database, connect_timeout_s=2, call_timeout_s=5)
        self.log = Log([SECRET])
        self.log.open(directory, screen=False)
        self.file = directory / "worker.log"
        self.errors: list[BaseException] = []
        options: dict[str, Any] = {"flush_s": 0.02, "retry_first_s": 0.02, **settings}
        self.shipper = LogShipper(self.queue, "w1", self.log.facts(), self.errors.append, **options)
        self.log.listen(self.shipper.offer)
        self.say = self.log.facts()

    def stored(self) -> list[tuple[str, str, str | None]]:
        with psycopg.connect(self.database) as connection:
            return connection.execute(
                "SELECT log_level, message, task_id::text FROM system_logs WHERE worker_id = 'w1'"
                ' ORDER BY "timestamp", ctid'
            ).fetchall()

    def words(self) -> list[str]:
        return [message for _, message, _ in self.stored()]

    def close(self) -> None:
        self.shipper.stop(30)
        self.log.close()
        self.queue.close()
        assert self.errors == []


@pytest.fixture
def database(pg_server: PgServer) -> Iterator[str]:
    yield from pg_server.borrow(pg_server.predecessor_template())


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def bench(database: str, **settings: Any) -> Bench:
        made.append(Bench(database, tmp_path / str(len(made)), **settings))
        return made[-1]

    yield bench
    for one in made:
        one.close()


def test_what_the_worker_says_is_kept_with_its_task_and_level(make: Callable[..., Bench], database: str) -> None:
    bench = make(database)
    bench.say("worker.warning", text="before the start")
    bench.shipper.start()
    bench.log.facts(task=TASK, handler="comfy")("task.failed", task_id=TASK, error="boom")
    eventually(lambda: len(bench.stored()) == 2)
    assert bench.stored() == [
        ("WARNING", "before the start", None),
        ("ERROR", f"[task={TASK} handler=comfy] Task {TASK} failed: boom", TASK),
    ]
    with psycopg.connect(database) as connection:
        (age,) = connection.execute(
            'SELECT extract(epoch FROM now() - max("timestamp")) FROM system_logs'
        ).fetchone() or (None,)
    assert age is not None and -60 < age < 60


def test_no_secret_leaves_the_process(make: Callable[..., Bench], database: str) -> None:
    bench = make(database)
    bench.shipper.start()
    bench.log.facts(task=SECRET)("worker.warning", text=f"the key is {SECRET}!")
    eventually(lambda: len(bench.stored()) == 1)
    assert SECRET not in str(bench.stored()) and bench.stored()[0][1] == "[task=***] the key is ***!"
    assert bench.stored()[0][2] is None


def test_an_outage_loses_nothing_and_is_told_once(
    make: Callable[..., Bench], database: str, pg_server: PgServer
) -> None:
    bench = make(database)
    bench.shipper.start()
    bench.say("worker.warning", text="before")
    eventually(lambda: bench.words() == ["before"])
    pg_server.stop_server()
    for number in range(300):
        bench.say("worker.warning", text=f"during {number}")
    eventually(lambda: "takes no log lines now" in bench.file.read_text())
    pg_server.start_server()
    eventually(lambda: len(bench.words()) == 301)
    assert bench.words() == ["before", *[f"during {number}" for number in range(300)]]
    eventually(lambda: "takes log lines again" in bench.file.read_text())
    assert bench.file.read_text().count("takes no log lines now") == 1


def test_a_flood_blocks_nobody_keeps_its_bound_and_says_what_is_missing(
    make: Callable[..., Bench], database: str, pg_server: PgServer
) -> None:
    bench = make(database, keep=100)
    with psycopg.connect(database) as locker:
        locker.execute("LOCK TABLE system_logs")  # a database that takes its time over each call
        bench.shipper.start()
        bench.say("worker.warning", text="the first")
        eventually(lambda: _waits(pg_server))
        for number in range(1000):
            bench.say("worker.warning", text=f"line {number}")
    eventually(lambda: "line 999" in bench.words())
    words = bench.words()
    assert words[0] == "the first" and words[2:] == [f"line {number}" for number in range(900, 1000)]
    assert words[1] == "900 log lines that came before this were dropped"


def _waits(server: PgServer) -> bool:
    with psycopg.connect(server.admin_url) as admin:
        return admin.execute("SELECT FROM pg_locks WHERE NOT granted").fetchone() is not None


def test_a_line_of_any_length_and_any_characters_is_no_trouble(make: Callable[..., Bench], database: str) -> None:
    bench = make(database)
    bench.shipper.start()
    bench.say("worker.warning", text="x" * 100_000)
    bench.say("worker.warning", text="nul \0 half \ud800 line\nbreak ünï")
    eventually(lambda: len(bench.stored()) == 2)
    assert len(bench.words()[0]) <= log_shipper.MESSAGE_MAX
    assert "ünï" in bench.words()[1]


def test_a_database_without_the_table_is_asked_once(make: Callable[..., Bench], queue_db: str) -> None:
    bench = make(queue_db)
    bench.shipper.start()
    bench.say("worker.warning", text="for nobody")
    eventually(lambda: not bench.shipper.shipping)
    bench.say("worker.warning", text="for nobody")
    eventually(lambda: "log-shipper" not in {thread.name for thread in threading.enumerate()})


def test_a_database_that_refuses_every_line_is_let_alone(make: Callable[..., Bench], database: str) -> None:
    bench = make(database)
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(
            "CREATE OR REPLACE FUNCTION wan2gp_log(p_worker text, p_lines jsonb) RETURNS int LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE 'not for you'; END $$"
        )
    bench.shipper.start()

    def given_up() -> bool:
        bench.say("worker.warning", text="x")
        return not bench.shipper.shipping

    eventually(given_up)
    eventually(lambda: "refuses log lines" in bench.file.read_text())
    assert bench.file.read_text().count("refuses log lines") == 1
    assert bench.stored() == []


LOG = "wan2gp_log(text, jsonb)"


@pytest.mark.parametrize(
    ("away", "back"),
    [
        (f"REVOKE ALL ON FUNCTION {LOG} FROM shipper", f"GRANT EXECUTE ON FUNCTION {LOG} TO shipper"),
        (f"ALTER FUNCTION {LOG} RENAME TO away", "ALTER FUNCTION away(text, jsonb) RENAME TO wan2gp_log"),
    ],
    ids=["forbidden for a while", "missing for a while"],
)
def test_what_somebody_mends_is_no_refusal(
    make: Callable[..., Bench], database: str, pg_server: PgServer, away: str, back: str
) -> None:
    """A migration took the functions away for a moment, three times in a row, and no line was sent ever after."""
    with psycopg.connect(database, autocommit=True) as admin:
        if admin.execute("SELECT FROM pg_roles WHERE rolname = 'shipper'").fetchone() is None:
            admin.execute("CREATE ROLE shipper LOGIN PASSWORD 'only here'")
        admin.execute(f"GRANT EXECUTE ON FUNCTION {LOG}, wan2gp_facts() TO shipper".encode())
        bench = make(database, url=psycopg.conninfo.make_conninfo(database, user="shipper", password="only here"))
        bench.shipper.start()
        bench.say("worker.warning", text="before")
        eventually(lambda: bench.words() == ["before"])
        admin.execute(away.encode())
        bench.say("worker.warning", text="during")
        eventually(lambda: bench.shipper._pause_s > 0.02 * 2**log_shipper.REFUSALS)
        admin.execute(back.encode())
        eventually(lambda: bench.words() == ["before", "during"])
        admin.execute("DROP OWNED BY shipper")
    assert bench.file.read_text().count("takes no log lines now") == 1


def test_a_table_that_has_no_line_of_ours_is_spoken_of_once(make: Callable[..., Bench], database: str) -> None:
    bench = make(database)
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("ALTER TABLE system_logs ADD CONSTRAINT never CHECK (source_type <> 'worker') NOT VALID")
        bench.shipper.start()
        bench.say("worker.warning", text="one")
        eventually(lambda: "stored none of" in bench.file.read_text())
        bench.say("worker.warning", text="two")
        eventually(lambda: not bench.shipper._lines and not bench.shipper._batch)
        admin.execute("ALTER TABLE system_logs DROP CONSTRAINT never")
        bench.say("worker.warning", text="three")
        eventually(lambda: "three" in bench.words())
    assert bench.file.read_text().count("stored none of") == 1


def test_one_refusal_costs_one_batch_and_is_told_in_the_next(make: Callable[..., Bench], database: str) -> None:
    bench = make(database)
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(
            "ALTER FUNCTION wan2gp_log RENAME TO their_log; CREATE FUNCTION wan2gp_log(p_worker text, p_lines jsonb)"
            " RETURNS int LANGUAGE plpgsql AS $$ BEGIN IF p_lines::text LIKE '%cursed%' THEN RAISE 'no'; END IF;"
            " RETURN their_log(p_worker, p_lines); END $$"
        )
    bench.say("worker.warning", text="cursed")
    bench.shipper.start()
    eventually(lambda: bench.shipper._dropped == 1)
    bench.say("worker.warning", text="fine")
    eventually(lambda: len(bench.words()) == 2)
    assert bench.words() == ["1 log lines that came before this were dropped", "fine"]


def test_the_shippers_own_trouble_is_not_shipped(
    make: Callable[..., Bench], database: str, pg_server: PgServer
) -> None:
    """Each failure to send a line made a line to send."""
    bench = make(database)
    pg_server.stop_server()
    bench.shipper.start()
    bench.say("worker.warning", text="one")
    eventually(lambda: "takes no log lines now" in bench.file.read_text())
    pg_server.start_server()
    eventually(lambda: "takes log lines again" in bench.file.read_text())
    assert bench.words() == ["one"]


def test_a_stop_sends_the_last_lines(make: Callable[..., Bench], database: str) -> None:
    bench = make(database, flush_s=3600.0)
    bench.shipper.start()
    bench.say("worker.warning", text="the last words")
    bench.shipper.stop(30)
    assert bench.words() == ["the last words"]


def test_a_stop_waits_for_no_database_that_hangs(
    make: Callable[..., Bench], database: str, pg_server: PgServer
) -> None:
    bench = make(database)
    with psycopg.connect(database) as locker:
        locker.execute("LOCK TABLE system_logs")
        bench.say("worker.warning", text="the last words")
        bench.shipper.start()
        eventually(lambda: _waits(pg_server))
        bench.shipper.stop(0.01)
        assert "log-shipper" in {thread.name for thread in threading.enumerate()}, "it still hangs, and we do not"


def test_a_line_that_waits_long_enough_waits_for_no_others(make: Callable[..., Bench], database: str) -> None:
    bench = make(database, flush_s=3600.0)
    bench.shipper.start()
    for number in range(log_shipper.EAGER):
        bench.say("worker.warning", text=f"{number}")
    eventually(lambda: len(bench.words()) == log_shipper.EAGER)
