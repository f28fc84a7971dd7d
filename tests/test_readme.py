"""The README, typed by a stranger: each command in its `sh` blocks is run, in order, by a real shell."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.comfy_jobs import picture
from tests.comfy_worker import spec_sql
from tests.conftest_worker import FINAL, eventually
from tests.supabase_stack import Stack
from tests.test_spec_promises import TASK_DISTRIBUTION
from wan2gp.demo_stage import Video, read_video
from wan2gp.supervisor.embedded_cluster import find_binaries

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SCRIPTS = Path(sys.executable).parent


def commands(heading: str) -> list[str]:
    """The lines of the `sh` blocks under a heading."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]


class Terminal:
    """A shell in a directory, with our programs on the PATH and, as with a person, what was exported before."""

    def __init__(self, cwd: Path, **environ: str) -> None:
        self.cwd = cwd
        places = [str(SCRIPTS), str(find_binaries()), "/usr/local/bin", "/usr/bin", "/bin"]
        self.environ = {"PATH": os.pathsep.join(places), "HOME": str(cwd), "LANG": "C.UTF-8", **environ}

    def types(self, line: str, **environ: str) -> str:
        """Run the line; what it printed. It must succeed."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.cwd,
            env={**self.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def leaves_running(self, line: str) -> Iterator[subprocess.Popen[bytes]]:
        """A worker in a terminal of its own, until it claims; stopped in order at the end."""
        log = self.cwd / "logs" / "worker.log"
        with (self.cwd / "screen").open("wb") as screen:
            process = subprocess.Popen(
                ["bash", "-c", f"exec env {line}"], cwd=self.cwd, env=self.environ, stdout=screen, stderr=screen
            )

        def claims() -> bool:
            assert process.poll() is None, (self.cwd / "screen").read_text()
            return log.exists() and "started. Polling" in log.read_text()

        try:
            # A first start makes a database cluster and waits for the disk, which others may keep busy.
            eventually("the worker claims", claims, patience_s=90)
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait(10)


def ended(url: str, task: str) -> dict[str, Any]:
    """The row once its status is final."""
    with psycopg.connect(url, autocommit=True) as connection:
        query = "SELECT to_jsonb(t) FROM tasks t WHERE id = %s AND status = ANY (%s)"
        found = eventually(f"task {task} ends", lambda: connection.execute(query, (task, list(FINAL))).fetchone())
    return dict(found[0])


def test_it_begins_with_what_must_be_installed() -> None:
    assert README.splitlines()[2] == "Prerequisite: `apt install make python3-venv`"


def test_the_row_is_the_specifications_byte_for_byte() -> None:
    assert resources.files("wan2gp").joinpath("demo_row.sql").read_text() in README
    assert TASK_DISTRIBUTION in README


def test_every_target_of_make_that_it_names_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"make (demo|test|help|check|[a-z-]+)(?=`|\n)", README))
    assert named >= {"demo", "test", "help"}
    assert [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_a_stranger_makes_a_row_and_finds_the_file(tmp_path: Path, clip: tuple[Video, str]) -> None:
    start, *rest = commands("A task")
    assert start.endswith("wan2gp-supervisor --worker test-worker")
    terminal = Terminal(tmp_path, WAN2GP_ALLOW_PRIVATE_URLS="1")
    (tmp_path / "task.sql").write_text(spec_sql(clip[1]))
    with terminal.leaves_running(start):
        insert, *looks = rest
        assert insert.startswith("psql ")
        assert "INSERT 0 1" in terminal.types(insert)
        url = terminal.types("wan2gp-ctl db url").strip()
        (task,) = (row["id"] for row in json.loads(terminal.types("wan2gp-ctl tasks --json"))["tasks"])
        row = ended(url, task)
        assert row["status"] == "Complete"
        eventually("its file is shown", Path(row["output_location"]).exists)
        eventually("the log's last line", lambda: f"Task {task} completed" in terminal.types("cat logs/worker.log"))
        printed = {line: terminal.types(line) for line in looks}
    assert read_video(Path(row["output_location"])).frames == clip[0].frames
    assert f"Task {task} completed" in printed["tail -n 20 logs/worker.log"]
    assert Path(row["output_location"]).name in printed["ls -lh outputs/comfy/"]
    assert task in printed["wan2gp-ctl tasks"]
    assert "test-worker" in printed["wan2gp-ctl status"]


def test_an_operator_installs_steers_and_drains(tmp_path: Path, empty_db: str) -> None:
    export, migrate, check, start, *rest = commands("In production")
    assert export.startswith("export DATABASE_URL=") and start == "wan2gp-supervisor"
    terminal = Terminal(tmp_path, DATABASE_URL=empty_db, COMFY_PATH="builtin")
    (tmp_path / "params.json").write_text(json.dumps({"workflow": picture()}))
    terminal.types(migrate)
    assert "ok: queue postgres" in terminal.types(check)
    with terminal.leaves_running(start):
        over = terminal.types("wan2gp-ctl submit comfy --params params.json").strip()
        assert ended(empty_db, over)["status"] == "Complete"
        with psycopg.connect(empty_db, autocommit=True) as connection:
            later = "INSERT INTO tasks (task_type, run_after) VALUES ('comfy', now() + interval '1 day') RETURNING id"
            waiting = str(connection.execute(later).fetchall()[0][0])
        assert [line.split()[0] for line in rest] == ["wan2gp-ctl"] * len(rest)
        for line in rest:
            terminal.types(line, ID=waiting if line.startswith("wan2gp-ctl cancel") else over)
        with psycopg.connect(empty_db) as connection:
            tasks = [row[0] for row in connection.execute("SELECT id::text FROM tasks").fetchall()]
        # Also the one that was tried again: the restart may have sent it back to the queue.
        statuses = {task: ended(empty_db, task)["status"] for task in tasks}
    assert statuses.pop(waiting) == "Cancelled"
    assert set(statuses.values()) == {"Complete"} and len(statuses) == 2


def test_an_owner_of_a_project_starts_a_worker_on_it(tmp_path: Path, supabase_stack: Stack) -> None:
    (start,) = commands("On Supabase")
    start = start.replace("https://your-project.supabase.co", supabase_stack.url).replace(
        "your-key", supabase_stack.key
    )
    terminal = Terminal(tmp_path, COMFY_PATH="builtin", WORKER_ID="mine")
    (tmp_path / "params.json").write_text(json.dumps({"workflow": picture()}))
    with terminal.leaves_running(start):
        task = terminal.types("wan2gp-ctl submit comfy --params params.json").strip()
        row = ended(supabase_stack.database, task)
    assert row["status"] == "Complete" and row["output_location"].startswith(supabase_stack.url)
    assert len(supabase_stack.storage.paths("image_uploads")) == 1


@pytest.mark.parametrize("variable", ["COMFY_PATH", "COMFY_PORT", "WAN2GP_STOP_GRACE_S", "COMFY_WHEN_MISSING"])
def test_every_setting_that_it_names_is_one(variable: str) -> None:
    assert variable in README
    assert f"`{variable}`" in (ROOT / "docs" / "configuration.md").read_text()
