"""A real worker on a real database, as its own process: started, asked, killed and surely ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from psycopg.rows import dict_row

from tests.vices.specs import NAMES

ROOT = Path(__file__).parent.parent
PATIENCE_S = 30.0
FINAL = ("Complete", "Failed", "Cancelled")
Row = dict[str, Any]


def eventually(what: str, look: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """The first true answer of `look`; fails with `what` when there is none in time."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {patience_s:.0f}s: {what}")


@dataclass
class Worker:
    """A supervisor and its database. `environ` is what it was started with."""

    data_dir: Path
    url: str
    environ: dict[str, str]
    options: tuple[str, ...]
    process: subprocess.Popen[bytes]
    seen: set[psutil.Process] = field(default_factory=set)

    @property
    def log(self) -> str:
        path = self.data_dir / "logs" / "worker.log"
        return path.read_text() if path.exists() else ""

    @property
    def screen(self) -> str:
        return (self.data_dir / "screen").read_text()

    def sql(self, statement: str, *values: Any) -> list[Row]:
        with psycopg.connect(self.url, autocommit=True, row_factory=dict_row) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def insert(self, task_type: str, params: Any = None, **columns: Any) -> str:
        """A plain INSERT, as a user's; returns the id."""
        given = {"task_type": task_type, "params": json.dumps(params or {}), "status": "queued", **columns}
        names, marks = ", ".join(given), ", ".join(["%s"] * len(given))
        statement = f"INSERT INTO tasks ({names}) VALUES ({marks}) RETURNING id"
        return str(self.sql(statement, *given.values())[0]["id"])

    def row(self, task_id: str) -> Row:
        return self.sql("SELECT * FROM tasks WHERE id = %s", task_id)[0]

    def events(self, task_id: str) -> list[Row]:
        return self.sql("SELECT * FROM task_events WHERE task_id = %s ORDER BY id", task_id)

    def ended(self, task_id: str, patience_s: float = PATIENCE_S) -> Row:
        """The row once its status is final and its files are shown, which is a moment later."""

        def look() -> Row | None:
            assert self.process.poll() is None, f"the worker ended: {self.screen[-3000:]}"
            row = self.row(task_id)
            return row if row["status"] in FINAL else None

        try:
            row: Row = eventually(f"task {task_id} ends", look, patience_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; row {self.row(task_id)}; log: {self.log[-3000:]}") from None
        for made in (row["result_data"] or {}).get("artifacts", ()):
            if "path" in made:  # else it was uploaded before the row said so
                eventually(f"{made['path']} is shown", Path(made["path"]).exists)
        return row

    def spool_is_empty(self) -> bool:
        """True when nothing waits to be settled: all that is left is the journal's file."""
        return [path.name for path in (self.data_dir / "spool").iterdir()] == ["journal"]

    def running(self, task_id: str) -> Row:
        """The row once it is under way at its handler."""
        eventually(f"task {task_id} runs", lambda: f"task {task_id}" in self.log)
        return self.row(task_id)

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "wan2gp.ctl", "--data-dir", str(self.data_dir), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=self.environ, timeout=60)

    def status(self) -> Row:
        done = self.ctl("status", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def handler(self, name: str) -> Row:
        return next(row for row in self.status()["worker"]["handlers"] if row["name"] == name)

    def handler_pid(self, name: str) -> int:
        """The handler's own process (not its shim)."""

        def look() -> int | None:
            for process in self.family():
                with contextlib.suppress(psutil.Error):
                    if process.cmdline()[-3:] == ["-m", "wan2gp.handlers", name]:
                        return process.pid
            return None

        return eventually(f"handler {name} has a process", look)  # type: ignore[no-any-return]

    def family(self) -> list[psutil.Process]:
        """Every process below the supervisor, now; they are remembered."""
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.process.pid).children(recursive=True)
            self.seen.update(found)
            return found
        return []

    def kill(self) -> None:
        """The supervisor, with no warning."""
        self.family()
        self.process.kill()
        self.process.wait(10)

    def survivors(self) -> list[psutil.Process]:
        """Processes once seen below the supervisor that still run."""
        alive = []
        for process in self.seen:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        return alive

    def stop(self) -> int:
        """SIGTERM and the exit code."""
        self.family()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def plugin(directory: Path, names: Sequence[str] = NAMES) -> Path:
    """A folder which, on PYTHONPATH, is an installed plug-in with the tests' handlers, or with those named."""
    info = directory / "wan2gp_vices-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wan2gp-vices\nVersion: 0\n")
    lines = "".join(f"{name} = tests.vices.specs:{name}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[wan2gp.handlers]\n{lines}")
    return directory


def worker_environment(tmp_path: Path, run_dir: Path, **more: str) -> dict[str, str]:
    """Short leases and pauses, own folders, the tests' plug-in; nothing of the caller's settings."""
    place = tmp_path / "plugin"
    if not place.exists():
        plugin(place)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": f"{place}:{ROOT}",
        "WAN2GP_RUN_DIR": str(run_dir),
        "WAN2GP_LEASE_S": "6",
        "WAN2GP_RENEW_S": "1",
        "WAN2GP_STOP_GRACE_S": "1",
        "WAN2GP_DISK_MIN_FREE_MIB": "64",
        "COMFY_PATH": "builtin",
        **more,
    }


def launch(
    data_dir: Path,
    url: str,
    environ: dict[str, str],
    *options: str,
    wait: bool = True,
    within: Sequence[str] = (),
) -> Worker:
    """Start a supervisor; with `wait`, return once it claims. `within`: a command that becomes the one behind it."""
    data_dir.mkdir(parents=True, exist_ok=True)
    command = [*within, sys.executable, "-m", "wan2gp.entry", "--data-dir", str(data_dir), *options]
    before = (
        (data_dir / "logs" / "worker.log").read_text().count("started. Polling")
        if wait and (data_dir / "logs" / "worker.log").exists()
        else 0
    )
    with (data_dir / "screen").open("ab") as screen:
        process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=screen, stderr=screen)
    worker = Worker(data_dir, url, environ, options, process)

    def started() -> bool:
        assert process.poll() is None, f"the worker ended with {process.returncode}: {worker.screen[-3000:]}"
        return worker.log.count("started. Polling") > before

    if wait:
        eventually("the worker starts", started)
    return worker


def surely_end(started: Sequence[Worker]) -> None:
    """Stop them all; fails when a process of theirs is left."""
    for worker in started:
        worker.family()
        if worker.process.poll() is None:
            worker.process.send_signal(signal.SIGTERM)
            try:
                worker.process.wait(15)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait(5)
    for worker in started:
        eventually("nothing is left of the worker", lambda worker=worker: not worker.survivors(), 10)  # type: ignore[misc]


@pytest.fixture
def run_dirs() -> Iterator[Callable[[], Path]]:
    """Short paths for sockets, removed afterwards."""
    import shutil
    import tempfile

    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="w2g-")))
        return made[-1]

    yield make
    for path in made:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def start_worker(tmp_path: Path, run_dirs: Callable[[], Path], queue_db: str) -> Iterator[Callable[..., Worker]]:
    """Starts workers on one fresh database; `environ` adds variables, other arguments are options."""
    started: list[Worker] = []

    def start(*options: str, name: str = "w1", environ: dict[str, str] | None = None, wait: bool = True) -> Worker:
        variables = worker_environment(tmp_path, run_dirs(), DATABASE_URL=queue_db, WORKER_ID=name, **(environ or {}))
        worker = launch(tmp_path / name, queue_db, variables, *options, wait=wait)
        started.append(worker)
        return worker

    yield start
    surely_end(started)


@pytest.fixture
def worker(start_worker: Callable[..., Worker]) -> Worker:
    """One worker on a fresh database."""
    return start_worker()
