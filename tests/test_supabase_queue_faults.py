"""What goes wrong between a worker and its Supabase project: nothing is lost or done twice, and everything is said."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from tests.conftest_db import PgServer
from tests.contract_bench import Admin, beat, claim, end, event_names, row, take
from tests.front_faults import Fault
from tests.supabase_stack import Stack
from wan2gp.config_options import Secret
from wan2gp.supervisor.migrate import migrate
from wan2gp.supervisor.queue import (
    AccessDenied,
    FunctionsMissing,
    QueueError,
    QueueRefused,
    QueueUnavailable,
    SpawnedChild,
    Verb,
)
from wan2gp.supervisor.supabase_project import SupabaseProject, retry_after_s
from wan2gp.supervisor.supabase_queue import SupabaseQueue

HTML = "<html>\n<body>\n<h1>502 Bad Gateway</h1></body></html>"
ANY = "rpc/wan2gp_"
NEVER_S = 10_000.0
"""Longer than any test: what ends such a wait is not its end."""


def says(code: str, message: str) -> dict[str, str | None]:
    """An error in PostgREST's form."""
    return {"code": code, "message": message, "hint": None, "details": None}


@contextmanager
def queue_on(
    stack: Stack, key: str | None = None, url: str | None = None, **settings: float
) -> Iterator[SupabaseQueue]:
    with closing(SupabaseProject(url or stack.url, Secret(key or stack.key))) as project:
        with closing(SupabaseQueue(project, **settings)) as queue:
            yield queue


@pytest.fixture
def stack(lasting_stack: Stack) -> Stack:
    return lasting_stack


@pytest.fixture
def queue(stack: Stack) -> Iterator[SupabaseQueue]:
    with queue_on(stack) as queue:
        yield queue


@pytest.fixture
def admin(stack: Stack) -> Iterator[Admin]:
    with psycopg.connect(stack.database, autocommit=True) as connection:
        yield connection


def eventually(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Returns when ``condition`` holds; what is waited for has its own clock, this is only the test's patience."""
    ends = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends, "it never came true"
        time.sleep(0.02)


def answers(queue: SupabaseQueue) -> bool:
    try:
        queue.check()
    except (QueueUnavailable, FunctionsMissing):
        return False
    return True


def error_of(call: Callable[[], Any]) -> QueueError:
    with pytest.raises(QueueError) as raised:
        call()
    return raised.value


class TestLostAnswers:
    """The function was committed, and the connection broke instead of the answer."""

    @pytest.mark.parametrize("kind", ["cut_after", "cut_answer"])
    def test_a_claim_is_made_once(self, stack: Stack, queue: SupabaseQueue, admin: Admin, kind: Any) -> None:
        first, second = queue.enqueue("comfy", {}), queue.enqueue("comfy", {})
        fault = stack.front.faults.add(Fault("rpc/wan2gp_claim", kind, after_bytes=20))
        task = take(queue)
        assert fault.hits == 1 and len(stack.front.seen("rpc/wan2gp_claim")) == 2
        assert (task.id, task.attempt) == (first, 1)
        assert event_names(queue, first) == ["queued", "claimed"] and event_names(queue, second) == ["queued"]
        assert admin.execute("SELECT count(*), sum(attempts) FROM tasks").fetchone() == (2, 1)
        assert admin.execute("SELECT count(*) FROM task_leases WHERE token <> ''").fetchone() == (1,)

    @pytest.mark.parametrize("verb", [Verb.COMPLETE, Verb.RETRY, Verb.FAIL, Verb.RELEASE, Verb.LOSS])
    def test_a_finish_is_made_once(self, stack: Stack, queue: SupabaseQueue, admin: Admin, verb: Verb) -> None:
        task_id = queue.enqueue("comfy", {})
        task = take(queue)
        stack.front.faults.add(Fault("rpc/wan2gp_finish", "cut_after"))
        reply = end(queue, task, verb, error_message="x: y")
        assert reply.accepted and reply.repeated
        assert len(event_names(queue, task_id)) == 3 and len(stack.front.seen("rpc/wan2gp_finish")) == 2
        found = row(queue, task_id)
        assert (found["failures"], found["losses"]) == (int(verb in (Verb.RETRY, Verb.FAIL)), int(verb is Verb.LOSS))
        assert admin.execute("SELECT count(*) FROM task_leases WHERE token <> ''").fetchone() == (0,)

    def test_tasks_and_children_are_made_once(self, stack: Stack, queue: SupabaseQueue, admin: Admin) -> None:
        stack.front.faults.add(Fault("rpc/wan2gp_enqueue", "cut_after"))
        queue.enqueue("comfy", {})
        assert admin.execute("SELECT count(*) FROM tasks").fetchone() == (1,)
        parent = take(queue)
        stack.front.faults.add(Fault("rpc/wan2gp_spawn", "cut_after"))
        children = queue.spawn(parent.id, parent.token, [SpawnedChild("part", {})] * 3)
        assert len(set(children)) == 3
        assert admin.execute("SELECT count(*) FROM tasks").fetchone() == (4,)

    def test_a_claim_whose_answers_are_all_lost_is_still_one(
        self, stack: Stack, queue: SupabaseQueue, admin: Admin
    ) -> None:
        for _ in range(3):
            queue.enqueue("comfy", {})
        fault = stack.front.faults.add(Fault("rpc/wan2gp_claim", "cut_after", times=None))
        error = error_of(lambda: queue.claim("one", "w", ["comfy"], 1, 90))
        assert isinstance(error, QueueUnavailable) and not error.server_down and fault.hits > 1
        stack.front.faults.clear()
        (task,) = queue.claim("one", "w", ["comfy"], 1, 90).tasks
        assert task.attempt == 1
        assert admin.execute("SELECT count(*), sum(attempts) FROM tasks").fetchone() == (3, 1)


class TestOutages:
    @pytest.mark.long
    @pytest.mark.parametrize(
        "fault",
        [
            Fault(ANY, "reset"),
            Fault(ANY, "status", 502, {"Content-Type": "text/html"}, HTML, times=2),
            Fault(ANY, "status", 503, {}, says("PGRST002", "upstream"), times=2),
            Fault(ANY, "status", 504, {}, says("PGRST003", "pool")),
            Fault(ANY, "status", 500, {}, says("40P01", "deadlock"), times=4),
            Fault(ANY, "status", 404, {}, says("PGRST202", "not in the schema cache"), times=3),
            Fault(ANY, "status", 521),
            Fault(ANY, "status", 200, {"Content-Type": "text/html"}, HTML),
            Fault(ANY, "status", 200, {"Content-Type": "application/json"}),
            Fault(ANY, "status", 200, {}, '{"tasks": ['),
            Fault(ANY, "status", 200, {}, {"ok": True}),
            Fault(ANY, "status", 204),
        ],
        ids=lambda fault: f"{fault.kind} {fault.status} {str(fault.body)[:20]}",
    )
    def test_a_passing_fault_is_not_even_noticed(self, stack: Stack, queue: SupabaseQueue, fault: Fault) -> None:
        task_id = queue.enqueue("comfy", {})
        # A fault counts who meets it, and the parameter lives as long as the session.
        mine = stack.front.faults.add(replace(fault, hits=0, lifted=threading.Event()))
        assert [task.id for task in claim(queue)] == [task_id]
        assert mine.hits == fault.times

    @pytest.mark.parametrize("text", ["<html>hello</html>", '"<html>hello</html>"', '""', "7", "[]", "{}", '"Queued'])
    def test_what_is_not_postgrests_is_taken_for_no_answer(
        self, stack: Stack, queue: SupabaseQueue, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        """Least of all for an empty queue, a task's id or a status."""
        monkeypatch.setattr("wan2gp.supervisor.rest_patience.SOON_S", 0.001)
        headers = {"Content-Type": "application/json"}
        stack.front.faults.add(Fault(ANY, "status", 200, headers, text, times=None))
        calls: list[Callable[[], Any]] = [lambda: claim(queue), lambda: beat(queue), lambda: queue.cancel("x")]
        calls += [lambda: queue.enqueue("comfy", {}), lambda: queue.event("x", "y", {}), queue.stats, queue.check]
        if text in ("{}", "7"):  # which a row of statistics, or a version, may be
            del calls[5 if text == "{}" else 6]
        for call in calls:
            error = error_of(call)
            assert isinstance(error, QueueUnavailable) and "SUPABASE_URL" in str(error) and "hello" not in str(error)

    def test_a_page_instead_of_an_answer_becomes_one_sentence(self, stack: Stack, queue: SupabaseQueue) -> None:
        stack.front.faults.add(Fault(ANY, "status", 502, {"Content-Type": "text/html"}, HTML, times=None))
        error = error_of(queue.check)
        assert isinstance(error, QueueUnavailable)
        assert "\n" not in str(error) and "<" not in str(error) and stack.url.partition("//")[2] in str(error)

    def test_a_pause_that_is_asked_for_is_kept_by_every_thread(self, stack: Stack, queue: SupabaseQueue) -> None:
        task_id = queue.enqueue("comfy", {})
        stack.front.faults.add(Fault("rpc/wan2gp_claim", "status", 429, {"Retry-After": "1"}, {"message": "slow down"}))
        with ThreadPoolExecutor(1) as pool:
            claiming = pool.submit(claim, queue)
            eventually(lambda: queue._hold_until > 0)
            beat(queue)
            assert [task.id for task in claiming.result(60)] == [task_id]
        limited, again = stack.front.seen("rpc/wan2gp_claim")
        (other,) = stack.front.seen("rpc/wan2gp_heartbeat")
        assert again.at - limited.at >= 1.0 and other.at - limited.at >= 0.99

    def test_a_pause_longer_than_a_call_ends_the_call(self, stack: Stack) -> None:
        with queue_on(stack, call_timeout_s=5) as queue:
            stack.front.faults.add(Fault(ANY, "status", 429, {"Retry-After": "86400"}, times=None))
            for _ in range(3):
                assert isinstance(error_of(queue.check), QueueUnavailable)
            assert len(stack.front.requests) == 1

    def test_a_silent_connection_is_given_up_for_a_fresh_one(self, stack: Stack) -> None:
        with queue_on(stack, silence_s=0.2, call_timeout_s=60) as queue:
            eventually(lambda: answers(queue))
            hanging = stack.front.faults.add(Fault(ANY, "hang"))
            eventually(lambda: answers(queue))
            assert hanging.hits == 1

    def test_a_project_that_never_answers_ends_the_call_in_time(self, stack: Stack) -> None:
        with queue_on(stack, call_timeout_s=0.7) as queue:
            stack.front.faults.add(Fault(ANY, "hang", times=None))
            error = error_of(queue.check)
            assert isinstance(error, QueueUnavailable) and not error.server_down

    @pytest.mark.long
    @pytest.mark.parametrize("size", [1 << 20, 1000], ids=["large", "small"])
    def test_of_answers_that_come_too_late_only_large_params_are_blamed(self, stack: Stack, size: int) -> None:
        with queue_on(stack, call_timeout_s=0.7) as queue:
            task_id = queue.enqueue("comfy", {"a": "x" * size})
            for skip in (0, 1):  # what was asked for without them, between the two, is answered
                stack.front.faults.add(Fault("rpc/wan2gp_claim", "hang", skip=skip))
            if size > 1000:
                (task,) = queue.claim("one", "w", ["comfy"], 1, 90).tasks
                assert (task.id, task.params, task.unreadable_code) == (task_id, None, "input.too_large")
                assert end(queue, task, Verb.FAIL).accepted
            else:
                assert isinstance(error_of(lambda: queue.claim("one", "w", ["comfy"], 1, 90)), QueueUnavailable)
                (task,) = queue.claim("one", "w", ["comfy"], 1, 90).tasks
                assert (task.id, task.attempt, task.params) == (task_id, 1, {"a": "x" * size})

    def test_an_answer_that_drips_ends_the_call_in_time(self, stack: Stack) -> None:
        """No single read takes long."""
        with dripping() as url, queue_on(stack, url=url, call_timeout_s=0.7) as queue:
            assert isinstance(error_of(queue.check), QueueUnavailable)

    def test_a_stale_connection_is_replaced(self, stack: Stack, queue: SupabaseQueue, admin: Admin) -> None:
        for n in range(1, 4):
            stack.front.down()
            stack.front.up()
            queue.enqueue("comfy", {})
            assert admin.execute("SELECT count(*) FROM tasks").fetchone() == (n,)

    def test_a_project_that_refuses_connections_is_away_for_everybody(self, stack: Stack, queue: SupabaseQueue) -> None:
        """Its host is there and nobody listens: nobody can take our tasks, so all keep what they run past their leases.
        Taken for trouble of our own, an outage longer than a lease made every worker give up its work at once."""
        queue.enqueue("comfy", {})
        task = take(queue)
        stack.front.down()
        error = error_of(lambda: end(queue, task))
        assert isinstance(error, QueueUnavailable) and error.server_down
        stack.front.up()
        assert end(queue, task).accepted

    @pytest.mark.parametrize("status", [502, 503, 504, *range(520, 525), 530, 540])
    def test_a_gateway_with_nothing_behind_it_says_so_to_everybody(
        self, stack: Stack, queue: SupabaseQueue, status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wan2gp.supervisor.rest_patience.SOON_S", 0.001)
        stack.front.faults.add(Fault(ANY, "status", status, {"Content-Type": "text/html"}, HTML, times=None))
        error = error_of(queue.check)
        assert isinstance(error, QueueUnavailable) and error.server_down

    @pytest.mark.long
    @pytest.mark.parametrize("fault", ["hang", "reset", 500, 408, 429, 525, 526])
    def test_what_may_be_trouble_of_our_own_is_not_called_everybodys(
        self, stack: Stack, fault: str | int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Others may reach it: they must not be trusted to leave our tasks alone."""
        monkeypatch.setattr("wan2gp.supervisor.rest_patience.SOON_S", 0.001)
        kind: Any = fault if isinstance(fault, str) else "status"
        status = fault if isinstance(fault, int) else 0
        with queue_on(stack, call_timeout_s=0.7) as queue:
            stack.front.faults.add(Fault(ANY, kind, status, times=None))
            error = error_of(queue.check)
        assert isinstance(error, QueueUnavailable) and not error.server_down

    @pytest.mark.long
    @pytest.mark.parametrize("url", ["http://no-such-host.invalid", "http://127.0.0.1:1"], ids=["no name", "refused"])
    def test_a_name_that_is_not_found_is_our_own_trouble_and_a_refusal_is_not(self, stack: Stack, url: str) -> None:
        with queue_on(stack, url=url, call_timeout_s=3) as queue:
            error = error_of(queue.check)
        assert isinstance(error, QueueUnavailable) and error.server_down == url.endswith(":1")

    def test_terminated_sessions_are_replaced(self, supabase_stack: Stack) -> None:
        connect = psycopg.connect(supabase_stack.database, autocommit=True)
        with queue_on(supabase_stack) as queue, connect as admin:
            for n in range(1, 4):
                queue.check()
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )
                eventually(lambda: answers(queue))
                queue.enqueue("comfy", {})
                assert admin.execute("SELECT count(*) FROM tasks").fetchone() == (n,)

    def test_a_database_that_is_down_is_said_to_be_and_is_found_when_it_is_back(
        self, pg_server: PgServer, supabase_stack: Stack
    ) -> None:
        def down_for_all() -> bool:
            error = error_of(lambda: end(queue, task))
            return isinstance(error, QueueUnavailable) and error.server_down

        with queue_on(supabase_stack, call_timeout_s=3) as queue:
            queue.enqueue("comfy", {})
            task = take(queue)
            pg_server.stop_server()
            eventually(down_for_all)
            pg_server.start_server()
            eventually(lambda: answers(queue), 100)
            assert end(queue, task).accepted


class TestStopping:
    def test_an_interrupt_and_a_close_end_the_wait(self, stack: Stack) -> None:
        with queue_on(stack) as queue:
            for stop in (queue.interrupt, queue.close):
                with ThreadPoolExecutor(1) as pool:
                    waiting = pool.submit(queue.wait, NEVER_S)
                    stop()
                    assert waiting.result(60) is False
            assert queue.wait(NEVER_S) is False
            assert not queue.listening

    def test_an_interrupt_ends_the_repeats_of_a_claim_and_of_nothing_else(self, stack: Stack) -> None:
        stack.front.faults.add(Fault(ANY, "status", 503, {"Retry-After": "2"}))
        with queue_on(stack) as queue, ThreadPoolExecutor(2) as pool:
            claiming = pool.submit(claim, queue)
            eventually(lambda: queue._hold_until > 0)
            beating = pool.submit(beat, queue)
            queue.interrupt()
            assert isinstance(claiming.exception(60), QueueUnavailable)
            assert beating.result(60) == ([], [])
        assert len(stack.front.seen("rpc/wan2gp_claim")) == 1

    def test_a_close_ends_every_repeat_and_nothing_is_asked_afterwards(self, stack: Stack) -> None:
        stack.front.faults.add(Fault(ANY, "status", 503, {"Retry-After": "8"}, times=None))
        with queue_on(stack) as queue, ThreadPoolExecutor(1) as pool:
            beating = pool.submit(beat, queue)
            eventually(lambda: queue._hold_until > 0)
            queue.close()
            assert isinstance(beating.exception(60), QueueUnavailable)
            assert isinstance(error_of(queue.check), QueueUnavailable)
        assert len(stack.front.requests) == 1

    def test_an_interrupt_before_a_claim_costs_it_no_repeat_and_is_heard_by_the_next_wait(
        self, stack: Stack, queue: SupabaseQueue
    ) -> None:
        """A busy worker is interrupted all the time."""
        task_id = queue.enqueue("comfy", {})
        queue.interrupt()
        stack.front.faults.add(Fault("rpc/wan2gp_claim", "status", 503))
        assert [task.id for task in claim(queue)] == [task_id]
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(queue.wait, NEVER_S).result(60) is False

    def test_a_project_that_was_closed_first_is_an_outage_and_no_crash(self, stack: Stack) -> None:
        with queue_on(stack) as queue:
            queue.check()
            queue._project.close()
            assert isinstance(error_of(queue.check), QueueUnavailable)

    def test_arguments_that_are_no_json_are_the_callers_fault(self, stack: Stack, queue: SupabaseQueue) -> None:
        with pytest.raises(TypeError):
            queue.event("x", "y", {"z": object()})
        queue.check()


class TestRefusals:
    def test_a_wrong_key_a_personal_token_and_another_projects_say_which_key_to_give(self, stack: Stack) -> None:
        expired = stack.keys.sign("service_role", lives_s=-60)
        for key in ("sb_secret_wrong", stack.pat, expired):
            with queue_on(stack, key) as queue:
                error = error_of(queue.check)
            assert (
                isinstance(error, AccessDenied) and "SUPABASE_SERVICE_ROLE_KEY" in str(error) and key not in str(error)
            )

    @pytest.mark.parametrize("code", ["PGRST301", "PGRST303"])
    def test_postgrests_own_word_on_a_key_is_understood(self, stack: Stack, queue: SupabaseQueue, code: str) -> None:
        stack.front.faults.add(Fault(ANY, "status", 401, {}, says(code, "JWT expired")))
        error = error_of(queue.check)
        assert isinstance(error, AccessDenied) and error.code == code

    def test_both_forms_of_the_service_key_work_and_the_others_may_not_call(self, stack: Stack) -> None:
        for key in (stack.key, stack.jwt_key):
            with queue_on(stack, key) as queue:
                queue.check()
        for key in (stack.anon_key, stack.keys.anon_jwt):
            with queue_on(stack, key) as queue:
                error = error_of(queue.check)
            assert isinstance(error, AccessDenied) and error.code == "42501" and "service_role" in str(error)

    @pytest.mark.parametrize(
        "answer",
        [
            Fault(ANY, "status", 404, {}, {}),
            Fault(ANY, "status", 404, {}, {"message": "no Route matched with those values"}),
            Fault(ANY, "status", 404, {"Content-Type": "text/html"}, "<html>Not Found</html>"),
            Fault(ANY, "status", 308, {"Location": "https://elsewhere.example/rest/v1?token=t0ken"}),
        ],
        ids=["empty", "gateway", "page", "redirect"],
    )
    def test_a_wrong_address_is_said_to_be_wrong(self, stack: Stack, queue: SupabaseQueue, answer: Fault) -> None:
        stack.front.faults.add(replace(answer, hits=0, times=None))
        error = error_of(queue.check)
        assert isinstance(error, AccessDenied) and "SUPABASE_URL" in str(error) and "t0ken" not in str(error)
        assert len(stack.front.requests) == 1, "asking again does not mend an address"

    @pytest.mark.long
    @pytest.mark.parametrize("lasting_stack", ["bare"], indirect=True)
    def test_a_project_without_the_functions_says_what_to_run_and_works_right_after_it(self, stack: Stack) -> None:
        with queue_on(stack) as queue:
            with pytest.raises(FunctionsMissing, match="wan2gp-ctl db migrate"):
                queue.check()
            migrate(stack.database)
            eventually(lambda: answers(queue))

    def test_an_older_contract_says_what_to_run(self, stack: Stack, queue: SupabaseQueue, admin: Admin) -> None:
        admin.execute("CREATE OR REPLACE FUNCTION wan2gp_version() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        with pytest.raises(FunctionsMissing, match="version 1"):
            queue.check()

    @pytest.mark.parametrize("code", ["P0001", "22P02", "23505", "W2001"])
    def test_what_the_database_refuses_keeps_its_code(self, stack: Stack, queue: SupabaseQueue, code: str) -> None:
        stack.front.faults.add(Fault(ANY, "status", 400, {}, says(code, "not like this")))
        error = error_of(queue.check)
        assert isinstance(error, QueueRefused) and not isinstance(error, AccessDenied)
        assert error.code == code and "not like this" in str(error)
        assert len(stack.front.requests) == 1

    def test_a_request_that_is_too_large_is_refused_for_good(self, stack: Stack, queue: SupabaseQueue) -> None:
        stack.front.faults.add(Fault(ANY, "status", 413, {"Content-Type": "text/html"}, HTML))
        error = error_of(queue.check)
        assert isinstance(error, QueueRefused) and not isinstance(error, AccessDenied) and error.code == "413"

    def test_a_paused_project_says_how_to_wake_it(self, stack: Stack, queue: SupabaseQueue) -> None:
        stack.front.faults.add(Fault(ANY, "status", 540, times=None))
        error = error_of(queue.check)
        assert isinstance(error, QueueUnavailable) and "resume it" in str(error)

    @pytest.mark.parametrize(
        "url", ["", "x.supabase.co", "https://u:pl4nted@h/", "https://h/?apikey=pl4nted", "ftp://h"]
    )
    def test_a_url_that_is_none_is_refused_without_being_repeated(self, url: str) -> None:
        with pytest.raises(QueueRefused) as refused:
            SupabaseProject(url, Secret("k"))
        assert "pl4nted" not in str(refused.value)

    @pytest.mark.parametrize("key", ["", "pl4nted\n", "pl4nted x", "pl4nted\0", "pl4ntedü", "\ud800pl4nted"])
    def test_a_key_that_no_header_can_carry_is_refused_without_being_repeated(self, key: str) -> None:
        with pytest.raises(QueueRefused) as refused:
            SupabaseProject("https://h", Secret(key))
        assert "pl4nted" not in told(refused.value)


class TestSecrets:
    @pytest.mark.long
    def test_no_error_tells_the_key(self, stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
        """Not in its text, nor in its traceback, not even in one that shows the variables of every frame."""
        caplog.set_level(logging.DEBUG)
        faults = [
            Fault(ANY, "reset", times=None),
            Fault(ANY, "hang", times=None),
            Fault(ANY, "cut_answer", times=None),
            Fault(ANY, "status", 401, {}, {"message": "Invalid API key"}),
            Fault(ANY, "status", 400, {}, says("P0001", "no")),
            Fault(ANY, "status", 404, {}, says("PGRST202", "no"), times=None),
            Fault(ANY, "status", 404, {}, {}),
            Fault(ANY, "status", 429, {"Retry-After": "999"}),
            Fault(ANY, "status", 502, {}, HTML, times=None),
            Fault(ANY, "status", 503, {}, says("PGRST000", "no"), times=None),
            Fault(ANY, "status", 200, {}, HTML, times=None),
            Fault(ANY, "status", 200, {"Content-Encoding": "gzip"}, HTML, times=None),
            Fault(ANY, "status", 200, {"Content-Type": "application/json"}, "[" * 100_000, times=None),
        ]
        told_all = []
        for fault in faults:
            with queue_on(stack, call_timeout_s=1) as queue:
                stack.front.faults.add(fault)
                told_all.append(told(error_of(lambda queue=queue: claim(queue))))  # type: ignore[misc]
                stack.front.faults.clear()
                told_all.append(repr(vars(queue)) + repr(queue._project) + str(queue._project))
        stack.front.down()
        with queue_on(stack, call_timeout_s=1) as queue:
            told_all.append(told(error_of(queue.check)))
        stack.front.up()
        assert not [text for text in [*told_all, caplog.text] if stack.key in text]

    def test_a_project_starts_no_thread_and_makes_no_request(self, stack: Stack) -> None:
        before = set(threading.enumerate())
        with closing(SupabaseProject(stack.url, Secret(stack.key))) as project:
            assert project.client is project.client
            assert set(threading.enumerate()) <= before and not stack.front.requests

    def test_one_question_is_one_request(self, stack: Stack, queue: SupabaseQueue) -> None:
        for n in range(1, 4):
            claim(queue)
            beat(queue)
            assert len(stack.front.requests) == 2 * n


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), (" 0 ", 0.0), (None, None), ("", None), ("soon", None), ("-3", None), ("1e3", None),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("Wed, 99 Oct 2015 07:28:00 GMT", None),
     ("\xb2", None), ("\u0663", None), ("9" * 400, 86400.0), ("Fri, 31 Dec 9999 23:59:59 GMT", 86400.0)],
)  # fmt: skip
def test_a_retry_after_is_read_in_both_forms(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header) == seconds


def told(error: BaseException) -> str:
    """All that could ever be printed of it, but for the test's own frames, which know the key."""
    trace = error.__traceback__
    while trace is not None and "/tests/" in trace.tb_frame.f_code.co_filename:
        trace = trace.tb_next
    assert trace is not None
    whole = traceback.TracebackException(type(error), error, trace, capture_locals=True)
    return "\n".join([str(error), repr(error), repr(error.args), *whole.format()])


@contextmanager
def dripping() -> Iterator[str]:
    """A server whose answer comes a byte at a time, for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99999\r\n\r\n"
                    )
                    while True:
                        connection.sendall(b" ")
                        time.sleep(0.02)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    thread.join(60)
