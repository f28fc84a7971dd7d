"""What the measurements share: a worker of its own, events waited for, percentiles, and the facts of the machine."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg

from tests.conftest_worker import Worker, eventually, launch, plugin, worker_environment

LIMIT_S = 120.0


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0..1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def machine() -> str:
    """One line: processor, cores, memory, system, Python."""
    model = "unknown processor"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )


@contextlib.contextmanager
def working(*options: str, **environ: str) -> Iterator[Worker]:
    """A worker on its embedded database (durable settings, as a user's), in a folder that is removed afterwards."""
    folder, run_dir = Path(tempfile.mkdtemp(prefix="w2g-bench-")), Path(tempfile.mkdtemp(prefix="w2g-"))
    plugin(folder / "plugin", ("noop", "stamp", "litterer"))
    variables = worker_environment(
        folder, run_dir, WORKER_ID="bench", WAN2GP_LEASE_S="90", WAN2GP_RENEW_S="20", **environ
    )
    worker = launch(folder / "data", "", variables, *options)
    try:
        worker.url = worker.ctl("db", "url").stdout.strip()
        yield worker
    finally:
        stop(worker)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(run_dir, ignore_errors=True)


def stop(worker: Worker) -> None:
    """In order, or else by force."""
    worker.process.send_signal(signal.SIGTERM)
    try:
        worker.process.wait(20)
    except subprocess.TimeoutExpired:
        worker.process.kill()
        worker.process.wait()


def connect(worker: Worker) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(worker.url, autocommit=True)


def all_ended(connection: psycopg.Connection[tuple[object, ...]], task_type: str) -> None:
    """Wait until no row of the type is open."""
    query = "SELECT count(*) FROM tasks WHERE task_type = %s AND status IN ('Queued', 'In Progress')"

    def look() -> bool:
        row = connection.execute(query, [task_type]).fetchone()
        return row is not None and row[0] == 0

    eventually(f"all {task_type} tasks end", look, LIMIT_S)


def say(name: str, value: str, target: str, met: bool) -> bool:
    """One line of the report."""
    sys.stdout.write(f"  {name:<58} {value:<26} target {target:<22} {'met' if met else 'MISSED'}\n")
    sys.stdout.flush()
    return met


def rss_mib(*pids: int) -> float:
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def settle(seconds: float) -> None:
    """Let a measured process be idle for so long."""
    time.sleep(seconds)
