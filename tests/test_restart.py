"""The life after a death: what is run again, what is written down of it, and what a worker takes without dying."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tests.builtin_faults.nodes import ASLEEP, HOLD
from tests.comfy_jobs import fault, picture
from tests.conftest_comfy import FAULTS, free_port
from tests.conftest_db import PgServer
from tests.conftest_worker import Row, Worker, eventually, worker_environment
from tests.shared_worker import shared_worker
from wan2gp.shim import LOG_MAX_BYTES

Start = Callable[..., Worker]
OFTEN = ("--poll-interval", "0.2")
SHORT = {"WAN2GP_LEASE_S": "2", "WAN2GP_RENEW_S": "0.5"}


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer) -> Iterator[Worker]:
    comfy = {"COMFY_PORT": str(free_port()), "COMFY_ARGS": f"--extra-nodes {FAULTS}"}
    with shared_worker(tmp_path_factory.mktemp("lasting"), _pg_session, *OFTEN, **comfy) as worker:
        yield worker


def finished_once(worker: Worker, task: str, attempts: int) -> Row:
    row = worker.ended(task)
    assert (row["status"], row["attempts"]) == ("Complete", attempts), (row, worker.log[-3000:])
    assert [event["name"] for event in worker.events(task)].count("completed") == 1
    return row


def files_of(worker: Worker, task: str) -> list[Path]:
    return [path for path in (worker.data_dir / "outputs").rglob("*") if path.name.startswith(task)]


# -- what is written down ----------------------------------------------------------------------------------------------


def causes(worker: Worker, task: str) -> list[dict[str, Any]]:
    """What the row tells of its attempts, which must be what the events told at the time. Nothing is told by null."""
    told = [
        (event["attempt"], event["detail"]["cause"])
        for event in worker.events(task)
        if "cause" in (event["detail"] or {})
    ]
    attempts = [{key: value for key, value in one.items() if value is not None} for one in kept(worker, task)]
    assert [number for number, _ in told] == [one["attempt"] for one in attempts]
    for (_, cause), one in zip(told, attempts, strict=True):
        assert cause and cause.items() <= one.items(), (cause, one)
    return attempts


def kept(worker: Worker, task: str) -> list[dict[str, Any]]:
    return list(worker.row(task)["result_data"]["attempts"])


def told(attempt: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(attempt.get(key) for key in ("kind", "code", "exit_code", "signal"))


@pytest.fixture(scope="module")
def fates(lasting: Worker) -> dict[str, str]:
    """Tasks that come to different ends beside each other, by name."""
    raiser = {"code": "comfy.exited", "message": "it died"}
    return {
        "poison": lasting.insert("crasher", {"exit": 3, "times": 99}),
        "shot": lasting.insert("crasher", {"signal": 9}),
        "behind": lasting.insert("crasher", {"times": 0}),
        "hung": lasting.insert("hanger"),
        "wrong": lasting.insert("raiser", raiser, max_attempts=2),
    }


@pytest.mark.long
def test_a_poison_task_ends_with_all_its_deaths_and_the_queue_moves_on(lasting: Worker, fates: dict[str, str]) -> None:
    row = lasting.ended(fates["poison"])
    assert (row["status"], row["attempts"]) == ("Failed", 2)
    assert row["error_message"].startswith("task.poisoned: ") and "exit status 3" in row["error_message"]
    assert [told(attempt) for attempt in causes(lasting, fates["poison"])] == [("lost", "handler.died", 3, None)] * 2
    finished_once(lasting, fates["behind"], 1)


@pytest.mark.parametrize(
    ("who", "expected", "words"),
    [
        ("shot", ("lost", "handler.died", None, 9), "out of memory, or by hand"),
        ("hung", ("lost", "handler.hung", None, 9), "no progress within 1s in phase step"),
    ],
)
def test_the_row_and_its_history_tell_the_same_of_how_an_attempt_died(
    lasting: Worker, fates: dict[str, str], who: str, expected: tuple[Any, ...], words: str
) -> None:
    finished_once(lasting, fates[who], 2)
    (attempt,) = causes(lasting, fates[who])
    assert told(attempt) == expected and words in attempt["message"]
    assert attempt["worker"] == "shared" and attempt["started_at"] < attempt["ended_at"]
    assert who == "hung" or "last words of the crasher" in attempt["last_lines"]


def test_a_failure_that_goes_on_ends_with_every_cause(lasting: Worker, fates: dict[str, str]) -> None:
    row = lasting.ended(fates["wrong"])
    assert (row["status"], row["error_message"]) == ("Failed", "comfy.exited: it died")
    attempts = causes(lasting, fates["wrong"])
    assert [(*told(attempt)[:2], attempt["message"]) for attempt in attempts] == [
        ("failed", "comfy.exited", "it died")
    ] * 2


@pytest.mark.long
def test_a_task_whose_workers_vanish_twice_ends_and_says_who_took_it_from_whom(lasting: Worker) -> None:
    """Two workers, played by hand, claim it for a second and are never heard of again."""
    task = lasting.insert("a_plan")
    for name in ("first", "second"):
        lasting.sql("SELECT wan2gp_claim(%s, %s, ARRAY['a_plan'], 1, 1)", f"claim of the {name}", name)
        eventually("it is taken away", lambda: lasting.row(task)["status"] != "In Progress")
    row = lasting.row(task)
    assert (row["status"], row["attempts"]) == ("Failed", 2)
    assert row["error_message"].startswith("task.poisoned: ") and "worker.lease_lost" in row["error_message"]
    attempts = [(one["kind"], one["worker"], one["taken_by"]) for one in causes(lasting, task)]
    assert attempts == [("lease_expired", "first", "shared"), ("lease_expired", "second", "shared")]


# -- what is taken without dying ---------------------------------------------------------------------------------------


def rss(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


@pytest.mark.long
def test_ten_megabytes_of_engine_logs_cost_neither_the_task_nor_the_disk_nor_memory(lasting: Worker) -> None:
    finished_once(lasting, lasting.insert("comfy", {"workflow": picture()}), 1)
    pids = [lasting.process.pid, lasting.handler_pid("comfy")]
    pids.append(psutil.Process(pids[1]).ppid())
    before = [rss(pid) for pid in pids]
    chatter = {**picture(color=1), "9": fault("FaultChatter", mib=10, nonce=1)["1"]}
    row = finished_once(lasting, lasting.insert("comfy", {"workflow": chatter}), 1)
    assert len(row["result_data"]["artifacts"]) == 1
    grown = [(rss(pid) - was) >> 20 for pid, was in zip(pids, before, strict=True)]
    assert max(grown) < 24, f"MiB more in supervisor, handler and shim: {grown}"
    logs = list((lasting.data_dir / "logs" / "handlers").glob("comfy.log*"))
    assert sum(path.stat().st_size for path in logs) <= 2 * LOG_MAX_BYTES
    assert any(b"chatter" in path.read_bytes()[-100_000:] for path in logs)
    assert (lasting.data_dir / "logs" / "worker.log").stat().st_size < 1_000_000


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_the_same_row_twice_gives_its_files_both_times(lasting: Worker) -> None:
    """ComfyUI has all of it in its cache the second time."""
    tasks = [lasting.insert("comfy", {"workflow": picture(prefix=None, color=5)}) for _ in range(2)]
    rows = [finished_once(lasting, task, 1) for task in tasks]
    paths = [Path(row["output_location"]) for row in rows]
    assert paths[0] != paths[1] and pixels(paths[0]) == pixels(paths[1])
    assert [len(files_of(lasting, task)) for task in tasks] == [1, 1]


@pytest.mark.long
def test_a_handler_that_keeps_the_interpreter_for_two_leases_is_not_robbed(start_worker: Start) -> None:
    """Not one of its threads runs meanwhile; another worker looks for work five times a second."""
    silent, other = (start_worker(*OFTEN, name=name, environ=SHORT) for name in ("silent", "other"))
    other.ctl("drain")
    task = silent.insert("locker", {"seconds": 5})
    silent.running(task)
    other.ctl("resume")
    finished_once(silent, task, 1)
    assert task not in other.log
    assert [event["name"] for event in silent.events(task)].count("claimed") == 1


# -- a new life --------------------------------------------------------------------------------------------------------


def slow_picture() -> dict[str, Any]:
    """A graph that runs as long as it is held, and saves a file."""
    return {"workflow": {**picture(), "9": fault("TestSleep", seconds=0.1, steps=2)["1"]}}


def left_in(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


@pytest.mark.long
def test_a_supervisor_killed_under_a_prompt_runs_it_again_in_its_next_life_and_leaves_nothing(
    start_worker: Start, tmp_path: Path
) -> None:
    port = free_port()
    comfy = {"COMFY_PORT": str(port), "COMFY_ARGS": f"--extra-nodes {FAULTS}"}
    worker = start_worker(environ=comfy)
    engine = worker.data_dir / "handlers" / "comfy" / "engine"
    hold = engine / "input" / HOLD
    hold.parent.mkdir(parents=True)
    hold.touch()
    task = worker.insert("comfy", slow_picture())
    eventually("the prompt runs", lambda: "Workflow queued" in worker.log)
    old = worker.handler("comfy")["engine"]
    server = psutil.Process(old["pid"])
    assert old["port"] == port
    worker.kill()
    eventually("the server is gone", lambda: not server.is_running() or server.status() == "zombie", 5.0)
    eventually("nothing is left", lambda: not worker.survivors(), 5.0)
    again = start_worker(environ=comfy)
    eventually("the prompt runs again", lambda: again.log.count("Workflow queued") == 2)
    new = again.handler("comfy")["engine"]
    assert (new["port"], new["pid"] != old["pid"]) == (port, True)
    hold.unlink()
    row = finished_once(again, task, 2)
    (attempt,) = causes(again, task)
    assert (attempt["kind"], attempt["worker"]) == ("worker_died", "w1")
    assert [str(path) for path in files_of(again, task)] == [row["output_location"]]
    eventually("the spool is empty", again.spool_is_empty)
    eventually("the work is gone", lambda: not left_in(again.data_dir / "work"))
    (hold.parent / ASLEEP).unlink()  # the fault node's own note
    assert not left_in(engine / "input", engine / "output", engine / "temp")
    assert again.stop() == 0


@pytest.mark.long
def test_a_worker_that_stops_gives_its_task_to_another_at_once_and_uncounted(start_worker: Start) -> None:
    """The other one would not look for ten minutes by itself, and the lease lasts for as long."""
    slow = {"WAN2GP_LEASE_S": "600", "WAN2GP_STOP_GRACE_S": "0.2"}
    leaving, idle = (start_worker("--poll-interval", "600", name=name, environ=slow) for name in ("leaving", "idle"))
    idle.ctl("drain")
    task = leaving.insert("sleeper", {"seconds": 3})
    leaving.running(task)
    idle.ctl("resume")
    assert leaving.stop() == 0
    finished_once(idle, task, 1)
    told = {(event["name"], event["worker_id"]): event["at"] for event in idle.events(task)}
    waited_s = (told["claimed", "idle"] - told["released", "leaving"]).total_seconds()
    assert waited_s < 60, "it waited for something else than word of it"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of eight mebibytes at the place of the first worker's data directory."""
    place = tmp_path / "w1"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True) if os.geteuid() == 0 else None
    if done is None or done.returncode != 0:
        pytest.skip("cannot mount here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill_up(place: Path) -> Path:
    """A file that takes all that is left."""
    path = place / "fill"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 512)
    return path


def start_that_fails(data_dir: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Its words go where there is room."""
    command = [sys.executable, "-m", "wan2gp.entry", "--data-dir", str(data_dir)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)


@pytest.mark.long
@pytest.mark.parametrize("life", ["first", "second"])
def test_a_disk_that_is_full_at_the_start_is_said_in_a_sentence_and_nothing_is_lost(
    small_disk: Path, start_worker: Start, pg_server: PgServer, queue_db: str, tmp_path: Path, life: str
) -> None:
    """In the second life a result waits in the spool."""
    run_dir = tmp_path / "run"
    environ = worker_environment(tmp_path, run_dir, DATABASE_URL=queue_db, WORKER_ID="w1")
    task, small = "", {"WAN2GP_DISK_MIN_FREE_MIB": "0"}
    if life == "second":
        worker, gate = start_worker(environ=small), tmp_path / "gate"
        task = worker.insert("tardy", {"files": {"a.txt": "x"}, "gate": str(gate)})
        worker.running(task)
        pg_server.stop_server()
        gate.touch()
        journal = small_disk / "spool" / "journal"
        eventually("its end is on the disk", lambda: task.encode() in journal.read_bytes())
        worker.kill()
        pg_server.start_server()
    fill = fill_up(small_disk)
    starved = start_that_fails(small_disk, environ)
    last = starved.stderr.splitlines()[-1]
    assert starved.returncode in (1, 2) and str(small_disk) in last, starved.stderr
    assert "No space left on device" in last and "Traceback" not in starved.stderr, starved.stderr
    fill.unlink()
    again = start_worker(environ=small)
    if life == "first":
        task = again.insert("maker", {"files": {"a.txt": "x"}})
    finished_once(again, task, 1)
    assert len(files_of(again, task)) == 1
    eventually("the spool is empty", again.spool_is_empty)
