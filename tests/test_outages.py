"""What a worker stands on breaks: its link to the database, its disk, its courier. Work waits, and is done once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.bad_web_server import BadWebServer
from tests.conftest_worker import Row, Worker, eventually
from tests.faulty_link import FaultyLink

Start = Callable[..., Worker]
SHORT = {"WAN2GP_LEASE_S": "5", "WAN2GP_RENEW_S": "0.5"}
OFTEN = ("--poll-interval", "0.2")


def finished_once(worker: Worker, task: str, attempts: int) -> Row:
    row = worker.ended(task)
    assert (row["status"], row["attempts"]) == ("Complete", attempts), (row, worker.log[-3000:])
    assert [event["name"] for event in worker.events(task)].count("completed") == 1
    return row


# -- the link ----------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_worker_that_alone_is_cut_off_stops_its_work_before_another_takes_it(
    start_worker: Start, queue_db: str, tmp_path: Path
) -> None:
    """The database is well, so that another takes the task as soon as the lease is over."""
    note = tmp_path / "note"
    with FaultyLink(queue_db) as link:
        lonely = start_worker(*OFTEN, f"--database-url={link.url}", name="lonely", environ=SHORT)
        task = lonely.insert("diarist", {"note": str(note)})
        lonely.running(task)
        other = start_worker(*OFTEN, name="other", environ=SHORT)
        link.freeze()
        row = finished_once(other, task, 2)
        assert row["generation_started_at"].timestamp() > float(note.read_text())
        link.thaw()
        eventually("it is told", lambda: "was refused" in lonely.log or "not ours any more" in lonely.log)
        finished_once(other, lonely.insert("noop"), 1)
        assert (other.row(task), lonely.stop()) == (row, 0)


# -- the disk ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three mebibytes at the place of the first worker's spool."""
    place = tmp_path / "w1" / "spool"
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True) if os.geteuid() == 0 else None
    if done is None or done.returncode != 0:
        pytest.skip("cannot mount here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_waited_for(small_disk: Path, start_worker: Start) -> None:
    worker = start_worker(environ={"WAN2GP_DISK_MIN_FREE_MIB": "0"})
    fill = small_disk / "fill"
    with fill.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    large = worker.insert("maker", {"files": {"a.txt": "x" * 200_000}})
    small = worker.insert("noop")
    eventually("it says so", lambda: "No space left on device" in worker.log)
    assert worker.process.poll() is None
    assert {worker.row(task)["status"] for task in (large, small)} <= {"In Progress", "Complete"}
    fill.unlink()
    row = finished_once(worker, large, 1)
    finished_once(worker, small, 1)
    assert Path(row["output_location"]).stat().st_size == 200_000
    eventually("the spool is empty", worker.spool_is_empty)


# -- the courier -------------------------------------------------------------------------------------------------------


@pytest.fixture
def web() -> Iterator[BadWebServer]:
    server = BadWebServer()
    yield server
    server.close()


DEATHS: dict[str, Callable[[Worker], object]] = {
    "killed": lambda worker: os.kill(worker.handler_pid("courier"), signal.SIGKILL),
    "killed with its shim": lambda worker: os.kill(
        psutil.Process(worker.handler_pid("courier")).ppid(), signal.SIGKILL
    ),
    "restarted": lambda worker: worker.ctl("restart", "courier"),
}


@pytest.mark.long
@pytest.mark.parametrize("how", list(DEATHS))
def test_a_courier_that_ends_under_a_download_costs_no_attempt(
    start_worker: Start, web: BadWebServer, how: str
) -> None:
    worker = start_worker(environ={"WAN2GP_ALLOW_PRIVATE_URLS": "1"})
    url = web.url("/drip")
    task = worker.insert("fetcher", {"url": url})
    eventually("it downloads", lambda: len(web.requests) == 1)
    DEATHS[how](worker)
    eventually("the next one downloads", lambda: len(web.requests) == 2)
    assert worker.row(task)["attempts"] == 1
    assert worker.ctl("cancel", task).returncode == 0
    eventually("the download ends too", lambda: len(web.gone) == 2)
    assert [event["name"] for event in worker.events(task)].count("claimed") == 1
    assert worker.ended(worker.insert("fetcher", {"url": web.url("/clip.mp4")}))["status"] == "Complete"
