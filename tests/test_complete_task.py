"""Completing by the predecessor's function: never twice, never on its word alone, never lost."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from tests.completing_function import (
    CompletingFunction,
    Deed,
    answers,
    breaks_after_all,
    breaks_without_a_deed,
    dies_before_the_row,
    fails_after_all,
    goes_on_behind_a_broken_connection,
    only_says_yes,
    public_url,
    says_yes_before_the_row,
    works,
)
from tests.conftest_db import PgServer
from tests.contract_bench import Admin, beat, claim, event_names, in_contact, let_expire, row, take
from wan2gp.config import Secret
from wan2gp.supervisor.complete_task import CompletingQueue, available
from wan2gp.supervisor.postgres import PostgresQueue
from wan2gp.supervisor.publish import PublishFailed
from wan2gp.supervisor.queue import (
    ClaimedTask,
    Completing,
    FinishReply,
    QueueUnavailable,
    Settlement,
    SpawnedChild,
    Verb,
)
from wan2gp.supervisor.supabase_project import SupabaseProject

KEY = "sb_secret_planted"
PROJECT = "aaaaaaaa-0000-4000-8000-000000000001"
PATH = "u/tasks/t/1-abcdef01/a b.mp4"
THEIRS = public_url(PATH)
LONG = (30.0,)
"""A pause that a test would notice."""


class Said:
    """Facts, kept."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, /, **fields: Any) -> None:
        self.names.append(name)

    def bind(self, **who: str) -> Said:
        return self


class Bench:
    """A claimed task of a project, and the queue that completes it by the function."""

    def __init__(self, database: str, admin: Admin) -> None:
        self.admin = admin
        self.function = CompletingFunction(database, KEY)
        self.project = SupabaseProject(self.function.url, Secret(KEY))
        self.inner = PostgresQueue(database)
        self.said = Said()
        self._look, self.inner.completing = self.inner.completing, self.look  # type: ignore[method-assign]
        self.now = 1000.0
        self.queue = CompletingQueue(
            self.inner, self.project, self.said, call_s=30, pauses_s=(0.01, 0.02), clock=lambda: self.now
        )

    def look(self, task_id: str, token: str, lease_s: float) -> Completing:
        """What goes on behind a broken connection is done just after somebody looked."""
        found = self._look(task_id, token, lease_s)
        self.function.go_on()
        return found

    def task(self, project_id: str | None = PROJECT) -> ClaimedTask:
        self.admin.execute(
            "INSERT INTO tasks (task_type, params, project_id) VALUES ('comfy', '{}', %s)", (project_id,)
        )
        return take(self.queue)

    @staticmethod
    def settlement(task: ClaimedTask, verb: Verb = Verb.COMPLETE, path: str | None = PATH) -> Settlement:
        return Settlement(
            task.id,
            task.token,
            verb,
            output_location="https://x/ours.mp4",
            result_data={"artifacts": [{"name": "a.mp4"}]},
            project_id=task.project_id,
            storage_path=path,
        )

    def close(self) -> None:
        self.queue.close()
        self.project.close()


@pytest.fixture
def bench(pg_server: PgServer) -> Iterator[Bench]:
    for database in pg_server.borrow(pg_server.predecessor_template()):
        with psycopg.connect(database, autocommit=True) as admin, closing(Bench(database, admin)) as bench:
            with bench.function.serving():
                yield bench


def test_a_result_goes_to_the_app_and_our_facts_to_the_row(bench: Bench) -> None:
    task = bench.task()
    settlement = replace(bench.settlement(task), thumbnail_path="u/tasks/t/a.jpg")
    assert bench.queue.finish(settlement) == FinishReply(True, "Complete")
    path = {"storage_path": PATH, "thumbnail_storage_path": "u/tasks/t/a.jpg"}
    assert bench.function.calls == [{"task_id": task.id, **path}]
    found = row(bench.queue, task.id)
    assert (found["output_location"], found["result_data"]) == (THEIRS, {"artifacts": [{"name": "a.mp4"}]})
    assert event_names(bench.queue, task.id)[2:] == ["completing", "completed"]
    assert bench.queue.finish(settlement) == FinishReply(True, "Complete", repeated=True)
    assert len(bench.function.calls) == bench.function.generations(task.id) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("deeds", "calls", "location"),
    [
        ([fails_after_all], 1, THEIRS),
        ([breaks_after_all], 1, THEIRS),
        ([goes_on_behind_a_broken_connection], 1, THEIRS),
        ([dies_before_the_row], 1, "https://x/ours.mp4"),
        ([says_yes_before_the_row], 1, "https://x/ours.mp4"),
        ([only_says_yes], 2, THEIRS),
        ([answers(503), answers(502)], 3, THEIRS),
        ([answers(429, retry_after=0)], 2, THEIRS),
        ([answers(546, code="WORKER_LIMIT"), breaks_after_all], 2, THEIRS),
    ],
)
def test_whatever_its_answer_the_app_shows_the_result_once(
    bench: Bench, deeds: list[Deed], calls: int, location: str
) -> None:
    task = bench.task()
    bench.function.deeds = list(deeds)
    assert bench.queue.finish_many([bench.settlement(task)]) == (FinishReply(True, "Complete"),)
    assert (len(bench.function.calls), bench.function.generations(task.id)) == (calls, 1)
    assert row(bench.queue, task.id)["output_location"] == location
    assert bench.said.names == []


def test_one_that_says_yes_for_ever_and_does_nothing_leaves_no_row_in_progress(bench: Bench) -> None:
    task = bench.task()
    bench.function.deeds = [only_says_yes] * 9
    assert bench.queue.finish(bench.settlement(task)) == FinishReply(True, "Complete")
    assert (len(bench.function.calls), bench.said.names) == (3, ["publish.no_effect"])


def test_one_that_is_away_keeps_the_task_for_later(bench: Bench) -> None:
    task = bench.task()
    bench.function.deeds = [answers(503, message="booting")] * 3
    with pytest.raises(PublishFailed) as failed:
        bench.queue.finish(bench.settlement(task))
    assert (failed.value.code, failed.value.permanent) == ("publish.unavailable", False)
    assert "503" in failed.value.message and "booting" in failed.value.message
    assert row(bench.queue, task.id)["status"] == "In Progress"
    assert bench.queue.finish(bench.settlement(task)).accepted
    assert bench.function.generations(task.id) == 1


def slow(bench: Bench, deed: Deed) -> Deed:
    """The same, after a while."""

    def later(function: CompletingFunction, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        bench.now += 30.0
        return deed(function, body)

    return later


UNANSWERED: dict[str, Callable[[Bench], Deed]] = {
    "the connection breaks": lambda bench: breaks_without_a_deed,
    "a gateway gives up": lambda bench: answers(504),
    "a gateway is slow to refuse": lambda bench: slow(bench, answers(503)),
}


@pytest.mark.long
@pytest.mark.parametrize("what", list(UNANSWERED))
def test_a_call_without_an_answer_is_looked_after_for_as_long_as_it_may_run(bench: Bench, what: str) -> None:
    """The function was slow, was called again meanwhile, and made two generations, and two bills."""
    task = bench.task()
    bench.function.deeds = [UNANSWERED[what](bench)]
    for now in (1000.0, 1010.0, 1100.0, 1159.0):
        bench.now = now
        let_expire(bench.admin, task)
        with pytest.raises(PublishFailed) as failed:
            bench.queue.finish_many([bench.settlement(task)])
        assert (failed.value.code, failed.value.permanent) == ("publish.unavailable", False)
        assert (failed.value.retry_after_s or 0.0) <= 10.0
        assert row(bench.queue, task.id)["lease"]["expires_in_s"] > 110
    assert len(bench.function.calls) == 1 and bench.queue.finish(bench.settlement(bench.task())).accepted
    bench.now = 1161.0
    assert bench.queue.finish(bench.settlement(task)) == FinishReply(True, "Complete")
    assert (len(bench.function.calls), bench.function.generations(task.id)) == (3, 1)


def test_a_call_that_did_its_work_late_is_seen_at_the_next_look(bench: Bench) -> None:
    task = bench.task()
    bench.function.deeds = [breaks_without_a_deed]
    with pytest.raises(PublishFailed):
        bench.queue.finish(bench.settlement(task))
    works(bench.function, {"task_id": task.id, "storage_path": PATH})
    assert bench.queue.finish(bench.settlement(task)) == FinishReply(True, "Complete")
    assert (len(bench.function.calls), bench.function.generations(task.id)) == (1, 1)


def test_a_slow_end_of_the_functions_own_is_an_answer(bench: Bench) -> None:
    task = bench.task()
    bench.function.deeds = [slow(bench, answers(500)), slow(bench, answers(546))]
    assert bench.queue.finish(bench.settlement(task)) == FinishReply(True, "Complete")
    assert len(bench.function.calls) == 3


def test_a_function_may_take_longer_than_any_other_call(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan2gp.supervisor.supabase_project.READ_S", 0.05)
    task = bench.task()

    def takes_its_time(function: CompletingFunction, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        time.sleep(0.5)
        return works(function, body)

    bench.function.deeds = [takes_its_time]
    assert bench.queue.finish(bench.settlement(task)) == FinishReply(True, "Complete")
    assert row(bench.queue, task.id)["output_location"] == THEIRS


def test_a_function_that_could_not_be_called_may_be_called_at_once(bench: Bench) -> None:
    task = bench.task()
    with closing(SupabaseProject("http://127.0.0.1:9", Secret(KEY))) as nobody:
        bench.queue._project = nobody
        with pytest.raises(PublishFailed):
            bench.queue.finish(bench.settlement(task))
    bench.queue._project = bench.project
    assert bench.queue.finish(bench.settlement(task)) == FinishReply(True, "Complete")
    assert (len(bench.function.calls), bench.function.generations(task.id)) == (1, 1)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
def test_a_refusal_is_for_a_person_who_mends_it(bench: Bench, status: int) -> None:
    task = bench.task()
    bench.function.deeds = [answers(status, error=f"because of {KEY}\n!")]
    with pytest.raises(PublishFailed) as failed:
        bench.queue.finish(bench.settlement(task))
    assert (failed.value.code, failed.value.permanent) == ("publish.complete_task", True)
    assert f"HTTP {status}: because of *** !" in failed.value.message and "publish retry" in failed.value.message
    withheld = replace(bench.settlement(task, Verb.WITHHOLD), error_message="publish.complete_task: no")
    assert bench.queue.finish(withheld).accepted
    assert row(bench.queue, task.id)["status"] == "Failed"
    assert bench.queue.finish(bench.settlement(task)) == FinishReply(True, "Complete")
    assert (row(bench.queue, task.id)["output_location"], bench.function.generations(task.id)) == (THEIRS, 1)


def test_a_refusal_of_what_it_had_done_already_is_none(bench: Bench) -> None:
    task = bench.task()

    def refuses_after_all(function: CompletingFunction, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        fails_after_all(function, body)
        return 404, {"error": "no task In Progress"}

    bench.function.deeds = [refuses_after_all]
    assert bench.queue.finish(bench.settlement(task)) == FinishReply(True, "Complete")


def test_a_worker_that_died_after_the_call_does_not_call_again(bench: Bench) -> None:
    task = bench.task()
    bench.inner.completing(task.id, task.token, 90)
    fails_after_all(bench.function, {"task_id": task.id, "storage_path": PATH})
    assert bench.queue.finish(bench.settlement(task)) == FinishReply(True, "Complete")
    assert bench.function.calls == []


def test_who_has_lost_the_lease_calls_nobody(bench: Bench) -> None:
    task = bench.task()
    bench.queue.finish(Settlement(task.id, task.token, Verb.RELEASE))
    other = take(bench.queue, worker="other")
    assert bench.queue.finish(bench.settlement(task)) == FinishReply(False, "In Progress")
    bench.queue.cancel(other.id)
    assert bench.queue.finish(bench.settlement(other)) == FinishReply(False, "Cancelled")
    assert bench.function.calls == []


def test_a_task_that_is_cancelled_under_the_call_stays_cancelled(bench: Bench) -> None:
    task = bench.task()

    def cancelled_meanwhile(function: CompletingFunction, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        bench.inner.cancel(body["task_id"])
        function.complete_row(body)
        return answers(200, success=True)(function, body)

    bench.function.deeds = [cancelled_meanwhile]
    assert bench.queue.finish(bench.settlement(task)) == FinishReply(False, "Cancelled")
    assert len(bench.function.calls) == 1


def test_a_call_that_outlived_its_lease_keeps_the_file_that_the_row_shows(bench: Bench) -> None:
    """Its worker was frozen for minutes; the function completed the row of the next one, with the first one's file."""
    task = bench.task()
    other: list[ClaimedTask] = []

    def frozen_meanwhile(function: CompletingFunction, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        let_expire(bench.admin, task)
        in_contact(bench.inner, bench.admin, "alive")
        bench.inner.rescue("alive")
        other.append(take(bench.inner, worker="alive"))
        return fails_after_all(function, body)

    bench.function.deeds = [frozen_meanwhile]
    assert bench.queue.finish(bench.settlement(task)) == FinishReply(True, "Complete", repeated=True)
    assert row(bench.queue, task.id)["output_location"] == THEIRS
    assert beat(bench.queue, other[0], worker="alive") == ([], [task.id])
    theirs = bench.settlement(other[0], path="u/tasks/t/2-12345678/a b.mp4")
    assert bench.queue.finish_many([theirs]) == (FinishReply(False, "Complete"),)
    assert bench.function.generations(task.id) == 1


def test_all_else_goes_its_old_way_in_its_order(bench: Bench) -> None:
    tasks = [bench.task(), bench.task(), bench.task(None), bench.task(), bench.task()]
    settlements = [
        bench.settlement(tasks[0], Verb.FAIL),
        bench.settlement(tasks[1]),
        bench.settlement(tasks[2]),
        bench.settlement(tasks[3], path=None),
        bench.settlement(tasks[4], Verb.RELEASE),
    ]
    replies = bench.queue.finish_many(settlements)
    assert [reply.status for reply in replies] == ["Failed", "Complete", "Complete", "Complete", "Queued"]
    assert [call["task_id"] for call in bench.function.calls] == [tasks[1].id]
    assert bench.queue.finish_many([]) == ()
    assert bench.queue.listening is False and bench.queue.name == "postgres"


def test_a_stop_does_not_wait_for_the_next_call(bench: Bench) -> None:
    task = bench.task()
    queue = CompletingQueue(bench.inner, bench.project, pauses_s=LONG)
    closed = threading.Event()

    def fails_while_the_worker_stops(
        function: CompletingFunction, body: dict[str, Any]
    ) -> tuple[int, dict[str, Any]] | None:
        queue.close()
        closed.set()
        return 503, {}

    bench.function.deeds = [fails_while_the_worker_stops]
    with pytest.raises(PublishFailed, match="the worker stops"):
        queue.finish(bench.settlement(task))
    assert closed.is_set()


def test_no_connection_and_a_silent_function_are_no_refusal(bench: Bench) -> None:
    task = bench.task()
    hold = threading.Event()

    def silent(function: CompletingFunction, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        hold.wait(30)
        return None

    bench.function.deeds = [silent] * 3
    slow = CompletingQueue(bench.inner, bench.project, call_s=0.1, pauses_s=(0.01,))
    nobody = SupabaseProject("http://127.0.0.1:9", Secret(KEY))
    with closing(nobody):
        for queue in (slow, CompletingQueue(bench.inner, nobody, pauses_s=(0.01,))):
            with pytest.raises(PublishFailed) as failed:
                queue.finish(bench.settlement(task))
            assert failed.value.code == "publish.unavailable" and KEY not in failed.value.message
        assert available(nobody) is None
    hold.set()


@pytest.mark.long
def test_families_that_end_at_once_by_a_function_that_often_fails_are_shown_once_each(bench: Bench) -> None:
    """Its update locks a child before the parent, ours the parent before the child; each may be the one that yields."""
    dice = random.Random(4)
    kinds = (
        works,
        works,
        fails_after_all,
        breaks_after_all,
        dies_before_the_row,
        says_yes_before_the_row,
        answers(503),
    )
    bench.function.deeds = dice.choices(kinds, k=300)
    parents = [bench.task() for _ in range(3)]
    children = [SpawnedChild("child", {})] * 4
    ids = {child for parent in parents for child in bench.queue.spawn(parent.id, parent.token, children)}

    def work(worker: str) -> list[str]:
        done = []
        while found := claim(bench.queue, "child", worker=worker):
            settlement = bench.settlement(found[0])
            while True:
                with contextlib.suppress(PublishFailed, QueueUnavailable):  # the publisher comes again, too
                    assert bench.queue.finish(settlement) == FinishReply(True, "Complete")
                    break
            done.append(found[0].id)
        return done

    with ThreadPoolExecutor(5) as pool:
        done = [task_id for ended in pool.map(work, "abcde") for task_id in ended]
    assert len(done) == len(ids) and set(done) == ids
    assert {bench.function.generations(task_id) for task_id in ids} == {1}
    for parent in parents:
        found = row(bench.queue, parent.id)
        assert (found["status"], found["result_data"]["artifacts"]) == ("Complete", [{"name": "a.mp4"}])


class TestAvailable:
    def test_it_is_there(self, bench: Bench) -> None:
        assert available(bench.project) is True

    def test_it_is_not_there(self, bench: Bench) -> None:
        bench.function.missing = True
        assert available(bench.project) is False

    def test_a_key_that_it_does_not_know_says_that_it_is_there(self, bench: Bench) -> None:
        with closing(SupabaseProject(bench.function.url, Secret("other"))) as project:
            assert available(project) is True
