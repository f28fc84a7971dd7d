"""Out of memory and broken GPUs: what one task is tried again for, and what is no task's fault."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.comfy_jobs import fault, picture
from tests.conftest_comfy import FAULTS
from tests.conftest_db import PgServer
from tests.conftest_worker import Row, Worker, eventually
from tests.shared_worker import shared_worker
from wan2gp.protocol import Cancelled, Failed
from wan2gp.supervisor.queue import ClaimedTask, Verb
from wan2gp.supervisor.running import RETRY_FIRST_S, RETRY_MAX_S, Running, Why, backoff_s


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer) -> Iterator[Worker]:
    place = tmp_path_factory.mktemp("blame")
    with shared_worker(place, _pg_session, "--poll-interval", "1", WAN2GP_ALLOW_PRIVATE_URLS="1") as started:
        yield started


@pytest.fixture
def hold(worker: Worker) -> Iterator[Callable[[str], None]]:
    """Keeps the glutton's next process from starting, or kills it; over at the end."""
    file = worker.data_dir / "glutton-hold"

    def write(text: str) -> None:
        worker.ended(worker.insert("glutton", {"times": 0}))  # there is a process, which must not be held
        file.with_suffix(".new").write_text(text)
        file.with_suffix(".new").rename(file)

    yield write
    file.unlink(missing_ok=True)


def runs(worker: Worker, task: str) -> list[tuple[str, str]]:
    """(pid, work directory) of every run that the glutton made of a task."""
    file = worker.data_dir / f"glutton-{task}"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def again(worker: Worker, task: str) -> Row:
    """The row once its first run is over and the fresh process has not begun."""
    eventually("it is to run again", lambda: f"Task {task} runs once more" in worker.log)
    return worker.row(task)


# -- out of memory -----------------------------------------------------------------------------------------------------


def test_a_task_that_ran_out_of_memory_succeeds_in_a_fresh_process_within_the_same_attempt(worker: Worker) -> None:
    task = worker.insert("glutton")
    row = worker.ended(task)
    assert (row["status"], row["attempts"], row["error_message"]) == ("Complete", 1, None)
    (first, old), (second, new) = runs(worker, task)
    assert first != second and row["result_data"]["pid"] == int(second)
    assert row["result_data"]["found"] == []  # nothing of the first try lay in its way
    (warning,) = row["result_data"]["warnings"]
    assert "fresh process" in warning and "Tried to allocate 80.00 GiB" in warning
    assert [event["name"] for event in worker.events(task)].count("claimed") == 1
    eventually("both directories are gone", lambda: not Path(old).exists() and not Path(new).exists())


def test_a_task_too_large_for_a_fresh_process_too_fails_with_advice_and_the_next_one_runs(worker: Worker) -> None:
    task, after = worker.insert("glutton", {"times": 99}, priority=1), worker.insert("glutton", {"times": 0})
    row = worker.ended(task)
    assert (row["status"], row["attempts"]) == ("Failed", 1)
    assert row["error_message"].startswith("engine.out_of_memory: ")
    assert "in a fresh process too, so it needs smaller inputs or a larger GPU" in row["error_message"]
    (cause,) = row["result_data"]["attempts"]
    assert cause["first_try"]["code"] == cause["code"] == "engine.out_of_memory"
    assert len(runs(worker, task)) == 2
    done = worker.ended(after)
    assert done["status"] == "Complete" and str(done["result_data"]["pid"]) not in dict(runs(worker, task))


class _Counted(http.server.BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"input")

    def log_message(self, format: str, *args: object) -> None:
        """The terminal is pytest's."""


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """A URL, and what was asked of it."""
    handler = type("_Handler", (_Counted,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/in.txt", handler.asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("move", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_inputs_of_a_task_that_ran_out_of_memory_are_there_the_second_time(
    worker: Worker, asked: tuple[str, list[str]], move: bool
) -> None:
    """They are not downloaded twice, unless the first run has moved them away."""
    url, requests = asked
    row = worker.ended(worker.insert("glutton", {"url": url, "move": move}))
    assert (row["status"], row["attempts"]) == ("Complete", 1)
    assert Path(row["output_location"]).read_text() == "input"
    assert len(requests) == (2 if move else 1)


def test_a_cancellation_between_the_two_tries_is_final(worker: Worker, hold: Callable[[str], None]) -> None:
    hold("wait")
    task = worker.insert("glutton")
    row = again(worker, task)
    assert (row["status"], row["attempts"]) == ("In Progress", 1)
    assert worker.ctl("cancel", task).returncode == 0
    eventually("it is dropped", lambda: f"Task {task} cancelled" in worker.log)
    (worker.data_dir / "glutton-hold").unlink()
    assert worker.ended(worker.insert("glutton", {"times": 0}))["status"] == "Complete"
    assert worker.row(task)["status"] == "Cancelled" and len(runs(worker, task)) == 1


@pytest.mark.long
def test_a_lease_lost_between_the_two_tries_ends_the_work(worker: Worker, hold: Callable[[str], None]) -> None:
    hold("wait")
    task = worker.insert("glutton")
    again(worker, task)
    worker.sql("UPDATE task_leases SET token = 'of somebody else' WHERE task_id = %s", task)
    eventually("it is dropped", lambda: f"Task {task} is not ours any more" in worker.log)
    (worker.data_dir / "glutton-hold").unlink()
    assert worker.ended(worker.insert("glutton", {"times": 0}))["status"] == "Complete"
    assert len(runs(worker, task)) == 1
    worker.sql("UPDATE tasks SET status = 'Cancelled' WHERE id = %s", task)


@pytest.mark.long
def test_a_draining_worker_still_gives_the_second_try(worker: Worker, hold: Callable[[str], None]) -> None:
    hold("wait")
    task = worker.insert("glutton")
    again(worker, task)
    assert worker.ctl("drain").returncode == 0
    (worker.data_dir / "glutton-hold").unlink()
    assert worker.ended(task)["status"] == "Complete"
    assert worker.ctl("resume").returncode == 0


@pytest.mark.long
def test_a_worker_that_stops_between_the_two_tries_hands_the_task_back_uncounted(
    start_worker: Callable[..., Worker],
) -> None:
    worker = start_worker()
    worker.ended(worker.insert("glutton", {"times": 0}))
    (worker.data_dir / "glutton-hold").write_text("wait")
    task = worker.insert("glutton")
    again(worker, task)
    assert worker.stop() == 0
    row = worker.row(task)
    assert (row["status"], row["attempts"]) == ("Queued", 0)
    cause = worker.events(task)[-1]["detail"]["cause"]
    assert cause["kind"] == "released" and cause["first_try"]["code"] == "engine.out_of_memory"


@pytest.mark.long
def test_a_fresh_process_that_cannot_start_costs_the_waiting_task_nothing(
    worker: Worker, hold: Callable[[str], None]
) -> None:
    hold("die")
    task = worker.insert("glutton")
    eventually("the handler is broken", lambda: "Handler glutton is broken after 5 deaths" in worker.log)
    row = worker.row(task)
    assert (row["status"], row["attempts"]) == ("Queued", 0)
    assert row["error_message"].startswith("handler.start_failed: the glutton handler cannot start: killed by SIGKILL")
    (worker.data_dir / "glutton-hold").unlink()  # it half-opens soon
    row = worker.ended(task)
    assert (row["status"], row["attempts"]) == ("Complete", 1)
    (released,) = row["result_data"]["attempts"]
    assert (released["code"], released["kind"]) == ("handler.start_failed", "released")
    assert released["first_try"]["code"] == "engine.out_of_memory"


@pytest.mark.long
def test_a_fresh_process_that_dies_under_the_task_is_a_loss_that_tells_of_the_first_try(worker: Worker) -> None:
    row = worker.ended(worker.insert("glutton", {"then": "die"}))
    assert row["status"] == "Failed" and row["error_message"].startswith("task.poisoned: ")
    first, second = row["result_data"]["attempts"]
    assert (first["code"], first["signal"], first["first_try"]["code"]) == ("handler.died", 9, "engine.out_of_memory")
    assert second["code"] == "handler.died" and "first_try" not in second


# -- a GPU that breaks -------------------------------------------------------------------------------------------------


def breaks(worker: Worker, times: int) -> None:
    """How many more runs of the breaker break CUDA."""
    fresh = worker.data_dir / "breaks.new"
    fresh.write_text(str(times))
    fresh.rename(worker.data_dir / "breaks")


@pytest.mark.long
def test_a_task_that_breaks_cuda_fails_by_its_own_count_and_the_queue_moves_on(worker: Worker) -> None:
    unhealthy = worker.log.count("No new tasks")
    poison = worker.insert("breaker", {"poison": True}, max_attempts=2, priority=1)
    eventually("it has failed once", lambda: f"Task {poison} goes back to the queue: engine.cuda_broken" in worker.log)
    others = [worker.ended(worker.insert("breaker")) for _ in range(2)]
    row = worker.ended(poison)
    assert (row["status"], row["attempts"]) == ("Failed", 2)
    assert row["error_message"].startswith("engine.cuda_broken: ")
    assert [(other["status"], other["attempts"]) for other in others] == [("Complete", 1)] * 2
    pids = {cause["message"].rpartition("(pid ")[2] for cause in row["result_data"]["attempts"]}
    assert len(pids) == 2  # a process whose context is broken is not used again
    assert worker.log.count("No new tasks") == unhealthy


def test_a_dead_gpu_makes_the_worker_rest_instead_of_failing_its_queue_and_it_heals_by_itself(worker: Worker) -> None:
    worker.ended(worker.insert("breaker"))  # all was well
    breaks(worker, 1_000_000)
    tasks = [worker.insert("breaker") for _ in range(9)]
    eventually("it rests", lambda: "No new tasks: worker.gpu_unhealthy: CUDA broke in one fresh process" in worker.log)
    bystander = worker.insert("noop")
    tried = worker.log.count("Trying one task")
    eventually("one is tried", lambda: worker.log.count("Trying one task") > tried)
    rows = [worker.row(task) for task in tasks]
    assert {row["status"] for row in rows} <= {"Queued", "In Progress"}  # a try may be under way
    events = [event for task in tasks for event in worker.events(task)]
    assert [event["name"] for event in events].count("retried") == 1  # the first could have been its own fault
    assert "failed" not in [event["name"] for event in events]
    assert worker.row(bystander)["status"] == "Queued"
    breaks(worker, 0)
    ended = [worker.ended(task) for task in [*tasks, bystander]]
    assert {row["status"] for row in ended} == {"Complete"}
    assert sum(row["attempts"] for row in ended) == len(ended) + 1
    assert "Claiming again: worker.gpu_unhealthy is over" in worker.log


def test_an_operator_who_mended_the_gpu_restarts_the_handler_and_need_not_wait(worker: Worker) -> None:
    """Left alone, it would rest for minutes."""
    said = worker.log.count("No new tasks")
    tasks = [worker.insert("raiser", {"code": "engine.cuda_broken"}) for _ in range(3)]
    eventually("it rests", lambda: worker.log.count("No new tasks") > said)
    bystander = worker.insert("noop")
    worker.sql("UPDATE tasks SET status = 'Cancelled' WHERE id = ANY (%s::uuid[])", tasks)
    ready = worker.ctl("ready")
    assert ready.returncode == 1
    assert "worker.gpu_unhealthy: CUDA broke" in ready.stdout and "wan2gp-ctl restart raiser" in ready.stdout
    assert worker.row(bystander)["status"] == "Queued"
    assert worker.ctl("restart", "noop").returncode == 0  # not the one that broke
    assert worker.row(bystander)["status"] == "Queued"
    assert worker.ctl("restart", "raiser").returncode == 0
    assert worker.ended(bystander)["status"] == "Complete"


@pytest.mark.long
def test_a_worker_that_drains_the_queue_once_ends_although_its_gpu_is_dead(start_worker: Callable[..., Worker]) -> None:
    worker = start_worker("--queue", "postgres")
    worker.ctl("drain")
    tasks = [worker.insert("raiser", {"code": "engine.cuda_broken"}) for _ in range(4)]
    worker.stop()
    once = start_worker("--once", wait=False)
    assert once.process.wait(60) == 0
    assert {worker.row(task)["status"] for task in tasks} == {"Queued"}


ILLEGAL = "CUDA error: an illegal memory access was encountered"


@pytest.mark.long
def test_a_comfyui_whose_gpu_is_dead_fails_no_queue_and_is_heard_by_the_one_handler_that_stays(
    start_worker: Callable[..., Worker],
) -> None:
    """The server is replaced each time, and what was claimed ahead goes back with the rest."""
    worker = start_worker(environ={"COMFY_ARGS": f"--extra-nodes {FAULTS}", "WAN2GP_PREFETCH": "2"})
    worker.ended(worker.insert("comfy", {"workflow": picture()}))
    pid, servers = worker.handler_pid("comfy"), worker.log.count("ComfyUI started with PID")
    worker.ctl("drain")
    graph = {"workflow": fault("TestRaise", kind="RuntimeError", message=ILLEGAL)}
    tasks = [worker.insert("comfy", graph) for _ in range(6)]
    good = worker.insert("comfy", {"workflow": picture("later")})
    worker.ctl("resume")
    eventually("it rests", lambda: "No new tasks: worker.gpu_unhealthy" in worker.log)
    eventually("all is handed back", lambda: all(worker.row(task)["status"] == "Queued" for task in [*tasks, good]))
    assert sorted(worker.row(task)["attempts"] for task in tasks) == [0, 0, 0, 0, 0, 1]
    assert worker.row(good)["attempts"] == 0
    assert worker.log.count("ComfyUI started with PID") == servers + 2  # the third is not started before it is needed
    assert worker.handler_pid("comfy") == pid
    worker.sql("UPDATE tasks SET status = 'Cancelled' WHERE id = ANY (%s::uuid[])", tasks)
    assert worker.ctl("restart", "comfy").returncode == 0
    row = worker.ended(good)
    assert (row["status"], row["attempts"]) == ("Complete", 1)


# -- how long a pause is -----------------------------------------------------------------------------------------------


def test_tasks_that_failed_together_do_not_come_back_together() -> None:
    pauses = {before: [backoff_s(before) for _ in range(200)] for before in (0, 1, 4, 50)}
    for before, seconds in pauses.items():
        middle = min(RETRY_MAX_S, RETRY_FIRST_S * 2**before)
        assert all(middle * 0.8 <= each <= middle * 1.2 for each in seconds)
        assert len(set(seconds)) > 100


@pytest.mark.parametrize(
    ("why", "verb", "code"),
    [
        (Why.STOP, Verb.RELEASE, "worker.stopping"),
        (Why.RESTART, Verb.RELEASE, "handler.restarted"),
        (Why.DANGER, Verb.RELEASE, "worker.lease_lost"),
    ],
)
def test_what_was_interrupted_goes_back_uncounted_and_tells_the_true_reason(why: Why, verb: Verb, code: str) -> None:
    task = ClaimedTask("t", "h", {}, 1, 3, "secret", "lease-id-1")
    running = Running(task, "h", "/nowhere/t", 0.0, why=why)
    for ending in (
        running.ended(Cancelled(), 1.0),
        running.ended(Failed("handler.crashed", "it broke while it was interrupted", False), 1.0),
        running.lost("handler.died", "killed", {}, 1.0),
    ):
        assert (ending.verb, ending.cause and ending.cause["code"]) == (verb, code)
