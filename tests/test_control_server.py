"""The control socket over a real ipc socket: hostile callers, slow databases, and faults of our own."""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import zmq

from tests.control_doubles import PaperSupervisor, paper_supervisor
from wan2gp import control
from wan2gp.control import ControlRefused
from wan2gp.control_client import ControlClient, ControlSilent
from wan2gp.supervisor import control_desk, control_server


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[PaperSupervisor]:
    with tempfile.TemporaryDirectory(prefix="w2") as run_dir, paper_supervisor(tmp_path, Path(run_dir)) as running:
        yield running


@pytest.fixture
def client(supervisor: PaperSupervisor) -> Iterator[ControlClient]:
    with ControlClient(supervisor.endpoint, supervisor.token) as connected:
        yield connected


def refusal(client: ControlClient, request: control.AnyRequest) -> ControlRefused:
    with pytest.raises(ControlRefused) as caught:
        client.call(request, control.Reply)
    assert caught.value.code in control.REFUSALS
    return caught.value


def raw(supervisor: PaperSupervisor, *frames: bytes) -> control.AnyReply:
    """Send frames as they are; the reply to the call id ``1``."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(supervisor.endpoint)
        socket.send_multipart([b"1", *frames])
        assert socket.poll(10_000), "no answer"
        call_id, reply = socket.recv_multipart()
    assert call_id == b"1"
    return control.decode_reply(reply)


def test_a_task_goes_in_and_its_story_comes_out(supervisor: PaperSupervisor, client: ControlClient) -> None:
    task_id = client.call(control.SubmitRequest("comfy", {"a": [1, "ü"]}, 7), control.SubmitReply).task_id
    row = client.call(control.TaskRequest(task_id), control.TaskReply).task
    assert (row.id, row.status, row.priority, row.params) == (task_id, "Queued", 7, {"a": [1, "ü"]})
    assert [event.name for event in row.events] == ["queued"]
    assert row.more == {"open_dependencies": 0}


def test_a_caller_without_the_token_learns_and_changes_nothing(supervisor: PaperSupervisor) -> None:
    with ControlClient(supervisor.endpoint, "0" * 64) as stranger:
        assert refusal(stranger, control.StatusRequest()).code == "bad_token"
        assert refusal(stranger, control.SubmitRequest("comfy", {})).code == "bad_token"
    assert supervisor.queue.rows == {}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"op":"shell"}', b'{"op":"task"}', b'{"op":"status","x":1}', b"\xff\xfe", b"[" * 100_000],
)
def test_a_frame_that_is_no_request_is_answered_with_a_refusal(supervisor: PaperSupervisor, body: bytes) -> None:
    reply = raw(supervisor, supervisor.token.encode(), body)
    assert isinstance(reply, control.Refused) and reply.code == "bad_request"
    assert supervisor.faults == []


def test_too_few_and_too_many_frames_are_refused(supervisor: PaperSupervisor) -> None:
    token = supervisor.token.encode()
    for frames in ([], [token], [token, b'{"op":"status"}', b""]):
        reply = raw(supervisor, *frames)
        assert isinstance(reply, control.Refused) and reply.code == "bad_request"


def test_an_oversized_request_is_answered_and_the_socket_lives_on(
    supervisor: PaperSupervisor, client: ControlClient
) -> None:
    reply = raw(supervisor, supervisor.token.encode(), b" " * (control.MAX_REQUEST_BYTES + 1))
    assert isinstance(reply, control.Refused) and reply.code == "too_large"
    assert client.call(control.StatusRequest(), control.StatusReply).worker.worker == "w1"


def test_the_client_refuses_what_would_be_too_large_before_it_sends(client: ControlClient) -> None:
    request = control.SubmitRequest("comfy", {"graph": "x" * control.MAX_REQUEST_BYTES})
    assert refusal(client, request).code == "too_large"


def test_half_a_surrogate_pair_is_refused_before_it_is_sent(client: ControlClient) -> None:
    assert refusal(client, control.SubmitRequest("comfy", {"text": "\ud800"})).code == "bad_request"


def test_a_seed_larger_than_64_bits_arrives_as_it_was(client: ControlClient) -> None:
    task_id = client.call(control.SubmitRequest("comfy", {"seed": 2**70}), control.SubmitReply).task_id
    assert client.call(control.TaskRequest(task_id), control.TaskReply).task.params == {"seed": 2**70}


def test_a_row_that_cannot_be_written_as_json_refuses_that_request_alone(
    supervisor: PaperSupervisor, client: ControlClient
) -> None:
    task_id = supervisor.queue.enqueue("comfy", {"text": "\ud800"})
    for _ in range(control_server.WORKERS + 1):
        assert refusal(client, control.TaskRequest(task_id)).code in ("bad_request", "internal")
    assert client.call(control.StatusRequest(), control.StatusReply).worker.worker == "w1"


def test_a_stuck_database_makes_only_its_own_request_slow(supervisor: PaperSupervisor, client: ControlClient) -> None:
    supervisor.queue.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(_ask_in_own_client, supervisor, control.TaskRequest(str(uuid.uuid4())))
        client.call(control.DrainRequest(), control.DoneReply)
        assert supervisor.worker.state == "draining"
        assert not stuck.done()
        supervisor.queue.gate.set()
        with pytest.raises(ControlRefused, match="no task has the id"):
            stuck.result()


def _ask_in_own_client(supervisor: PaperSupervisor, request: control.AnyRequest) -> control.Reply:
    with ControlClient(supervisor.endpoint, supervisor.token) as client:
        return client.call(request, control.Reply, timeout_s=60)


def test_status_comes_without_its_numbers_when_the_database_hangs(
    supervisor: PaperSupervisor, client: ControlClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_desk, "CENSUS_S", 0.05)
    supervisor.queue.gate.clear()
    reply = client.call(control.StatusRequest(), control.StatusReply)
    assert reply.worker.handlers[0].name == "comfy"
    assert not reply.worker.database_ok and reply.queue.error and "no answer" in reply.queue.error


def test_status_says_why_when_the_database_is_down(supervisor: PaperSupervisor, client: ControlClient) -> None:
    supervisor.queue.down = True
    reply = client.call(control.StatusRequest(), control.StatusReply)
    assert reply.queue.error == "connection refused" and not reply.worker.database_ok
    assert refusal(client, control.TasksRequest()).code == "database_down"


def test_many_who_ask_a_hanging_database_for_its_numbers_cause_one_query(supervisor: PaperSupervisor) -> None:
    supervisor.queue.gate.clear()
    with ThreadPoolExecutor(control_server.WORKERS) as pool:
        asked = [pool.submit(_ask_in_own_client, supervisor, control.StatsRequest()) for _ in range(4)]
        _until(lambda: supervisor.queue.stats_calls > 0)
        assert supervisor.queue.stats_calls == 1
        supervisor.queue.gate.set()
        assert all(isinstance(each.result(), control.StatsReply) for each in asked)


def _until(condition) -> None:  # type: ignore[no-untyped-def]
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came true")


def test_a_fault_of_ours_is_told_to_the_log_and_the_next_request_works(
    supervisor: PaperSupervisor, client: ControlClient
) -> None:
    supervisor.worker.fault = ZeroDivisionError("secret detail")
    for _ in range(control_server.WORKERS + 1):
        refused = refusal(client, control.StatusRequest())
        assert refused.code == "internal" and "secret detail" not in refused.message
    assert {type(fault) for fault in supervisor.faults} == {ZeroDivisionError}
    supervisor.worker.fault = None
    client.call(control.StatusRequest(), control.StatusReply)


def test_a_flood_is_refused_as_busy_and_the_admitted_are_answered(supervisor: PaperSupervisor) -> None:
    supervisor.queue.gate.clear()
    sent = control_server.PENDING_MAX * 2
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(supervisor.endpoint)
        body = control.encode(control.TasksRequest())
        for number in range(sent):
            socket.send_multipart([str(number).encode(), supervisor.token.encode(), body])
        assert socket.poll(10_000), "nobody was refused"
        first = control.decode_reply(socket.recv_multipart()[1])
        assert isinstance(first, control.Refused) and first.code == "busy"
        supervisor.queue.gate.set()
        replies = [first]
        while len(replies) < sent and socket.poll(10_000):
            replies.append(control.decode_reply(socket.recv_multipart()[1]))
    answered = [reply for reply in replies if isinstance(reply, control.TasksReply)]
    assert len(replies) == sent and len(answered) >= control_server.PENDING_MAX


def test_a_caller_who_left_before_its_answer_is_forgotten(supervisor: PaperSupervisor, client: ControlClient) -> None:
    supervisor.queue.gate.clear()
    with ControlClient(supervisor.endpoint, supervisor.token) as impatient, pytest.raises(ControlSilent):
        impatient.call(control.TasksRequest(), control.TasksReply, timeout_s=0.2)
    supervisor.queue.gate.set()
    client.call(control.TasksRequest(), control.TasksReply)
    assert supervisor.faults == []


def test_the_late_answer_to_a_call_that_was_given_up_is_not_taken_for_the_next(
    supervisor: PaperSupervisor, client: ControlClient
) -> None:
    supervisor.queue.gate.clear()
    with pytest.raises(ControlSilent):
        client.call(control.TasksRequest(), control.TasksReply, timeout_s=0.1)
    supervisor.queue.gate.set()
    assert client.call(control.LogsRequest(), control.LogsReply).worker_log.endswith("worker.log")


def test_stopping_does_not_wait_for_a_query_that_never_returns(supervisor: PaperSupervisor) -> None:
    supervisor.queue.gate.clear()
    with ControlClient(supervisor.endpoint, supervisor.token) as client, pytest.raises(ControlSilent):
        client.call(control.TasksRequest(), control.TasksReply, timeout_s=0.2)
    stopping = threading.Thread(target=supervisor.server.stop)
    stopping.start()
    stopping.join(30)
    assert not stopping.is_alive()


def test_a_queued_type_that_no_handler_takes_is_shown_as_unclaimable_here(
    supervisor: PaperSupervisor, client: ControlClient
) -> None:
    supervisor.queue.enqueue("comfy", {})
    supervisor.queue.enqueue("comfi", {})
    found = client.call(control.StatusRequest(), control.StatusReply).worker.unclaimable
    assert [(item.task_type, item.count) for item in found] == [("comfi", 1)]
    assert "no handler of this worker" in found[0].reason


def test_cancelling_a_running_task_tells_its_handler_and_a_finished_one_is_left_alone(
    supervisor: PaperSupervisor, client: ControlClient
) -> None:
    task_id = supervisor.queue.enqueue("comfy", {})
    supervisor.queue.rows[task_id]["status"] = "In Progress"
    supervisor.worker.running = [{"task_id": task_id, "task_type": "comfy", "handler": "comfy", "seconds": 1}]
    reply = client.call(control.CancelRequest(task_id), control.ChangeReply)
    assert reply.before == "In Progress" and reply.running_here and supervisor.worker.told == [task_id]
    again = refusal(client, control.CancelRequest(task_id))
    assert again.code == "wrong_status" and "already Cancelled" in again.message


def test_only_a_finished_task_is_retried(supervisor: PaperSupervisor, client: ControlClient) -> None:
    task_id = supervisor.queue.enqueue("comfy", {})
    assert refusal(client, control.RetryRequest(task_id)).code == "wrong_status"
    supervisor.queue.finish(task_id, "Failed")
    assert client.call(control.RetryRequest(task_id), control.ChangeReply).before == "Failed"
    assert supervisor.queue.rows[task_id]["status"] == "Queued"


@pytest.mark.parametrize("task_id", ["", "abc", "' OR 1=1", str(uuid.UUID(int=7))])
def test_an_unknown_id_is_one_sentence(client: ControlClient, task_id: str) -> None:
    for request in (
        control.TaskRequest(task_id),
        control.ProgressRequest(task_id),
        control.CancelRequest(task_id),
        control.RetryRequest(task_id),
    ):
        refused = refusal(client, request)
        assert refused.code == "unknown_task" and f"no task has the id {task_id}" in refused.message


def test_the_progress_of_a_task_that_runs_here_needs_no_database(
    supervisor: PaperSupervisor, client: ControlClient
) -> None:
    task_id = supervisor.queue.enqueue("comfy", {})
    running = {"task_id": task_id, "task_type": "comfy", "handler": "comfy", "fraction": 0.5, "phase": "step"}
    supervisor.worker.running = [running]
    supervisor.queue.down = True
    reply = client.call(control.ProgressRequest(task_id), control.ProgressReply)
    assert (reply.status, reply.fraction, reply.phase) == ("In Progress", 0.5, "step")


def test_a_status_may_be_typed_in_any_case_and_a_wrong_one_lists_the_right_ones(
    supervisor: PaperSupervisor, client: ControlClient
) -> None:
    supervisor.queue.enqueue("comfy", {})
    assert len(client.call(control.TasksRequest("QUEUED"), control.TasksReply).tasks) == 1
    assert client.call(control.TasksRequest("in-progress"), control.TasksReply).tasks == ()
    assert "Queued, In Progress, Complete, Failed, Cancelled" in refusal(client, control.TasksRequest("done")).message


def test_an_unknown_handler_is_refused_in_the_workers_words(client: ControlClient) -> None:
    assert client.call(control.RestartRequest("comfy"), control.DoneReply).message == "comfy is being replaced"
    assert "this worker has comfy" in refusal(client, control.RestartRequest("comfi")).message


def test_an_older_client_reads_a_newer_supervisors_answer() -> None:
    newer = msgspec.json.encode({"reply": "done", "message": "x", "since": "later"})
    assert control.decode_reply(newer) == control.DoneReply("x")
