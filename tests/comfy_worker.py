"""What whole-path tests of comfy tasks share: workers that last for a module, a video to fetch, a checkout to start."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from tests.conftest_db import PgServer
from tests.conftest_worker import Worker
from tests.shared_worker import shared_worker
from wan2gp.demo_queue import SPEC_URL
from wan2gp.demo_stage import InputServer, Video, make_video

SERVE = "from wan2gp.comfy_sidecar.builtin.__main__ import main; sys.exit(main(sys.argv[1:]))"
"""A `main.py` that answers as ComfyUI does."""
Start = Callable[..., Worker]


def checkout(folder: Path, text: str) -> str:
    """A directory that looks like a ComfyUI, whose `main.py` is the given text."""
    folder.mkdir(parents=True)
    (folder / "main.py").write_text("import os, sys, time\n" + textwrap.dedent(text) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def start_lasting(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer) -> Iterator[Start]:
    """As `start_worker`, for all tests of a module; every worker has a fresh database of its own."""
    with contextlib.ExitStack() as running:

        def start(*options: str, name: str, **environ: str) -> Worker:
            place = tmp_path_factory.mktemp(name)
            return running.enter_context(shared_worker(place, _pg_session, *options, **environ))

        yield start


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Video, str]]:
    """A video and the URL, ending in `/input.mp4`, at which it is served."""
    video = make_video(tmp_path_factory.mktemp("clip") / "input.mp4")
    with InputServer(video.path) as server:
        yield video, server.url


def spec_sql(url: str) -> str:
    """The specification's INSERT, byte for byte but for the URL."""
    return resources.files("wan2gp").joinpath("demo_row.sql").read_text().replace(SPEC_URL, url)


def run_sql(worker: Worker, statement: str) -> str:
    """As a person would: through `psql` where there is one, else through a driver. Returns what it printed."""
    psql = shutil.which("psql")
    if psql is None:
        with psycopg.connect(worker.url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return "\n".join("|".join(map(str, row)) for row in cursor) if cursor.description else ""
    command = [psql, "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", worker.url]
    done = subprocess.run(command, input=statement, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def newest(worker: Worker) -> str:
    """The id of the row inserted last."""
    return str(worker.sql("SELECT id FROM tasks ORDER BY created_at DESC LIMIT 1")[0]["id"])


def comfy_processes(worker: Worker) -> list[psutil.Process]:
    """What `ps aux | grep ComfyUI` finds below the worker, by the path that it is started with."""
    mark = os.path.join(worker.environ["COMFY_PATH"], "main.py")
    found = []
    for process in worker.family():
        try:
            if mark in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def artifacts(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What a finished row says of its files."""
    return list(row["result_data"]["artifacts"])
