"""A user changes his mind: by SQL, by `wan2gp-ctl`, by the parent. What is cancelled ends, nothing else does, and
whatever arrives late changes nothing."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.bad_web_server import BadWebServer
from tests.builtin_faults.nodes import HOLD
from tests.comfy_jobs import fault, picture
from tests.conftest_comfy import FAULTS, BuiltinServer, free_port
from tests.conftest_db import PgServer
from tests.conftest_worker import Row, Worker, eventually
from tests.faulty_link import FaultyLink
from tests.put_server import PutServer
from tests.shared_worker import shared_worker

Start = Callable[..., Worker]
PRIVATE = {"WAN2GP_ALLOW_PRIVATE_URLS": "1", "WAN2GP_ALLOW_PRIVATE_PUT_URLS": "1"}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer) -> Iterator[Worker]:
    """It claims one task ahead for each handler."""
    comfy = {"COMFY_PORT": str(free_port()), "COMFY_ARGS": f"--extra-nodes {FAULTS}"}
    path = tmp_path_factory.mktemp("cancel")
    with shared_worker(path, _pg_session, **comfy, **PRIVATE, WAN2GP_PREFETCH="1") as running:
        yield running


def by_sql(worker: Worker, task: str) -> None:
    worker.sql("UPDATE tasks SET status = 'cancelled' WHERE id = %s", task)


def by_ctl(worker: Worker, task: str) -> None:
    assert worker.ctl("cancel", task).returncode == 0


WAYS: dict[str, Callable[[Worker, str], None]] = {"SQL": by_sql, "ctl": by_ctl}


def names(worker: Worker, task: str) -> list[str]:
    return [event["name"] for event in worker.events(task)]


def began(worker: Worker, task: str) -> bool:
    """Its handler got it."""
    return re.search(f"Processing [a-z]+ task {task}", worker.log) is not None


def files_of(worker: Worker, task: str) -> list[Path]:
    """What is left of it anywhere in the worker's directory but for its line in the spool."""
    # Not rglob, which does not bear with what goes meanwhile.
    places = (os.walk(worker.data_dir / name) for name in ("outputs", "work"))
    found = [Path(root, each) for root, folders, files in chain(*places) for each in (*folders, *files)]
    return [path for path in found if task in path.name]


def output(row: Row) -> str:
    return str(row["output_location"])


def heard(worker: Worker, name: str, *tasks: str) -> None:
    """Wait until the history of one of them has that."""
    eventually(f"one is {name}", lambda: any(name in names(worker, task) for task in tasks))


def knows(worker: Worker, *tasks: str) -> None:
    """Wait until it has let go of all that it had claimed: the second may have been, when the first had gone."""

    def let_go(history: list[str]) -> bool:
        return "claimed" not in history or "stopped" in history

    eventually("it knows", lambda: all(let_go(names(worker, task)) for task in tasks))


def stays_cancelled(worker: Worker, task: str, attempts: int = 1) -> None:
    """Its work has ended, its lease too, nothing was made of it, and no more will be."""
    lease = "SELECT token FROM task_leases WHERE task_id = %s AND token IS NOT NULL"
    eventually("its lease has ended", lambda: not worker.sql(lease, task))
    eventually("its files are gone", lambda: not files_of(worker, task))
    eventually("the spool is empty", worker.spool_is_empty)
    row = worker.row(task)
    assert (row["status"], row["attempts"]) == ("Cancelled", attempts), row
    assert (row["output_location"], names(worker, task).count("claimed")) == (None, attempts)
    assert not {"completed", "failed", "retried", "released"} & set(names(worker, task))


# -- before it begins --------------------------------------------------------------------------------------------------


def test_what_is_cancelled_before_its_turn_never_begins(worker: Worker, tmp_path: Path) -> None:
    """One of each way lies on the worker, claimed ahead; one of each is in the table only."""
    gate = tmp_path / "gate"
    first = {"files": {"a.txt": "x"}, "gate": str(gate)}
    for way, cancel in WAYS.items():
        gate.unlink(missing_ok=True)
        running = worker.insert("tardy", first)
        worker.running(running)
        ahead, behind = worker.insert("tardy", first), worker.insert("tardy", first)
        heard(worker, "claimed", ahead, behind)
        for task in (ahead, behind):
            cancel(worker, task)
        knows(worker, ahead, behind)
        gate.touch()
        row = worker.ended(running)
        assert (row["status"], row["attempts"]) == ("Complete", 1), (way, row)
        worker.ended(worker.insert("tardy", first))
        for task in (ahead, behind):
            assert worker.row(task)["status"] == "Cancelled" and not began(worker, task)
            assert not files_of(worker, task)


# -- while it runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", list(WAYS))
def test_a_parent_that_is_cancelled_takes_its_running_child_along_and_no_process(worker: Worker, way: str) -> None:
    parent = worker.insert("a_plan")
    claim = "SELECT wan2gp_claim('by hand ' || %s, 'a planner', ARRAY['a_plan'], 1, 60) AS answer"
    worker.sql(claim, way)
    (lease,) = worker.sql("SELECT token FROM task_leases WHERE task_id = %s", parent)
    child = {"task_type": "sleeper", "params": {"seconds": 60}}
    children: list[dict[str, Any]] = [child, child, child, {**child, "depends_on": [0, 1, 2]}]
    spawn = "SELECT wan2gp_spawn(%s, %s, %s) AS ids"
    (answer,) = worker.sql(spawn, parent, lease["token"], json.dumps(children))
    worker.running(answer["ids"][0])
    pid = worker.handler_pid("sleeper")
    WAYS[way](worker, parent)
    done = worker.ended(worker.insert("sleeper", {"seconds": 0.05}))
    assert (done["status"], done["attempts"], worker.handler_pid("sleeper")) == ("Complete", 1, pid)
    assert worker.row(parent)["status"] == "Cancelled"
    assert [worker.row(one)["status"] for one in answer["ids"]] == ["Cancelled"] * 4
    assert [began(worker, one) for one in answer["ids"]] == [True, False, False, False]
    stays_cancelled(worker, answer["ids"][0])


def test_a_download_that_is_cancelled_is_broken_off(worker: Worker) -> None:
    web = BadWebServer()
    try:
        task = worker.insert("fetcher", {"url": web.url("/drip")})
        eventually("it downloads", lambda: web.requests)
        by_sql(worker, task)
        eventually("the download ends", lambda: web.gone)
        done = worker.ended(worker.insert("fetcher", {"url": web.url("/clip.mp4")}))
        assert (done["status"], done["attempts"]) == ("Complete", 1)
        stays_cancelled(worker, task)
    finally:
        web.close()


def test_a_result_that_is_cancelled_while_it_is_sent_is_not_shown(worker: Worker, put_server: PutServer) -> None:
    put_server.silent.set()
    made = {"files": {"a.txt": "one", "b.txt": "two"}, "put_url": put_server.url()}
    task = worker.insert("maker", made)
    assert put_server.reached.wait(30)
    by_sql(worker, task)
    put_server.silent.clear()
    stays_cancelled(worker, task)
    assert f"Task {task} completed" not in worker.log


# -- in ComfyUI --------------------------------------------------------------------------------------------------------


def slow_picture(nonce: int) -> dict[str, Any]:
    """A graph that runs as long as it is held, and saves a file."""
    return {"workflow": {**picture(), "9": fault("TestSleep", seconds=0.1, steps=2, nonce=nonce)["1"]}}


def test_of_two_prompts_the_one_that_is_cancelled_ends_and_the_other_does_not(worker: Worker) -> None:
    hold = worker.data_dir / "handlers" / "comfy" / "engine" / "input" / HOLD
    hold.parent.mkdir(parents=True, exist_ok=True)
    hold.touch()
    a, b = (worker.insert("comfy", slow_picture(nonce)) for nonce in (1, 2))
    eventually("A runs", lambda: "Workflow queued" in worker.log)
    heard(worker, "claimed", b)
    by_sql(worker, b)
    heard(worker, "stopped", b)
    hold.unlink()
    row = worker.ended(a)
    assert (row["status"], row["attempts"]) == ("Complete", 1), row
    assert len(row["result_data"]["artifacts"]) == 1
    stays_cancelled(worker, b)
    assert not began(worker, b)
    assert worker.ended(worker.insert("comfy", {"workflow": picture(color=3)}))["status"] == "Complete"
    assert worker.log.count("ComfyUI started with PID") == 1


@pytest.mark.parametrize("ours", ["waits", pytest.param("runs", marks=pytest.mark.long)])
def test_a_strangers_prompt_on_the_same_comfyui_goes_on_when_ours_is_cancelled(
    start_worker: Start, shared_builtin_server: BuiltinServer, ours: str
) -> None:
    server, hold = shared_builtin_server, shared_builtin_server.input / HOLD
    worker = start_worker(environ={"COMFY_URL": server.url})
    hold.touch()
    theirs = ""
    for whose in ("theirs", "ours") if ours == "waits" else ("ours", "theirs"):
        if whose == "theirs":
            theirs = server.post(slow_picture(3 if ours == "waits" else 4)["workflow"]).json()["prompt_id"]
        else:
            task = worker.insert("comfy", slow_picture(5 if ours == "waits" else 6))
            eventually("ours is queued", lambda: "Workflow queued" in worker.log)
    queue = server.get("/queue")
    (mine,) = [item[1] for part in queue.values() for item in part if item[1] != theirs]
    server.until_running(theirs if ours == "waits" else mine)
    by_ctl(worker, task)
    eventually("ours is gone", lambda: mine not in json.dumps(server.get("/queue")))
    assert theirs in json.dumps(server.get("/queue"))
    hold.unlink()
    assert server.finished(theirs)["status"]["status_str"] == "success"
    stays_cancelled(worker, task)


# -- whatever arrives late ---------------------------------------------------------------------------------------------


# Not the same handler: one that has died lately claims nothing ahead, which other tests want.
@pytest.mark.parametrize(("what", "handler"), [("its result", "tardy"), ("its death", "late")])
def test_what_comes_of_a_cancelled_task_before_its_worker_hears_of_it_counts_for_nothing(
    worker: Worker, tmp_path: Path, what: str, handler: str
) -> None:
    """The worker is frozen meanwhile, and then has both at once."""
    gate = tmp_path / "gate"
    task = worker.insert(handler, {"files": {"a.txt": "x"}, "gate": str(gate)})
    worker.running(task)
    pid = worker.handler_pid(handler)
    worker.process.send_signal(signal.SIGSTOP)
    try:
        by_sql(worker, task)
        if what == "its result":
            gate.touch()
        else:
            os.kill(pid, signal.SIGKILL)
    finally:
        worker.process.send_signal(signal.SIGCONT)
    stays_cancelled(worker, task)
    gate.touch()
    done = worker.ended(worker.insert(handler, {"files": {"a.txt": "x"}, "gate": str(gate)}))
    assert (done["status"], done["attempts"]) == ("Complete", 1)
    assert (worker.handler_pid(handler) == pid) == (what == "its result")
    assert worker.row(task)["status"] == "Cancelled"


@pytest.mark.parametrize("how", [{"code": "comfy.exited"}, {}], ids=["that may pass", "nobody foresaw"])
def test_a_failure_of_a_cancelled_task_is_neither_tried_again_nor_shown(
    worker: Worker, tmp_path: Path, how: dict[str, str]
) -> None:
    gate = tmp_path / "gate"
    task = worker.insert("sulker", {**how, "gate": str(gate)})
    worker.running(task)
    by_ctl(worker, task)
    gate.touch()
    stays_cancelled(worker, task)
    assert worker.row(task)["error_message"] == "task.cancelled: cancelled by its user"


def test_a_task_that_is_queued_again_while_its_cancelled_run_goes_on_is_done_by_the_new_run(
    worker: Worker, tmp_path: Path
) -> None:
    """The old run hears nothing, and ends with a result of its own after the new one was claimed."""
    gate = tmp_path / "gate"
    task = worker.insert("tardy", {"files": {"a.txt": "x"}, "gate": str(gate)})
    worker.running(task)
    pid = worker.handler_pid("tardy")
    by_ctl(worker, task)
    assert worker.ctl("retry", task).returncode == 0
    eventually("it is claimed again", lambda: names(worker, task).count("claimed") == 2)
    assert worker.handler_pid("tardy") == pid, "the old run was still there"
    gate.touch()
    row = worker.ended(task)
    assert row["status"] == "Complete" and len(row["result_data"]["artifacts"]) == 1
    assert names(worker, task).count("completed") == 1
    eventually("the old run's files are gone", lambda: [str(path) for path in files_of(worker, task)] == [output(row)])
    eventually("the spool is empty", worker.spool_is_empty)


@pytest.mark.long
def test_what_was_cancelled_while_its_worker_was_cut_off_and_killed_is_never_shown(
    start_worker: Start, queue_db: str, tmp_path: Path
) -> None:
    """One has ended and lies in the spool, one runs; the user does not know of the trouble."""
    gate = tmp_path / "gate"
    held = {"files": {"a.txt": "x"}, "gate": str(gate)}
    with FaultyLink(queue_db) as link:
        worker = start_worker(f"--database-url={link.url}")
        ended, running = worker.insert("tardy", held), worker.insert("sleeper", {"seconds": 600})
        for task in (ended, running):
            worker.running(task)
        link.freeze()
        for task in (ended, running):
            by_sql(worker, task)
        gate.touch()
        journal = worker.data_dir / "spool" / "journal"
        eventually("its end is on the disk", lambda: ended.encode() in journal.read_bytes())
        worker.kill()
        link.thaw()
        worker = start_worker(f"--database-url={link.url}")
        for task in (ended, running):
            stays_cancelled(worker, task)
        assert not {ended, running} & {task for task in (ended, running) if f"Task {task} completed" in worker.log}
        assert worker.ended(worker.insert("noop"))["status"] == "Complete"


@pytest.mark.long
def test_a_database_that_is_away_takes_no_order_and_says_so(
    start_worker: Start, queue_db: str, pg_server: PgServer
) -> None:
    """The order can be given again; what runs goes on meanwhile, and the worker that is asked says why."""
    worker = start_worker()
    task = worker.insert("sleeper", {"seconds": 600})
    worker.running(task)
    pg_server.stop_server()
    refused = worker.ctl("cancel", task)
    pg_server.start_server()
    assert refused.returncode == 1 and "database" in refused.stderr.lower(), refused
    assert worker.row(task)["status"] == "In Progress"
    eventually("the order is taken", lambda: worker.ctl("cancel", task).returncode == 0)
    stays_cancelled(worker, task)


# -- grace, then the end -----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_handler_that_is_deaf_to_a_cancellation_is_killed_after_the_grace_and_nobody_else_is(worker: Worker) -> None:
    beside = worker.insert("sleeper", {"seconds": 2})
    task = worker.insert("deaf", {"seconds": 600})
    worker.running(task)
    pid = worker.handler_pid("deaf")
    by_ctl(worker, task)
    done = worker.ended(worker.insert("deaf", {"seconds": 0.05}))
    assert (done["status"], done["attempts"]) == ("Complete", 1)
    assert worker.handler_pid("deaf") != pid
    assert "Handler deaf hangs: did not end its task within 1s of the cancellation. Killing it" in worker.log
    stays_cancelled(worker, task)
    assert (worker.ended(beside)["status"], worker.row(beside)["attempts"]) == ("Complete", 1)
