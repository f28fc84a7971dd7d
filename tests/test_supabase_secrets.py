"""The project's key, planted in the environment, in a file and in the arguments, looked for everywhere else."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.comfy_jobs import picture
from tests.conftest_comfy import free_port
from tests.conftest_worker import Worker, eventually
from tests.front_faults import Fault
from tests.supabase_stack import Stack

Start = Callable[..., Worker]
TASKS = [
    ("witness", {}),
    ("crasher", {"exit": 3}),
    ("maker", {"files": {"a.txt": "x"}}),
    ("fetcher", {"url": "storage://image_uploads/nothing.txt"}),
    ("comfy", {"workflow": picture()}),
]
TABLES = ("tasks", "task_events", "workers", "task_leases", "worker_contacts")


def given(how: str, key: str, place: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Options and variables that give the worker its key."""
    if how == "flag":
        return ("--supabase-access-token", key), {"SUPABASE_SERVICE_ROLE_KEY": ""}
    if how == "file":
        place.mkdir()
        (place / "key").write_text(key)
        return (), {"SUPABASE_SERVICE_ROLE_KEY": "", "SUPABASE_SERVICE_ROLE_KEY_FILE": str(place / "key")}
    return (), {"SUPABASE_SERVICE_ROLE_KEY": key}


def stumble(stack: Stack, worker: Worker) -> None:
    """Each kind of error that an HTTP call can end in, while a task is on its way."""
    faults = [
        Fault("rpc/wan2gp_finish_many", "cut_after"),
        Fault("rpc/wan2gp_claim", "status", status=502, body="<html>bad gateway</html>"),
        Fault("rpc/wan2gp_heartbeat", "reset"),
        Fault("/storage/v1/object/", "status", status=401, body={"message": "jwt malformed"}),
        Fault("rpc/wan2gp_claim", "status", status=401, body={"message": "Invalid API key"}, times=2),
    ]
    for fault in faults:
        stack.front.faults.add(fault)
    worker.insert("maker", {"files": {"b.txt": "y"}})
    eventually("all went wrong", lambda: all(fault.hits for fault in faults), 60)
    worker.ctl("publish", "retry")
    worker.ended(worker.insert("noop"), 60)


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        pytest.param("environment", "secret", marks=pytest.mark.long),
        ("flag", "jwt"),
        pytest.param("file", "secret", marks=pytest.mark.long),
    ],
)
def test_the_key_is_in_no_process_file_or_row(
    start_supabase_worker: Start, supabase_stack: Stack, tmp_path: Path, how: str, kind: str
) -> None:
    key = supabase_stack.key if kind == "secret" else supabase_stack.jwt_key
    options, variables = given(how, key, tmp_path / "mounted")
    worker = start_supabase_worker(*options, environ={"COMFY_PORT": str(free_port()), **variables})
    for task_type, params in TASKS:
        worker.ended(worker.insert(task_type, params, max_attempts=1))
    stumble(supabase_stack, worker)
    planted = key.encode()
    look_at_processes(worker, planted)
    assert worker.stop() == 0
    folders = [worker.data_dir, Path(worker.environ["WAN2GP_RUN_DIR"])]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"worker.log", "journal", "screen", "comfy.log"}
    assert [path for path in files if planted in path.read_bytes()] == []
    for table in TABLES:
        rows = worker.sql(f"SELECT to_jsonb(x)::text AS x FROM {table} x")
        assert rows and planted not in json.dumps([row["x"] for row in rows]).encode(), table


def look_at_processes(worker: Worker, planted: bytes) -> None:
    pids = [worker.process.pid, *(process.pid for process in worker.family())]
    assert len(pids) > 5
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for name in ("environ", "cmdline"):
                assert planted not in Path(f"/proc/{pid}/{name}").read_bytes(), (pid, name)
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if stat.S_ISREG(os.stat(entry.path).st_mode):
                        assert planted not in Path(entry.path).read_bytes(), (pid, os.readlink(entry.path))
