"""What a worker can run out of, memory and disk: found in time, told to everybody, and mended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest_db import PgServer
from tests.conftest_worker import Worker, eventually
from tests.dockerfile_parts import only
from tests.nvml_stand_in import compiled, compiler
from tests.shared_worker import shared_worker

Start = Callable[..., Worker]
SOFT, HARD = 260, 400
"""MiB. A handler that has nothing yet holds some sixty."""
OFTEN = ("--poll-interval", "0.2")


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer) -> Iterator[SimpleNamespace]:
    """A worker with limits, and what it was given to do, all at once."""
    limits = {"WAN2GP_MEMORY_SOFT_MIB": str(SOFT), "WAN2GP_MEMORY_HARD_MIB": str(HARD)}
    with shared_worker(tmp_path_factory.mktemp("watches"), _pg_session, *OFTEN, **limits) as worker:
        yield SimpleNamespace(
            worker=worker,
            bystander=worker.insert("sleeper", {"seconds": 4}),
            poison=worker.insert("hog", {"mib": HARD + 100, "hold_s": 60}),
            leak=worker.insert("hoarder", {"mib": SOFT + 40, "hold_s": 3, "keep": True}),
            after=worker.insert("hoarder", {"mib": 0}),
        )


@pytest.mark.long
def test_a_process_that_keeps_too_much_memory_after_its_task_is_replaced_before_the_next(
    scene: SimpleNamespace,
) -> None:
    worker = scene.worker
    leak, after = worker.ended(scene.leak), worker.ended(scene.after)
    assert [(row["status"], row["attempts"]) for row in (leak, after)] == [("Complete", 1)] * 2
    assert leak["result_data"]["pid"] != after["result_data"]["pid"]
    assert "Handler hoarder is replaced before its next task: its processes still hold " in worker.log
    assert f"of memory, the limit is {SOFT} MiB (memory.soft_mib)" in worker.log
    assert worker.handler("hoarder")["deaths"] == 0, "it is no death"


def test_a_task_that_takes_too_much_memory_is_ended_and_twice_is_enough(scene: SimpleNamespace) -> None:
    worker = scene.worker
    row = worker.ended(scene.poison)
    assert (row["status"], row["attempts"]) == ("Failed", 2)
    assert row["error_message"].startswith("task.poisoned: ")
    assert f"the limit is {HARD} MiB (memory.hard_mib): give smaller inputs, or raise the limit" in row["error_message"]
    causes = row["result_data"]["attempts"]
    assert [(cause["code"], cause["verb"]) for cause in causes] == [("engine.memory_limit", "loss")] * 2
    assert "Handler hog is killed: its processes held " in worker.log
    told = [event["detail"]["cause"]["code"] for event in worker.events(scene.poison) if "cause" in event["detail"]]
    assert told == ["engine.memory_limit"] * 2


def test_the_tasks_of_others_go_on_beside_it(scene: SimpleNamespace) -> None:
    row = scene.worker.ended(scene.bystander)
    assert (row["status"], row["attempts"]) == ("Complete", 1)


def test_status_tells_what_each_handler_holds(scene: SimpleNamespace) -> None:
    worker = scene.worker
    worker.ended(scene.bystander)
    held = eventually("it was weighed", lambda: worker.handler("sleeper")["rss_mib"])
    assert 5 < held < SOFT
    assert worker.handler("noop")["rss_mib"] is None, "it has no process"
    assert f"{worker.handler('sleeper')['rss_mib']:,} MiB" in worker.ctl("status").stdout


def test_a_worker_that_takes_tasks_says_so(scene: SimpleNamespace) -> None:
    done = scene.worker.ctl("ready")
    assert (done.returncode, done.stdout) == (0, "ready\n")
    status = scene.worker.status()["worker"]
    assert (status["ready"], status["obstacles"]) == (True, {})


@pytest.mark.long
def test_a_task_that_needs_much_memory_and_gives_it_back_keeps_its_process(scene: SimpleNamespace) -> None:
    worker = scene.worker
    worker.ended(scene.after)
    params = ({"mib": SOFT + 40, "hold_s": 2.5}, {"mib": 0})
    big, after = (worker.ended(task) for task in [worker.insert("hoarder", each) for each in params])
    assert big["result_data"]["pid"] == after["result_data"]["pid"]


@pytest.mark.long
@pytest.mark.skipif(compiler() is None, reason="no C compiler")
def test_a_process_that_keeps_too_much_gpu_memory_is_replaced_before_the_next_task(
    start_worker: Start, tmp_path: Path
) -> None:
    held = tmp_path / "processes"
    held.write_text("1 5\n")
    compiled(tmp_path, held)
    driver = {"LD_LIBRARY_PATH": str(tmp_path), "WAN2GP_MEMORY_GPU_SOFT_MIB": "1000"}
    worker = start_worker(*OFTEN, environ=driver)
    params = {"mib": 0, "hold_s": 2.5, "gpu": str(held)}
    within = worker.ended(worker.insert("hog", {**params, "gpu_mib": 900}))
    assert worker.handler("hog")["gpu_mib"] == 900
    assert "900 MiB" in worker.ctl("status").stdout
    assert worker.status()["worker"]["gpus"][0]["name"] == "Stand-In 9000"
    tasks = [worker.insert("hog", {**params, "gpu_mib": 200}), worker.insert("hog", {"mib": 0})]
    over, after = (worker.ended(task)["result_data"]["pid"] for task in tasks)
    assert over == within["result_data"]["pid"]
    assert after != over
    assert "hold 1100 MiB of GPU memory, the limit is 1000 MiB (memory.gpu_soft_mib)" in worker.log


# -- the disk ----------------------------------------------------------------------------------------------------------


def is_ready_in_the_table(worker: Worker) -> Any:
    return worker.sql("SELECT metadata->'ready' AS ready FROM workers WHERE id = 'w1'")[0]["ready"]


def test_a_worker_without_space_takes_nothing_and_everybody_can_see_why(start_worker: Start) -> None:
    worker = start_worker(*OFTEN, environ={"WAN2GP_DISK_MIN_FREE_MIB": "999999999"})
    place = re.escape(str(worker.data_dir))
    why = rf"\d+ MiB are free under {place}, whose disk .* less than disk.min_free_mib = 999999999: give a larger .*"
    task = worker.insert("noop")
    done = worker.ctl("ready", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["ready"], list(told["obstacles"])) == (1, False, ["worker.disk_full"])
    assert re.fullmatch(why, told["obstacles"]["worker.disk_full"])
    check = worker.ctl(*only("worker", "HEALTHCHECK").exec_form()[1:])
    assert check.returncode == 1 and re.fullmatch(rf"worker\.disk_full: {why}\n", check.stdout)
    shown = worker.status()["worker"]
    assert (shown["ready"], list(shown["obstacles"])) == (False, ["worker.disk_full"])
    assert re.search(rf"^not ready  worker\.disk_full: {why}$", worker.ctl("status").stdout, re.MULTILINE)
    eventually("the table says so", lambda: is_ready_in_the_table(worker) is False)
    row = worker.row(task)
    assert (row["status"], row["attempts"]) == ("Queued", 0)
    assert worker.log.count("No new tasks: worker.disk_full: ") == 1
    assert worker.stop() == 0
    assert worker.ctl("ready").returncode == 3, "there is no supervisor"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB at the place of the first worker's data directory, with 16 of them free."""
    place = tmp_path / "w1"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True) if os.geteuid() == 0 else None
    if done is None or done.returncode != 0:
        pytest.skip("cannot mount here")
    (place / "fill").write_bytes(bytes(48 << 20))
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_gets_space_again_lets_the_worker_claim_again(small_disk: Path, start_worker: Start) -> None:
    worker = start_worker(*OFTEN, environ={"WAN2GP_DISK_MIN_FREE_MIB": "24"})
    task = worker.insert("noop")
    assert worker.ctl("ready").returncode == 1
    row = worker.row(task)
    assert (row["status"], row["attempts"]) == ("Queued", 0)
    (small_disk / "fill").unlink()
    row = worker.ended(task)
    assert (row["status"], row["attempts"]) == ("Complete", 1)
    assert "Claiming again: worker.disk_full is over" in worker.log
    assert worker.ctl("ready").returncode == 0


@pytest.mark.long
def test_a_disk_that_fills_up_under_a_worker_stops_its_claims_and_not_its_work(
    small_disk: Path, start_worker: Start
) -> None:
    (small_disk / "fill").unlink()
    worker = start_worker(*OFTEN, environ={"WAN2GP_DISK_MIN_FREE_MIB": "24"})
    running = worker.insert("sleeper", {"seconds": 8})
    worker.running(running)
    (small_disk / "fill").write_bytes(bytes(48 << 20))
    eventually("it is seen", lambda: worker.ctl("ready").returncode == 1)
    waiting = worker.insert("noop")
    row = worker.ended(running)
    assert (row["status"], row["attempts"]) == ("Complete", 1)
    assert worker.row(waiting)["attempts"] == 0
    (small_disk / "fill").unlink()
    assert worker.ended(waiting)["attempts"] == 1


def test_a_start_on_a_full_disk_ends_with_a_sentence(small_disk: Path, start_worker: Start) -> None:
    with (small_disk / "rest").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    command = [sys.executable, "-m", "wan2gp.entry", "--data-dir", str(small_disk), "--queue", "embedded"]
    done = subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"wan2gp-supervisor: worker.disk_full: cannot write under {small_disk}: No space left")


@pytest.mark.long
def test_a_demo_on_a_small_disk_says_why_it_cannot_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wan2gp.ctl", "--data-dir", str(tmp_path / "demo"), "demo"]
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "WAN2GP_DISK_MIN_FREE_MIB": "999999999"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("wan2gp-ctl: the demo failed: the worker takes no task: worker.disk_full: ")
    assert "less than disk.min_free_mib = 999999999" in said


# -- the worker as a whole ---------------------------------------------------------------------------------------------


def test_a_worker_that_drains_is_not_ready_until_it_resumes(scene: SimpleNamespace) -> None:
    worker = scene.worker
    worker.ctl("drain")
    done = worker.ctl("ready")
    assert (done.returncode, done.stdout.partition(": ")[0]) == (1, "worker.draining")
    worker.ctl("resume")
    assert worker.ctl("ready").returncode == 0
