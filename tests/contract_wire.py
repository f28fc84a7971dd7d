"""What the queue contract says of the way to the database: all text passes, large values too, and no clock but the
server's counts."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.contract_bench import SPEC_INSERT, Admin, beat, claim, end, event_names, in_contact, row, status, take
from wan2gp.supervisor.queue import FinishReply, Settlement, SpawnedChild, TaskQueue, Verb

MEBIBYTE = 1 << 20
TEXTS = {
    "many scripts": "Ünïcödé 漢字 हिन्दी עברית العربية ไทย",
    "beyond the basic plane": "🎬👩‍👩‍👧‍👦 𝔘 \U0010ffff",
    "what JSON escapes": 'quote " backslash \\ slash / \b\f\n\r\t \x01\x1f\x7f',
    "what ends a line elsewhere": "\u2028\u2029\x85",
    "what is not normal": "e\u0301 \u00e9 \u200b\ufeff",
    "what looks like an escape": "\\u0000 \\ud800 \\n %s %(x)s $1 {} {0} :x",
    "what looks like SQL": "'; DROP TABLE tasks; -- $$ $fn$",
    "empty": "",
}
NUMBERS = [0, -1, 2**53 + 1, 10**40, 0.1, -0.0, 1e15 + 0.5, 5e-324, 1.0]
UNREADABLE = {
    "nested three thousand deep": "[" * 3000 + "1" + "]" * 3000,
    "a number of five thousand digits": '{"seed": ' + "9" * 5000 + "}",
}


class WireContract:
    @pytest.mark.parametrize("what", list(TEXTS))
    def test_all_text_comes_back_as_it_went(self, task_queue: TaskQueue, admin: Admin, what: str) -> None:
        text = TEXTS[what]
        params = {"prompt": text, text or "k": [text, {"deep": text}]}
        task_id = task_queue.enqueue("comfy", params)
        (in_database,) = admin.execute("SELECT params ->> 'prompt' FROM tasks").fetchone() or (None,)
        assert in_database == text
        task = take(task_queue)
        assert (task.id, task.params) == (task_id, params)
        beat(task_queue, task, phase="step", detail=text)
        assert row(task_queue, task_id)["detail"] == text
        assert end(task_queue, task, error_message=text, output_location=text, result_data={text or "k": text}).accepted
        found = row(task_queue, task_id)
        assert found["output_location"] == text and found["result_data"][text or "k"] == text

    def test_task_types_and_workers_may_have_any_name(self, task_queue: TaskQueue) -> None:
        kind, worker = "ty{p},\"e\\ 'ü", 'w,o"r{k}er ü\\'
        task_id = task_queue.enqueue(kind, {})
        (task,) = claim(task_queue, "other", kind, worker=worker)
        assert (task.id, task.task_type) == (task_id, kind)
        assert row(task_queue, task_id)["worker_id"] == worker
        assert list(task_queue.reclaim_own(worker)) == [task_id]

    def test_numbers_come_back_as_they_went(self, task_queue: TaskQueue) -> None:
        task_queue.enqueue("comfy", {"numbers": NUMBERS})
        found = take(task_queue).params["numbers"]
        assert found == NUMBERS and [type(one) for one in found[:4]] == [int] * 4

    def test_what_jsonb_cannot_hold_is_replaced(self, task_queue: TaskQueue) -> None:
        task_queue.enqueue("comfy", {"x": ["a\0b", "\ud800", float("nan"), float("inf")], "k\0": 1})
        assert take(task_queue).params == {"x": ["a\ufffdb", "\ufffd", None, None], "k\ufffd": 1}

    def test_a_megabyte_goes_there_and_back(self, task_queue: TaskQueue) -> None:
        params = {"image": "x" * MEBIBYTE, "many": [{"n": n, "text": "ü" * 20} for n in range(2000)]}
        task_id = task_queue.enqueue("comfy", params)
        task = take(task_queue)
        assert task.params == params
        settlement = Settlement(task.id, task.token, Verb.COMPLETE, output_location="/x", result_data={"log": params})
        assert task_queue.finish_many([settlement]) == (FinishReply(True, "Complete"),)
        assert row(task_queue, task_id)["result_data"]["log"] == params

    def test_twenty_settlements_of_two_hundred_kilobytes_go_at_once(self, task_queue: TaskQueue, admin: Admin) -> None:
        admin.execute("INSERT INTO tasks (task_type, params) SELECT 'comfy', '{}' FROM generate_series(1, 20)")
        result = {"log": "y" * 200_000}
        tasks = claim(task_queue, limit=20)
        settlements = [Settlement(task.id, task.token, Verb.COMPLETE, result_data=result) for task in tasks]
        assert [reply.accepted for reply in task_queue.finish_many(settlements)] == [True] * 20

    @pytest.mark.parametrize("what", list(UNREADABLE))
    def test_params_that_python_cannot_hold_are_claimed_without_them(
        self, task_queue: TaskQueue, admin: Admin, what: str
    ) -> None:
        admin.execute("INSERT INTO tasks (task_type, params) VALUES ('comfy', %s::jsonb)", (UNREADABLE[what],))
        task = take(task_queue)
        assert task.params is None and task.unreadable
        assert (task.attempt, row_counts(admin)) == (1, (1, 1))
        assert end(task_queue, task, Verb.FAIL, error_message="input.bad_params: no").accepted
        admin.execute(SPEC_INSERT)
        assert take(task_queue).unreadable is None

    def test_the_clock_of_a_worker_does_not_matter(
        self, task_queue: TaskQueue, admin: Admin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It goes a day wrong in either direction; every time in the table is the server's, and so is every due."""
        right = time.time
        for n, skew_s in enumerate((86400.0, -86400.0)):
            monkeypatch.setattr(time, "time", lambda skew_s=skew_s: right() + skew_s)
            worker = f"w{n}"
            later = task_queue.enqueue("later", {}, run_after_s=60)
            task_id = task_queue.enqueue("comfy", {})
            reply = task_queue.claim(f"c{n}", worker, ["comfy", "later"], 5, 90)
            assert [task.id for task in reply.tasks] == [task_id]
            assert reply.next_due_s is not None and 0 < reply.next_due_s <= 60
            (task,) = reply.tasks
            assert beat(task_queue, task, worker=worker, progress=0.5) == ([], [])
            assert 60 < row(task_queue, task_id)["lease"]["expires_in_s"] <= 90
            in_contact(task_queue, admin, "other")
            assert task_queue.rescue("other") == 0, "a lease that the server calls good is nobody's to take"
            assert end(task_queue, task, Verb.RETRY, retry_in_s=60).accepted
            assert task_queue.cancel(later) == "Queued" and task_queue.cancel(task_id) == "Queued"
        monkeypatch.undo()
        wrong = admin.execute(
            "SELECT count(*) FROM tasks WHERE greatest(created_at, updated_at, generation_started_at) > now()"
            " OR least(created_at, updated_at) < now() - interval '1 hour'"
        ).fetchone()
        assert wrong == (0,)
        assert admin.execute("SELECT count(*) FROM workers WHERE last_heartbeat > now()").fetchone() == (0,)

    def test_every_call_may_be_made_twice(self, task_queue: TaskQueue, admin: Admin) -> None:
        """As it is when the answer to the first was lost."""
        task_queue.enqueue("parent", {})
        task_queue.enqueue("comfy", {})
        first = task_queue.claim("same", "w", ["parent"], 1, 90)
        assert task_queue.claim("same", "w", ["parent"], 1, 90) == first
        (parent,) = first.tasks
        (other,) = claim(task_queue)
        assert beat(task_queue, parent, progress=0.5) == beat(task_queue, parent, progress=0.5) == ([], [])
        children = task_queue.spawn(parent.id, parent.token, [SpawnedChild("part", {})])
        assert task_queue.spawn(parent.id, parent.token, [SpawnedChild("part", {})]) == children
        settlement = Settlement(other.id, other.token, Verb.COMPLETE, output_location="/x")
        assert task_queue.finish_many([settlement]) == (FinishReply(True, "Complete"),)
        assert task_queue.finish_many([settlement]) == (FinishReply(True, "Complete", repeated=True),)
        assert (task_queue.cancel(children[0]), task_queue.cancel(children[0])) == ("Queued", "Cancelled")
        assert (task_queue.retry(other.id), task_queue.retry(other.id)) == ("Complete", "Queued")
        assert status(task_queue, other.id) == "Queued"
        names = event_names(task_queue, other.id)
        assert (names.count("claimed"), names.count("completed")) == (1, 1)
        assert admin.execute("SELECT count(*) FROM tasks").fetchone() == (3,)


def row_counts(admin: Admin) -> Any:
    """Of the tasks, and of their starts."""
    return admin.execute("SELECT count(*), sum(attempts) FROM tasks").fetchone()
