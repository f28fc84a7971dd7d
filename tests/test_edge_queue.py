"""The edge backend against the predecessor's functions on its own tables: claims, heartbeats, what people ask for.

``service`` is the project's key, which opens the tables too; ``pat`` a user's token, which does not.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.edge_functions import RIVAL
from tests.edge_projects import PROJECT, TYPES, WORKER, Clock, EdgeProject, Heard, claim, claimed
from tests.front_faults import Fault
from wan2gp.supervisor.edge_claims import LOOK_PAST, SHY_MAX_S
from wan2gp.supervisor.edge_counts import BELIEVED_S
from wan2gp.supervisor.edge_debts import REFUSED_S
from wan2gp.supervisor.edge_queue import WEAKER, EdgeQueue
from wan2gp.supervisor.edge_rows import BEATS_AGAIN_S
from wan2gp.supervisor.queue import (
    AccessDenied,
    ClaimedTask,
    Completing,
    FunctionsMissing,
    LeaseBeat,
    QueueRefused,
    QueueUnavailable,
    Settlement,
    Verb,
)

ALL = pytest.mark.parametrize("key", ["service", pytest.param("pat", marks=pytest.mark.long)])
CLAIM = "claim-next-task"
NESTED = "[" * 3000 + "]" * 3000
"""JSON that Postgres stores and Python does not read."""


def claims(edge: EdgeProject) -> int:
    return len(edge.functions.called(CLAIM))


def beats(*tasks: ClaimedTask) -> list[LeaseBeat]:
    return [LeaseBeat(task.id, task.token, 0.5, "step", "half") for task in tasks]


class TestCheck:
    @ALL
    def test_a_good_key_finds_out_whether_it_opens_the_tables(self, edge: EdgeProject, key: str) -> None:
        assert edge.queue(key).rest is (key == "service")
        assert edge.queue(edge.stack.jwt_key).rest

    @pytest.mark.parametrize("name", [CLAIM, "update-task-status", "generate-upload-url", "complete_task"])
    def test_a_project_without_the_functions_is_told_what_to_do(self, edge: EdgeProject, name: str) -> None:
        edge.functions.faults.missing = {name}
        with pytest.raises(FunctionsMissing, match=f"{name}.*wan2gp-ctl db migrate"):
            edge.queue()

    @pytest.mark.parametrize("counts", [True, False])
    def test_nobodys_key_and_the_public_one_are_refused_before_anything_is_claimed(
        self, edge: EdgeProject, counts: bool
    ) -> None:
        task_id = edge.insert()
        edge.functions.faults.missing = set() if counts else {"task-counts"}
        for key in ("pat_nobodys", edge.stack.anon_key):
            with pytest.raises(AccessDenied) as denied:
                edge.queue(key)
            assert key not in str(denied.value) and "personal access token" in str(denied.value)
        assert edge.row(task_id)["status"] == "Queued"

    def test_a_project_that_is_away_is_an_outage(self, edge: EdgeProject) -> None:
        edge.stack.front.down()
        try:
            with pytest.raises(QueueUnavailable):
                edge.queue()
        finally:
            edge.stack.front.up()

    def test_what_is_weaker_is_said(self, edge: EdgeProject) -> None:
        assert len(WEAKER) == 11 and all(sentence == sentence.strip(" .") for sentence in WEAKER)
        queue = edge.queue()
        assert queue.facts() == {"predecessor": True, "system_logs": False}
        assert queue.log(WORKER, [{"message": "a"}]) == 0 and queue.rescue(WORKER) == 0
        assert queue.completing("x", "y", 1.0) == Completing(False, None, False)
        assert not queue.listening and not queue.wait(0.01)


class TestClaiming:
    @ALL
    def test_the_oldest_is_ours_and_running(self, edge: EdgeProject, key: str) -> None:
        first, second = edge.insert(params={"prompt": "ü"}), edge.insert("t2v")
        queue = edge.queue(key)
        task = claimed(queue)
        assert (task.id, task.task_type, task.params, task.attempt) == (first, "comfy", {"prompt": "ü"}, 1)
        assert task.project_id == PROJECT and len(task.lease_id) >= 8
        assert claimed(queue).id == second and claim(queue) is None
        assert edge.statuses(first, second) == ["In Progress"] * 2

    @pytest.mark.parametrize("key", ["service"])
    def test_an_idle_worker_only_counts(self, edge: EdgeProject, key: str) -> None:
        queue = edge.queue(key)
        assert [claim(queue) for _ in range(4)] == [None] * 4
        assert claims(edge) == 1, "the first one, before anything was believed"
        task_id = edge.insert()
        assert claimed(queue).id == task_id

    @pytest.mark.parametrize("key", ["pat"])
    def test_counts_that_lie_cost_two_minutes_and_not_the_queue(self, edge: EdgeProject, key: str) -> None:
        clock = Clock()
        queue = edge.queue(key, clock=clock)
        claim(queue)
        task_id = edge.insert()
        edge.functions.faults.counts_say_nothing = True
        assert claim(queue) is None
        clock.now += BELIEVED_S + 1
        assert claimed(queue).id == task_id

    @pytest.mark.parametrize("key", ["service"])
    def test_without_counts_every_poll_claims_and_they_are_left_alone(self, edge: EdgeProject, key: str) -> None:
        edge.functions.faults.missing = {"task-counts"}
        queue = edge.queue(key)
        task_id = edge.insert()
        assert claimed(queue).id == task_id and claim(queue) is None and claims(edge) == 2
        assert len(edge.stack.front.seen("task-counts")) == 1

    def test_counts_that_fail_do_not_keep_anybody_from_claiming(self, edge: EdgeProject) -> None:
        queue = edge.queue()
        task_id = edge.insert()
        edge.stack.front.faults.add(Fault("task-counts", "status", status=500))
        assert claimed(queue).id == task_id

    @pytest.mark.parametrize("key", ["pat"])
    def test_a_lost_race_is_run_again_at_once(self, edge: EdgeProject, key: str) -> None:
        lost, ready = edge.insert(), edge.insert()
        queue = edge.queue(key)
        edge.functions.faults.lost_races = 1
        assert claimed(queue).id == ready
        assert edge.row(lost)["worker_id"] == RIVAL

    def test_races_that_are_lost_all_the_time_are_run_a_few_times(self, edge: EdgeProject) -> None:
        for _ in range(20):
            edge.insert()
        queue = edge.queue()
        edge.functions.faults.lost_races = 20
        dues = []
        for _ in range(4):
            reply = queue.claim(str(uuid.uuid4()), WORKER, TYPES, 1, 90.0)
            assert not reply.tasks
            dues.append(reply.next_due_s)
        assert claims(edge) == 12
        assert all(due is not None and due < 3 for due in dues[:3]) and dues[3] is None

    @pytest.mark.parametrize("key", ["service"])
    def test_params_that_came_as_a_string_are_what_is_in_it(self, edge: EdgeProject, key: str) -> None:
        edge.insert(params='{"prompt": "a"}')
        edge.insert(params="plain words")
        queue = edge.queue(key)
        assert [claimed(queue).params for _ in range(2)] == [{"prompt": "a"}, "plain words"]

    @pytest.mark.parametrize("key", ["pat"])
    @pytest.mark.parametrize("params", [f'{{"a": {NESTED}}}', f'{{"a": {"9" * 5000}}}'])
    def test_a_row_that_python_cannot_read_is_ours_to_fail(self, edge: EdgeProject, key: str, params: str) -> None:
        queue = edge.queue(key)
        task_id = edge.insert(status="In Progress")
        # Their function holds what Python does not, and the stand-in is Python.
        answer = f'{{"task_id": "{task_id}", "params": {params}, "task_type": "comfy", "project_id": null}}'
        edge.stack.front.faults.add(Fault(CLAIM, "status", status=200, body=answer))
        edge.stack.front.faults.add(Fault("task-counts", "status", status=500, times=None))
        task = claimed(queue)
        assert (task.id, task.task_type, task.params) == (task_id, "comfy", None) and task.unreadable

    @pytest.mark.parametrize("body", ["<html>log in</html>", "[]", '{"task_id": 7}', "", "null"])
    def test_an_answer_that_is_no_task_is_an_outage(self, edge: EdgeProject, body: str) -> None:
        queue = edge.queue()
        edge.insert()
        edge.stack.front.faults.add(Fault(CLAIM, "status", status=200, body=body))
        with pytest.raises(QueueUnavailable, match="no task"):
            claim(queue)

    def test_a_pause_that_was_asked_for_is_kept_by_all_calls_but_not_for_ever(self, edge: EdgeProject) -> None:
        queue = edge.queue()
        task_id = edge.insert()
        fault = Fault(CLAIM, "status", status=429, headers={"Retry-After": "1"}, body="slow down")
        edge.stack.front.faults.add(fault)
        with pytest.raises(QueueUnavailable, match="429"):
            claim(queue)
        assert claimed(queue).id == task_id
        first, second = edge.stack.front.seen(CLAIM, "POST")
        assert second.at - first.at >= 0.9


class TestWhatIsNotForUs:
    @ALL
    @pytest.mark.parametrize("details", [True, False])
    def test_rows_of_other_types_are_put_back_and_what_is_behind_them_is_ours(
        self, edge: EdgeProject, key: str, details: bool
    ) -> None:
        edge.functions.faults.counts_details = details
        foreign = [edge.insert("travel_orchestrator"), edge.insert("magic_edit")]
        ours = edge.insert("comfy")
        queue = edge.queue(key)
        assert claimed(queue).id == ours
        assert edge.statuses(*foreign) == ["Queued"] * 2
        if key == "service":
            assert [edge.row(one)["worker_id"] for one in foreign] == [None] * 2

    @pytest.mark.parametrize("key", ["pat"])
    def test_a_queue_of_nothing_but_others_types_is_not_claimed_in_circles(self, edge: EdgeProject, key: str) -> None:
        edge.functions.faults.counts_details = False
        foreign = [edge.insert("magic_edit") for _ in range(LOOK_PAST + 2)]
        clock, heard = Clock(), Heard()
        queue = edge.queue(key, clock=clock)
        queue.speak(heard)
        per_minute = []
        for _ in range(5):
            before = claims(edge)
            for _ in range(12):
                assert claim(queue) is None
                clock.now += 5.0
            per_minute.append((claims(edge) - before) / (LOOK_PAST + 1))
        assert per_minute[0] <= 4 and per_minute[-1] <= 2, "rounds of looking, twelve polls a minute"
        assert edge.statuses(*foreign) == ["Queued"] * len(foreign)
        assert heard == [("edge.foreign", {"task_type": "magic_edit"})], "said once"
        assert claimed(queue, ("magic_edit",)).id == foreign[0], "as soon as its handler has room"

    def test_counts_that_list_tasks_spare_even_that(self, edge: EdgeProject) -> None:
        queue = edge.queue()
        claim(queue)
        before = claims(edge)
        edge.insert("magic_edit")
        assert [claim(queue) for _ in range(5)] == [None] * 5 and claims(edge) == before

    def test_after_a_while_it_is_looked_again(self, edge: EdgeProject) -> None:
        edge.functions.faults.counts_details = False
        clock = Clock()
        queue = edge.queue(clock=clock)
        foreign = [edge.insert("magic_edit") for _ in range(LOOK_PAST + 1)]
        ours = edge.insert()
        assert claim(queue) is None, "too far behind"
        edge.sql("DELETE FROM tasks WHERE id = %s", foreign[0])
        assert claim(queue) is None, "not yet"
        clock.now += SHY_MAX_S * 2
        assert claimed(queue).id == ours

    @ALL
    def test_what_cannot_be_put_back_now_is_put_back_before_the_next_claim(self, edge: EdgeProject, key: str) -> None:
        edge.functions.faults.counts_details = False
        foreign = edge.insert("magic_edit")
        queue = edge.queue(key)
        away = edge.stack.front.faults.add(
            Fault("update-task-status" if key == "pat" else "rest/v1/tasks", "status", times=None)
        )
        assert claim(queue) is None and edge.row(foreign)["status"] == "In Progress"
        with pytest.raises(QueueUnavailable):
            claim(queue)
        edge.stack.front.faults.remove(away)
        assert claim(queue) is None and edge.row(foreign)["status"] == "Queued"

    def test_a_row_that_another_worker_has_by_now_is_not_put_back(self, edge: EdgeProject) -> None:
        edge.functions.faults.counts_details = False
        foreign = edge.insert("magic_edit")
        queue = edge.queue()
        away = edge.stack.front.faults.add(Fault("rest/v1/tasks", "status", times=None))
        claim(queue)
        edge.stack.front.faults.remove(away)
        edge.sql("UPDATE tasks SET worker_id = %s WHERE id = %s", RIVAL, foreign)
        claim(queue)
        assert (edge.row(foreign)["status"], edge.row(foreign)["worker_id"]) == ("In Progress", RIVAL)

    @pytest.mark.parametrize(("status", "words"), [(401, "does not accept"), (400, None)])
    def test_a_row_is_owed_until_it_is_back_whatever_the_refusal(
        self, edge: EdgeProject, status: int, words: str | None
    ) -> None:
        edge.functions.faults.counts_details = False
        foreign = edge.insert("magic_edit")
        clock = Clock()
        queue = edge.queue("pat", clock=clock)
        edge.functions.faults.before["update-task-status"] = [status] * 2
        assert claim(queue) is None and edge.row(foreign)["status"] == "In Progress"
        if words:
            with pytest.raises(AccessDenied, match=words):
                claim(queue)
        else:
            ours = edge.insert()
            clock.now += 10.0
            assert claimed(queue).id == ours, "one row that is refused stops nobody"
            clock.now += REFUSED_S + 1
            claim(queue)
            clock.now += REFUSED_S + 1
        claim(queue)
        assert edge.row(foreign)["status"] == "Queued"

    def test_refusals_of_every_row_end_the_claims_before_all_are_set_aside(self, edge: EdgeProject) -> None:
        edge.functions.faults.counts_details = False
        foreign = [edge.insert("magic_edit") for _ in range(20)]
        clock = Clock()
        queue = edge.queue("pat", clock=clock)
        edge.functions.faults.before["update-task-status"] = [400] * 500
        claim(queue)
        for _ in range(5):
            clock.now += SHY_MAX_S * 2
            with pytest.raises(QueueRefused):
                claim(queue)
        assert edge.statuses(*foreign).count("In Progress") == LOOK_PAST + 1

    @ALL
    def test_what_is_owed_goes_back_when_the_worker_ends(self, edge: EdgeProject, key: str) -> None:
        edge.functions.faults.counts_details = False
        foreign = edge.insert("magic_edit")
        queue = edge.queue(key)
        where = "update-task-status" if key == "pat" else "rest/v1/tasks"
        edge.stack.front.faults.add(Fault(where, "status", status=401))
        claim(queue)
        assert edge.row(foreign)["status"] == "In Progress"
        queue.close()
        assert edge.row(foreign)["status"] == "Queued"


class TestLostClaims:
    def lose(self, edge: EdgeProject, how: str) -> None:
        if how == "cut":
            edge.stack.front.faults.add(Fault(CLAIM, "cut_after", method="POST"))
        elif how == "500":
            edge.functions.faults.after[CLAIM] = [500]
        else:
            edge.stack.front.faults.add(Fault(CLAIM, "cut_answer", method="POST", after_bytes=5))

    @pytest.mark.parametrize("how", ["cut", "500", "half"])
    def test_a_service_key_finds_the_row_and_goes_on_with_it(self, edge: EdgeProject, how: str) -> None:
        lost, other = edge.insert(params={"a": 1}), edge.insert()
        queue, heard = edge.queue(), Heard()
        queue.speak(heard)
        self.lose(edge, how)
        with pytest.raises(QueueUnavailable):
            claim(queue)
        task = claimed(queue)
        assert (task.id, task.attempt, task.params) == (lost, 1, {"a": 1})
        assert heard == [("edge.adopted", {"task_id": lost})]
        assert claimed(queue).id == other and claim(queue) is None

    def test_a_lost_row_of_another_type_goes_back(self, edge: EdgeProject) -> None:
        lost, ours = edge.insert("magic_edit"), edge.insert()
        queue = edge.queue()
        self.lose(edge, "cut")
        with pytest.raises(QueueUnavailable):
            claim(queue)
        assert claimed(queue).id == ours
        assert (edge.row(lost)["status"], edge.row(lost)["worker_id"]) == ("Queued", None)

    def test_a_lost_row_that_python_cannot_read_is_ours_to_fail(self, edge: EdgeProject) -> None:
        lost = edge.insert()
        queue = edge.queue()
        self.lose(edge, "cut")
        with pytest.raises(QueueUnavailable):
            claim(queue)
        edge.sql("UPDATE tasks SET params = %s::jsonb WHERE id = %s", f'{{"a": {NESTED}}}', lost)
        task = claimed(queue)
        assert task.id == lost and task.params is None and task.unreadable

    @pytest.mark.parametrize("how", ["cut", "500"])
    def test_with_a_personal_token_it_stays_behind_and_the_next_one_is_claimed(
        self, edge: EdgeProject, how: str
    ) -> None:
        lost, other = edge.insert(), edge.insert()
        queue = edge.queue("pat")
        self.lose(edge, how)
        with pytest.raises(QueueUnavailable):
            claim(queue)
        assert claimed(queue).id == other
        assert edge.row(lost)["status"] == "In Progress", "nobody can tell whose it is"

    def test_the_next_life_puts_back_what_the_last_one_held_and_nothing_else(self, edge: EdgeProject) -> None:
        queue = edge.queue()
        edge.insert()
        kept = claimed(queue)
        given: dict[str, Any] = {"status": "In Progress", "worker_id": WORKER}
        mine = edge.insert(**given)
        parent = edge.insert("travel_orchestrator", **given)
        others = edge.insert(status="In Progress", worker_id=RIVAL)
        done = edge.insert(status="Complete", worker_id=WORKER)
        again = edge.queue()
        assert again.reclaim_own(WORKER, [kept.token]) == (mine,)
        statuses = edge.statuses(kept.id, mine, parent, others, done)
        assert statuses == ["In Progress", "Queued", "In Progress", "In Progress", "Complete"]
        assert again.reclaim_own(WORKER, [kept.token]) == ()
        assert edge.queue("pat").reclaim_own(WORKER) == ()


class TestHeartbeats:
    def test_what_was_cancelled_or_taken_is_told_apart(self, edge: EdgeProject) -> None:
        queue = edge.queue()
        for _ in range(5):
            edge.insert()
        tasks = [claimed(queue) for _ in range(5)]
        changes = ("worker_id = 'gpu-rival'", "status = 'Cancelled'", "status = 'Queued', worker_id = NULL")
        for task, change in zip(tasks, changes, strict=False):
            edge.sql(f"UPDATE tasks SET {change} WHERE id = %s", task.id)
        edge.sql("DELETE FROM tasks WHERE id = %s", tasks[3].id)
        reply = queue.heartbeat(WORKER, beats(*tasks), 90.0, {})
        assert reply.cancelled == (tasks[1].id,)
        assert set(reply.lost) == {tasks[0].id, tasks[2].id, tasks[3].id}

    def test_the_pod_scaler_sees_us_and_keeps_its_own_word_on_us(self, edge: EdgeProject) -> None:
        queue = edge.queue()
        edge.sql("INSERT INTO workers (id, instance_type, status) VALUES (%s, 'RTX', 'spawning')", WORKER)
        metadata = {"vram_total_mb": 24000, "vram_used_mb": 100, "state": "running"}
        queue.heartbeat(WORKER, [], 90.0, metadata)
        (row,) = edge.sql("SELECT * FROM workers")
        assert (row["status"], row["metadata"]["vram_total_mb"]) == ("active", 24000) and row["last_heartbeat"]
        edge.sql("UPDATE workers SET status = 'terminating', last_heartbeat = NULL")
        queue.heartbeat(WORKER, [], 90.0, metadata)
        (row,) = edge.sql("SELECT * FROM workers")
        assert row["status"] == "terminating" and row["last_heartbeat"]
        edge.sql("UPDATE workers SET last_heartbeat = NULL")
        queue.heartbeat(WORKER, [], 90.0, {**metadata, "state": "stopped"})
        assert edge.sql("SELECT last_heartbeat FROM workers") == [{"last_heartbeat": None}]

    def test_a_row_says_that_it_is_worked_at_for_whoever_queues_stale_ones_again(self, edge: EdgeProject) -> None:
        clock = Clock()
        queue = edge.queue(clock=clock)
        edge.insert()
        task = claimed(queue)
        for seconds, touched in ((0, True), (60, False), (600, True)):
            clock.now += seconds
            edge.sql("UPDATE tasks SET updated_at = '2020-01-01'")
            queue.heartbeat(WORKER, beats(task), 90.0, {})
            assert (edge.row(task.id)["updated_at"].year > 2020) is touched

    def test_a_project_without_the_heartbeat_function_is_asked_for_it_every_few_minutes(
        self, edge: EdgeProject
    ) -> None:
        clock = Clock()
        queue = edge.queue(clock=clock)
        rpc = "rpc/func_worker_heartbeat_with_logs"
        body = {"code": "42501", "message": "permission denied"}
        away = edge.stack.front.faults.add(Fault(rpc, "status", status=403, body=body, times=None))
        for _ in range(3):
            queue.heartbeat(WORKER, [], 90.0, {})
        assert len(edge.stack.front.seen(rpc)) == 1 and not edge.sql("SELECT id FROM workers")
        edge.stack.front.faults.remove(away)
        clock.now += BEATS_AGAIN_S + 1
        queue.heartbeat(WORKER, [], 90.0, {})
        assert edge.sql("SELECT id FROM workers") == [{"id": WORKER}]

    def test_a_key_that_is_refused_for_a_moment_ends_no_heartbeats(self, edge: EdgeProject) -> None:
        queue = edge.queue()
        edge.insert()
        task = claimed(queue)
        edge.stack.front.faults.add(Fault("rpc/func_worker_heartbeat_with_logs", "status", status=401, times=2))
        assert not queue.heartbeat(WORKER, beats(task), 90.0, {}).lost
        with pytest.raises(AccessDenied):
            queue.heartbeat(WORKER, [], 90.0, {})
        queue.heartbeat(WORKER, [], 90.0, {})
        assert edge.sql("SELECT id FROM workers") == [{"id": WORKER}]

    def test_a_cancellation_is_told_although_the_pod_scaler_cannot_be(self, edge: EdgeProject) -> None:
        queue = edge.queue()
        ids = [edge.insert(), edge.insert()]
        tasks = [claimed(queue) for _ in ids]
        edge.sql("UPDATE tasks SET status = 'Cancelled' WHERE id = %s", ids[0])
        edge.stack.front.faults.add(Fault("rpc/func_worker_heartbeat_with_logs", "status", times=None))
        edge.stack.front.faults.add(Fault("rest/v1/tasks", "status", method="PATCH", times=None))
        assert queue.heartbeat(WORKER, beats(*tasks), 90.0, {}).cancelled == (ids[0],)

    def test_a_row_without_a_name_is_not_taken_for_what_a_service_key_claimed(self, edge: EdgeProject) -> None:
        queue = edge.queue()
        edge.insert()
        task = claimed(queue)
        edge.sql("UPDATE tasks SET worker_id = NULL WHERE id = %s", task.id)
        assert queue.heartbeat(WORKER, beats(task), 90.0, {}).lost == (task.id,)
        before = edge.row(task.id)
        for verb in (Verb.FAIL, Verb.RELEASE):
            assert not queue.finish(Settlement(task.id, task.token, verb, error_message="a.b: c")).accepted
        assert edge.row(task.id) == before

    def test_what_a_token_claimed_is_ours_too_after_the_key_was_exchanged(self, edge: EdgeProject) -> None:
        task_id = edge.insert()
        task = claimed(edge.queue("pat"))
        queue = edge.queue()
        assert not queue.heartbeat(WORKER, beats(task), 90.0, {}).lost
        assert queue.finish(Settlement(task.id, task.token, Verb.FAIL, error_message="a.b: c")).accepted
        assert edge.row(task_id)["status"] == "Failed"

    def test_an_outage_is_told_and_endangers_nothing(self, edge: EdgeProject) -> None:
        queue = edge.queue()
        edge.insert()
        task = claimed(queue)
        edge.stack.front.down()
        try:
            with pytest.raises(QueueUnavailable) as away:
                queue.heartbeat(WORKER, beats(task), 90.0, {})
        finally:
            edge.stack.front.up()
        assert away.value.server_down
        assert not queue.heartbeat(WORKER, beats(task), 90.0, {}).lost

    def test_without_the_table_the_counts_tell_when_a_task_is_missing_twice(self, edge: EdgeProject) -> None:
        clock = Clock()
        queue = edge.queue("pat", clock=clock)
        task_id = edge.insert()
        task = claimed(queue)

        def lost() -> bool:
            clock.now += 20
            return queue.heartbeat(WORKER, beats(task), 90.0, {}).lost == (task_id,)

        assert not lost()
        edge.sql("UPDATE tasks SET status = 'Cancelled' WHERE id = %s", task_id)
        assert [lost(), lost()] == [False, True]

    def test_counts_that_never_listed_it_or_list_nothing_prove_nothing(self, edge: EdgeProject) -> None:
        clock = Clock()
        queue = edge.queue("pat", clock=clock)
        task_id = edge.insert()
        task = claimed(queue)
        edge.sql("UPDATE tasks SET project_id = NULL WHERE id = %s", task_id)
        for details in (True, True, True, False, False):
            edge.functions.faults.counts_details = details
            clock.now += 20
            assert not queue.heartbeat(WORKER, beats(task), 90.0, {}).lost


class TestPeople:
    def test_a_service_key_shows_cancels_and_queues_again(self, edge: EdgeProject) -> None:
        queue = edge.queue()
        task_id = edge.insert(params={"big": "x" * 1000})
        task = claimed(queue)
        queue.heartbeat(WORKER, beats(task), 90.0, {})
        row = queue.task(task_id)
        assert row is not None and (row["status"], row["progress"], row["detail"]) == ("In Progress", 0.5, "half")
        (listed,) = queue.tasks(status="In Progress", task_type="comfy")
        assert listed["id"] == task_id and "params" not in listed
        assert queue.tasks(status="Queued") == () and queue.task(str(uuid.uuid4())) is None
        assert [queue.cancel(task_id), queue.cancel(task_id)] == ["In Progress", "Cancelled"]
        assert queue.heartbeat(WORKER, beats(task), 90.0, {}).cancelled == (task_id,)
        assert [queue.retry(task_id), queue.retry(task_id)] == ["Cancelled", "Queued"]
        assert queue.cancel(str(uuid.uuid4())) is None

    def test_a_personal_token_is_told_what_to_use_instead(self, edge: EdgeProject) -> None:
        queue = edge.queue("pat")
        task_id = edge.insert()
        for ask in (queue.cancel, queue.retry, queue.task):
            with pytest.raises(QueueRefused, match="the edge backend cannot .* use "):
                ask(task_id)
        with pytest.raises(QueueRefused, match="personal access token"):
            queue.tasks()

    @pytest.mark.parametrize("key", ["pat"])
    def test_the_numbers_are_those_of_the_counts(self, edge: EdgeProject, key: str) -> None:
        queue = edge.queue(key)
        for task_type in ("comfy", "t2v", "t2v"):
            edge.insert(task_type)
        claimed(queue)
        edge.sql("UPDATE tasks SET created_at = '2025-01-01'")
        numbers = queue.stats()
        assert numbers["counts"] == [
            {"task_type": "comfy", "status": "In Progress", "count": 1},
            {"task_type": "t2v", "status": "Queued", "count": 2},
        ]
        assert numbers["oldest_queued_s"]["t2v"] > 3600
        edge.functions.faults.missing = {"task-counts"}
        assert edge.queue(key).stats()["counts"] == []

    def test_workers_are_shown_with_their_silence(self, edge: EdgeProject) -> None:
        queue = edge.queue()
        queue.heartbeat(WORKER, [], 90.0, {})
        (worker,) = queue.stats()["workers"]
        assert worker["id"] == WORKER and 0 <= worker["silent_s"] < 60

    @ALL
    def test_a_task_of_a_project_is_created_once_although_the_answer_is_lost(self, edge: EdgeProject, key: str) -> None:
        queue = edge.queue(key)
        assert edge.row(queue.enqueue("t2v", {"project_id": PROJECT}))["status"] == "Queued"
        edge.stack.front.faults.add(Fault("create-task", "cut_after"))
        if key == "service":
            queue.enqueue("t2v", {"project_id": PROJECT})
        else:
            with pytest.raises(QueueRefused, match="may be queued or not"):
                queue.enqueue("t2v", {"project_id": PROJECT})
        assert len(edge.sql("SELECT id FROM tasks")) == 2

    def test_a_task_of_no_project_needs_the_table(self, edge: EdgeProject) -> None:
        before = edge.insert()
        row = edge.row(edge.queue().enqueue("t2v", {"a": 1}, depends_on=[before]))
        assert (row["status"], row["params"], str(row["dependant_on"])) == ("Queued", {"a": 1}, before)
        with pytest.raises(QueueRefused, match="project_id"):
            edge.queue("pat").enqueue("t2v", {"a": 1})
        with pytest.raises(QueueRefused, match="priority"):
            edge.queue().enqueue("t2v", {}, priority=5)
        with pytest.raises(QueueRefused, match="does not|refused|Project"):
            edge.queue().enqueue("t2v", {"project_id": str(uuid.uuid4())})

    def test_what_it_cannot_do_at_all_it_refuses(self, edge: EdgeProject) -> None:
        queue = edge.queue()
        with pytest.raises(QueueRefused, match="wan2gp-ctl db migrate"):
            queue.spawn("x", "y", [])
        with pytest.raises(QueueRefused, match="wan2gp-ctl db migrate"):
            queue.event("x", "y", {})


class TestSecrets:
    def test_no_message_repeats_the_key(self, edge: EdgeProject) -> None:
        queue = edge.queue()
        edge.insert()
        for status in (400, 401, 403, 404, 500, 503):
            body = json.dumps({"error": f"bad token {edge.stack.key}"})
            edge.stack.front.faults.add(Fault(CLAIM, "status", status=status, body=body))
            with pytest.raises(Exception) as failed:
                claim(queue)
            assert edge.stack.key not in repr(failed.value) + str(failed.value)

    def test_a_settlement_of_nobody_we_know_is_told_that_its_row_is_gone(self, edge: EdgeProject) -> None:
        gone = str(uuid.uuid4())
        for key in ("service", "pat"):
            queue: EdgeQueue = edge.queue(key)
            reply = queue.finish(Settlement(gone, f"{gone}.x", Verb.FAIL, error_message="a.b: c"))
            assert (reply.accepted, reply.status) == (False, None)
