"""A queue in memory and a worker on paper: for the wire, the refusals and the formatting of the control socket.

What a database does is not tested with these: the queue's own contract suite and the tests of the whole worker do that.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from wan2gp.control import ControlRefused
from wan2gp.processes import start_time
from wan2gp.rundir import DataDirLock, RunInfo, control_endpoint, create_token, write_run
from wan2gp.supervisor.control_server import ControlServer
from wan2gp.supervisor.queue import QueueUnavailable, TaskQueue

NOW = "2026-02-03T04:05:06.789+00:00"


class PaperQueue:
    """Rows in a dict. ``gate`` is cleared to make every call wait, ``down`` set to make every call fail."""

    name = "paper"

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.down = False
        self.stats_calls = 0

    def _pass(self) -> None:
        self.gate.wait()
        if self.down:
            raise QueueUnavailable("connection refused")

    def enqueue(
        self,
        task_type: str,
        params: Mapping[str, Any],
        *,
        priority: int | None = None,
        max_attempts: int | None = None,
        run_after_s: float | None = None,
        depends_on: Sequence[str] = (),
    ) -> str:
        self._pass()
        task_id = str(uuid.uuid4())
        self.rows[task_id] = {
            "id": uuid.UUID(task_id),
            "task_type": task_type,
            "params": dict(params),
            "status": "Queued",
            "priority": priority,
            "attempts": 0,
            "max_attempts": max_attempts or 3,
            "created_at": NOW,
            "open_dependencies": 0,
            "events": [{"name": "queued", "at": NOW, "detail": {}}],
        }
        return task_id

    def task(self, task_id: str) -> Mapping[str, Any] | None:
        self._pass()
        return self.rows.get(task_id)

    def tasks(
        self, *, status: str | None = None, task_type: str | None = None, limit: int = 50
    ) -> tuple[Mapping[str, Any], ...]:
        self._pass()
        found = [
            {name: value for name, value in row.items() if name not in ("params", "events")}
            for row in reversed(self.rows.values())
            if status in (None, row["status"]) and task_type in (None, row["task_type"])
        ]
        return tuple(found[:limit])

    def cancel(self, task_id: str) -> str | None:
        return self._change(task_id, "Cancelled", ("Queued", "In Progress"))

    def retry(self, task_id: str) -> str | None:
        return self._change(task_id, "Queued", ("Complete", "Failed", "Cancelled"))

    def _change(self, task_id: str, after: str, allowed: Sequence[str]) -> str | None:
        self._pass()
        row = self.rows.get(task_id)
        if row is None:
            return None
        before: str = row["status"]
        if before in allowed:
            row["status"] = after
        return before

    def stats(self) -> Mapping[str, Any]:
        self.stats_calls += 1
        self._pass()
        counts = Counter((row["task_type"], row["status"]) for row in self.rows.values())
        return {
            "counts": [{"task_type": kind, "status": status, "count": n} for (kind, status), n in counts.items()],
            "oldest_queued_s": {kind: 4000.0 for kind, status in counts if status == "Queued"},
            "workers": [],
        }

    def finish(self, task_id: str, status: str, **columns: Any) -> None:
        """End a task, as a worker would."""
        self.rows[task_id].update(columns)
        self.rows[task_id]["status"] = status


class PaperWorker:
    """What the supervisor's loop would answer."""

    def __init__(self) -> None:
        self.state = "running"
        self.running: list[dict[str, Any]] = []
        self.told: list[str] = []
        self.fault: BaseException | None = None
        self.blocked: dict[str, str] = {}

    def status(self) -> Mapping[str, Any]:
        if self.fault is not None:
            raise self.fault
        handler = {
            "name": "comfy",
            "types": ["comfy"],
            "state": "busy" if self.running else "idle",
            "incarnation": 3,
            "pid": 4242,
            "restarts": 2,
            "last_cause": "killed by SIGKILL (out of memory?)",
            "engine": {"state": "ready", "pid": 4243, "port": 8188, "version": "0.3.75"},
            "task": self.running[0]["task_id"] if self.running else None,
            "since_s": 12.5,
            "rss_mib": 512,
            "gpu_mib": 20480,
        }
        return {
            "worker": "w1",
            "version": "0.1.0",
            "pid": os.getpid(),
            "uptime_s": 3700.0,
            "state": self.state,
            "queue": "paper",
            "listening": True,
            "database_ok": True,
            "handlers": [handler],
            "running": self.running,
            "unclaimable": [],
            "spool_depth": 0,
            "ready": not self.blocked,
            "obstacles": self.blocked,
        }

    def obstacles(self) -> Mapping[str, str]:
        return self.blocked

    def restart(self, handler: str) -> str:
        if handler != "comfy":
            raise ControlRefused("unknown_handler", f"no handler is named {handler}: this worker has comfy")
        return "comfy is being replaced"

    def free(self, handler: str) -> str:
        if handler != "comfy":
            raise ControlRefused("unknown_handler", f"no handler is named {handler}: this worker has comfy")
        return "comfy gives the GPU's memory back"

    def drain(self) -> None:
        self.state = "draining"

    def resume(self) -> None:
        self.state = "running"

    def cancel_running(self, task_id: str) -> bool:
        self.told.append(task_id)
        return any(task["task_id"] == task_id for task in self.running)


class PaperSupervisor:
    """A control server as a supervisor has it, with lock, token and run.json in ``data_dir``."""

    def __init__(self, data_dir: Path, run_dir: Path, ours: Callable[[int], bool] = lambda pid: False) -> None:
        """``ours``: processes that may not ask; none, since all that a test starts is below it."""
        self.data_dir = data_dir
        self.queue = PaperQueue()
        self.worker = PaperWorker()
        self.faults: list[BaseException] = []
        self.lock = DataDirLock.take(data_dir)
        self.token = create_token(data_dir)
        self.endpoint = control_endpoint(run_dir)
        self.server = ControlServer(
            self.endpoint,
            self.token,
            cast(TaskQueue, self.queue),
            self.worker,
            data_dir=data_dir,
            fault=self.faults.append,
            ours=ours,
        )
        self.server.start()
        ticks = start_time(os.getpid()) or 0
        write_run(data_dir, RunInfo(os.getpid(), ticks, str(run_dir), "w1", NOW, "0.1.0", "paper"))

    def stop(self) -> None:
        self.queue.gate.set()
        self.server.stop()
        self.lock.release()


@contextmanager
def paper_supervisor(data_dir: Path, run_dir: Path) -> Iterator[PaperSupervisor]:
    """One for the length of a block."""
    supervisor = PaperSupervisor(data_dir, run_dir)
    try:
        yield supervisor
    finally:
        supervisor.stop()
