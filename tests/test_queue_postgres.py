"""The queue on a direct Postgres: the contract on an empty database and on the predecessor's, then outages."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.conftest_db import PgServer
from tests.contract_bench import SPEC_INSERT, Admin, claim, end
from tests.faulty_link import FaultyLink
from tests.queue_contract import LOADED, QueueContract
from wan2gp.supervisor import postgres_sessions
from wan2gp.supervisor.migrate import migrate
from wan2gp.supervisor.postgres import PostgresQueue
from wan2gp.supervisor.postgres_errors import DeadlinePassed, explain, too_late
from wan2gp.supervisor.postgres_sessions import Sessions
from wan2gp.supervisor.queue import ClaimedTask, FunctionsMissing, LeaseBeat, QueueRefused, QueueUnavailable, Verb


@pytest.fixture
def database(lasting_database: str) -> str:
    return lasting_database


@pytest.fixture
def admin(database: str) -> Iterator[Admin]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def task_queue(database: str) -> Iterator[PostgresQueue]:
    queue = PostgresQueue(database)
    yield queue
    queue.close()


EARLIER_CLAIM = """
    ALTER FUNCTION wan2gp_claim(text, text, text[], int, float8, jsonb) RENAME TO wan2gp_claim_now;
    CREATE FUNCTION wan2gp_claim(p_claim_id text, p_worker text, p_types text[], p_limit int, p_lease_s float8)
        RETURNS jsonb LANGUAGE sql AS 'SELECT wan2gp_claim_now(p_claim_id, p_worker, p_types, p_limit, p_lease_s)';
    CREATE OR REPLACE FUNCTION wan2gp_version() RETURNS int LANGUAGE sql AS 'SELECT 3'"""
"""Makes the functions those of the version before, which takes no preference."""


def change(url: str, script: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(script.encode())


@pytest.mark.parametrize(
    "lasting_database", ["ours", pytest.param("predecessor", marks=pytest.mark.long)], indirect=True
)
class TestContract(QueueContract):
    """The contract, on both schemas."""


def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Returns when ``condition`` holds; what is waited for has its own clock, this is only the test's patience."""
    ends = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends, "it never came true"
        time.sleep(0.01)


def listening_queue(url: str, **settings: float) -> PostgresQueue:
    queue = PostgresQueue(url, **settings)
    queue.wait(0)
    eventually(lambda: queue.listening)
    while queue.wait(0):
        """What was said before the test began."""
    return queue


@contextmanager
def heard(url: str) -> Iterator[Callable[[], int]]:
    """Counts the notifications since it was asked last."""
    with psycopg.connect(url, autocommit=True) as ear:
        ear.execute("LISTEN wan2gp_tasks")

        def count() -> int:
            ear.execute("NOTIFY wan2gp_tasks, 'end'")  # comes after all that was committed before
            payloads = [notice.payload for notice in ear.notifies(timeout=10, stop_after=1)]
            while payloads[-1] != "end":
                payloads += [notice.payload for notice in ear.notifies(timeout=10, stop_after=1)]
            assert set(payloads[:-1]) <= {""}
            return len(payloads) - 1

        yield count


class TestWaking:
    def test_an_insert_ends_the_wait(self, database: str, admin: Admin) -> None:
        with closing(listening_queue(database)) as queue:
            assert not queue.wait(0.01)
            threading.Timer(0.05, admin.execute, (SPEC_INSERT,)).start()
            assert queue.wait(30)
            assert len(claim(queue)) == 1

    def test_what_was_inserted_between_claim_and_wait_is_not_slept_over(self, database: str, admin: Admin) -> None:
        with closing(listening_queue(database)) as queue:
            admin.execute(SPEC_INSERT)
            assert queue.wait(30)

    def test_an_interrupt_and_a_close_end_the_wait(self, database: str) -> None:
        queue = listening_queue(database)
        for stop in (queue.interrupt, queue.close):
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(queue.wait, 60)
                stop()
                assert waiting.result(timeout=30) is False
        assert queue.wait(60) is False
        queue.close()

    def test_nobody_is_woken_for_what_cannot_be_claimed(self, database: str, task_queue: PostgresQueue) -> None:
        with heard(database) as count:
            first = task_queue.enqueue("comfy", {})
            assert count() == 1
            (task,) = claim(task_queue)
            task_queue.heartbeat("w", [LeaseBeat(task.id, task.token, 0.5, "step")], 90, {})
            second = task_queue.enqueue("comfy", {}, depends_on=[first])
            assert count() == 0
            end(task_queue, task)
            assert count() == 1, "the end of the first made the second claimable"
            assert task_queue.cancel(second) == "Queued"
            assert count() == 0
            task_queue.enqueue("comfy", {})
            end(task_queue, claim(task_queue)[0], Verb.RELEASE)
            assert count() == 2
            (task,) = claim(task_queue)
            task_queue.cancel(task.id)
            assert count() == 1, "whoever runs it is to hear of the cancel at once"

    def test_a_thousand_rows_in_one_statement_wake_once(self, database: str, admin: Admin) -> None:
        with heard(database) as count:
            admin.execute("INSERT INTO tasks (task_type, params) SELECT 'comfy', '{}' FROM generate_series(1, 1000)")
            assert count() == 1


class TestOutages:
    def test_terminated_sessions_are_replaced_and_nothing_is_done_twice(
        self, database: str, admin: Admin, task_queue: PostgresQueue
    ) -> None:
        with closing(listening_queue(database)) as queue:
            for n in range(1, 4):
                queue.check()
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                queue.enqueue("comfy", {})
                assert len(task_queue.tasks()) == n
            assert len(claim(queue, limit=9)) == 3
            admin.execute(SPEC_INSERT)
            assert queue.wait(30)

    def test_a_server_that_stops_is_said_to_be_down_and_is_found_when_it_is_back(
        self, pg_server: PgServer, database: str
    ) -> None:
        with closing(listening_queue(database)) as queue:
            queue.enqueue("comfy", {})
            (task,) = claim(queue)
            pg_server.stop_server()
            for attempt in (lambda: claim(queue), lambda: end(queue, task)):
                with pytest.raises(QueueUnavailable) as unavailable:
                    attempt()
                assert unavailable.value.server_down
            eventually(lambda: not queue.listening)
            pg_server.start_server()
            assert end(queue, task).accepted
            eventually(lambda: queue.listening)
            queue.enqueue("comfy", {})
            assert queue.wait(30)

    def test_a_frozen_link_is_noticed_and_a_thawed_one_is_used_again(self, database: str) -> None:
        with FaultyLink(database) as link:
            with closing(listening_queue(link.url, probe_interval_s=0.1, call_timeout_s=0.5)) as queue:
                queue.check()
                link.freeze()
                with pytest.raises(QueueUnavailable, match="no answer within") as unavailable:
                    queue.check()
                assert not unavailable.value.server_down
                eventually(lambda: not queue.listening)
                link.thaw()
                eventually(lambda: answers(queue))
                eventually(lambda: queue.listening)
                queue.enqueue("comfy", {})
                assert queue.wait(30)

    def test_a_row_too_large_for_a_slow_link_fails_with_its_reason_and_holds_up_nobody(
        self, database: str, admin: Admin
    ) -> None:
        with FaultyLink(database) as link, closing(PostgresQueue(link.url, call_timeout_s=0.5)) as queue:
            large, small = queue.enqueue("comfy", {"a": "x" * 1_200_000}), queue.enqueue("comfy", {})
            link.answers_per_s = 400_000
            taken: list[ClaimedTask] = []

            def claims() -> bool:
                with suppress(QueueUnavailable):  # on a busy machine a small answer is late, too
                    taken.extend(queue.claim(f"claim {len(taken)}", "w", ["comfy"], 1, 90).tasks)
                return len(taken) == 2

            eventually(claims)
        first, second = taken
        assert (first.id, first.params, first.unreadable_code) == (large, None, "input.too_large")
        assert first.unreadable is not None and "1200009 bytes" in first.unreadable and "0.5 s" in first.unreadable
        assert (second.id, second.params, second.unreadable) == (small, {}, None)

    def test_a_listen_that_is_swallowed_is_not_believed(self, database: str) -> None:
        with FaultyLink(database, swallow=True) as link, closing(PostgresQueue(link.url)) as queue:
            assert not queue.wait(0)
            eventually(lambda: queue.swallowed)
            assert not queue.listening
            queue.enqueue("comfy", {})
            assert not queue.wait(0.05), "only the clock ends this wait"
            assert len(claim(queue)) == 1

    def test_a_pooler_that_loses_prepared_statements_is_adapted_to(self, database: str, admin: Admin) -> None:
        with closing(PostgresQueue(database)) as queue:
            for _ in range(3):
                queue.enqueue("comfy", {})
                for session in queue._sessions._idle:
                    session.execute("DEALLOCATE ALL", prepare=False)
            assert len(queue.tasks()) == 3

    def test_a_row_locked_for_ever_ends_in_an_error_and_not_in_silence(self, database: str, admin: Admin) -> None:
        with closing(PostgresQueue(database, call_timeout_s=0.5)) as queue:
            queue.enqueue("comfy", {})
            (task,) = claim(queue)
            with admin.transaction():
                admin.execute("SELECT FROM tasks FOR UPDATE")
                with pytest.raises(QueueUnavailable):
                    end(queue, task)
            assert end(queue, task).accepted


class TestRefusals:
    @pytest.mark.parametrize(
        "error",
        [psycopg.errors.QueryCanceled, psycopg.errors.TransactionTimeout, DeadlinePassed],
        ids=lambda error: error.__name__,
    )
    def test_a_time_limit_is_an_outage_and_refuses_no_outcome(self, error: type[psycopg.Error]) -> None:
        assert too_late(error("late")) and isinstance(explain(error("late")), QueueUnavailable)

    def test_a_database_without_the_functions_says_what_to_run(self, empty_db: str) -> None:
        with closing(PostgresQueue(empty_db)) as queue, pytest.raises(FunctionsMissing, match="wan2gp-ctl db migrate"):
            queue.check()

    def test_an_older_contract_says_what_to_run(self, database: str, admin: Admin) -> None:
        admin.execute("CREATE OR REPLACE FUNCTION wan2gp_version() RETURNS int LANGUAGE sql AS 'SELECT 0'")
        with closing(PostgresQueue(database)) as queue, pytest.raises(FunctionsMissing, match="version 0"):
            queue.check()

    def test_the_contract_before_is_served_in_plain_order(self, queue_db: str) -> None:
        """A worker that was updated before its database could not claim at all."""
        change(queue_db, EARLIER_CLAIM)
        with closing(PostgresQueue(queue_db)) as queue:
            queue.check()
            assert not queue.prefers
            large, small = queue.enqueue("i2v", {}), queue.enqueue("t2v", {})
            replies = [queue.claim(f"c{n}", "w", ["t2v", "i2v"], 1, 90, [LOADED]) for n in range(2)]
            assert [reply.tasks[0].id for reply in replies] == [large, small]

    def test_a_program_of_the_contract_before_goes_on_after_a_migration(self, queue_db: str) -> None:
        """Two functions of one name, and its call would be ambiguous."""
        change(queue_db, EARLIER_CLAIM)
        with closing(PostgresQueue(queue_db)) as earlier, closing(PostgresQueue(queue_db)) as queue:
            earlier.check()
            assert earlier.claim("a", "w", ["t2v"], 1, 90).tasks == ()
            change(queue_db, "DROP FUNCTION wan2gp_claim_now(text, text, text[], int, float8, jsonb)")
            migrate(queue_db)
            ids = [earlier.enqueue("t2v", {}) for _ in range(2)]
            assert [task.id for task in earlier.claim("b", "w", ["t2v"], 1, 90).tasks] == ids[:1]
            queue.check()
            assert queue.prefers
            assert [task.id for task in queue.claim("c", "w", ["t2v"], 1, 90, [LOADED]).tasks] == ids[1:]

    def test_nobody_listens_there(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with closing(PostgresQueue(f"postgresql://u:s3cret@127.0.0.1:{port}/x")) as queue:
            with pytest.raises(QueueUnavailable) as unavailable:
                queue.check()
        assert unavailable.value.server_down and "s3cret" not in str(unavailable.value)

    def test_a_missing_database_and_a_wrong_password_are_refusals(self, database: str) -> None:
        for wrong in ({"dbname": "nowhere"}, {"password": "s3cret"}, {"user": "nobody", "password": "s3cret"}):
            with closing(PostgresQueue(make_conninfo(database, **wrong))) as queue:
                with pytest.raises(QueueRefused) as refused:
                    queue.check()
            assert refused.value.code and "s3cret" not in str(refused.value)

    @pytest.mark.parametrize(
        "url", ["postgres//u:s3cret@host/x", "postgresql://u:s3cret@host:5432/x?nonsense=1", "s3cret"]
    )
    def test_a_url_that_is_none_is_refused_without_being_repeated(self, url: str) -> None:
        with pytest.raises(QueueRefused) as refused:
            PostgresQueue(url)
        assert "s3cret" not in str(refused.value) and refused.value.__cause__ is None


def answers(queue: PostgresQueue) -> bool:
    try:
        queue.check()
    except QueueUnavailable:
        return False
    return True


def test_a_call_whose_last_message_is_lost_keeps_no_row_locked(database: str, admin: Admin) -> None:
    """The link freezes between a statement and the message that commits it: the server waits inside a transaction."""
    admin.execute(SPEC_INSERT)
    sessions = Sessions(database, application_name="lost", connect_timeout_s=5, call_timeout_s=0.5)
    with closing(sessions.connect()) as session:
        session.pgconn.enter_pipeline_mode()
        session.pgconn.send_query_params(b"UPDATE tasks SET worker_id = 'lost'", None)
        session.pgconn.send_flush_request()
        session.pgconn.flush()
        pid = session.info.backend_pid
        free = "SELECT FROM tasks FOR UPDATE SKIP LOCKED"
        gone = "SELECT FROM pg_stat_activity WHERE pid = %s"
        eventually(lambda: admin.execute(gone, [pid]).rowcount == 0 and admin.execute(free).rowcount == 1)


def test_a_server_that_cannot_bound_transactions_is_worked_with_as_it_is(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_sessions, "TRANSACTION_TIMEOUT", "transaction_timeout_of_a_later_server")
    sessions = Sessions(database, application_name="old", connect_timeout_s=5, call_timeout_s=5)
    with closing(sessions.connect()) as session:
        assert session.execute("SHOW statement_timeout").fetchone() == ("4500ms",)
