"""A project on one's own machine, for as long as a command runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest_worker import ROOT, eventually

ASK = """
import json, os, sys
from urllib.request import Request, urlopen
headers = {"apikey": os.environ["SUPABASE_SERVICE_ROLE_KEY"], "Content-Type": "application/json"}
url = os.environ["SUPABASE_URL"] + "/rest/v1/tasks"
urlopen(Request(url, json.dumps({"task_type": sys.argv[1]}).encode(), headers)).close()
with urlopen(Request(url + "?select=task_type&task_type=in.(one,two)&order=created_at", headers=headers)) as answer:
    print([row["task_type"] for row in json.load(answer)], os.environ["WAN2GP_ALLOW_PRIVATE_URLS"])
sys.exit(7)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a cluster from the second use on: to make one takes longer than all the rest."""
    return tmp_path_factory.mktemp("project")


def command(directory: Path, *what: str) -> list[str]:
    return [sys.executable, "-m", "tests.local_supabase", "--data-dir", str(directory), "--", *what]


def ran(directory: Path, *what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(directory, *what), cwd=ROOT, capture_output=True, text=True, timeout=100)


@pytest.mark.long
def test_the_command_has_a_project_and_the_database_stays(project: Path) -> None:
    for kind, found in (("one", "['one'] 1\n"), ("two", "['one', 'two'] 1\n")):
        done = ran(project, sys.executable, "-c", ASK, kind)
        assert (done.returncode, done.stdout) == (7, found), done.stderr


@pytest.mark.long
def test_a_command_that_cannot_run_is_named(project: Path) -> None:
    done = ran(project, "no-such-command")
    assert done.returncode == 127
    assert done.stderr.splitlines()[-1] == "cannot run no-such-command: No such file or directory"


def test_when_it_is_stopped_nothing_is_left(project: Path) -> None:
    what = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(300)")
    with subprocess.Popen(command(project, *what), cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stdout.readline() == "up\n"
        family = psutil.Process(run.pid).children(recursive=True)
        assert {"postgres", "postgrest"} <= {process.name() for process in family}
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 128 + signal.SIGTERM
    eventually("nothing is left", lambda: not any(process.is_running() for process in family))


@pytest.mark.long
def test_when_it_is_killed_the_project_goes_with_it(project: Path) -> None:
    what = (sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()")
    with subprocess.Popen(
        command(project, *what), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None and run.stdout.readline() == "up\n"
        family = psutil.Process(run.pid).children(recursive=True)
        os.kill(run.pid, signal.SIGKILL)
        run.communicate()  # ends the command, which reads our end of the pipe
    eventually("nothing is left", lambda: not any(process.is_running() for process in family))


@pytest.mark.long
def test_the_demo_runs_on_it(project: Path, tmp_path: Path) -> None:
    """The documented command, ``make demo-supabase``, but for where its files go."""
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "tests.local_supabase" in line)
    assert line.strip() == "$(BIN)/python -m tests.local_supabase -- $(BIN)/wan2gp-ctl demo --queue supabase"
    demo = (sys.executable, "-m", "wan2gp.ctl", "--data-dir", str(tmp_path / "demo"), "demo", "--queue", "supabase")
    done = ran(project, *demo)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/storage/v1/object/public/image_uploads/" in done.stdout and "decoded" in done.stdout
