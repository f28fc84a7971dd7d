"""The sandbox as the shim applies it: told to the supervisor, and given back when all is over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest_worker import ROOT
from tests.sandboxed import profile_of
from tests.test_sandbox_user import can_limit
from wan2gp.cgroups import existing
from wan2gp.profile import Profile, encode_profile
from wan2gp.sandbox.enter import EXIT_NO_SANDBOX
from wan2gp.shim import EXIT_NO_PROGRAM

SUPERVISOR = """
import json, os, sys
import multiprocess
from wan2gp import shim
context = multiprocess.get_context("spawn")
if __name__ == "__main__":
    command, profile, log = json.loads(sys.argv[1])
    ours, theirs = context.Pipe()
    process = context.Process(target=shim.main, args=(theirs, command, b"the boot", log, os.getpid(), profile))
    process.start(); theirs.close()
    print(json.dumps({"shim": process.pid, "supervisor": os.getpid()}), flush=True)
    try:
        while True:
            print(ours.recv_bytes().decode(), flush=True)
    except EOFError:
        process.join()
"""


def told(tmp_path: Path, profile: Profile, *command: str) -> dict[str, Any]:
    """All that a supervisor hears of one handler, from its start to its end."""
    (tmp_path / "supervisor.py").write_text(SUPERVISOR)
    given = json.dumps([command, encode_profile(profile), str(tmp_path / "log")])
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = [sys.executable, str(tmp_path / "supervisor.py"), given]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 0, done.stderr
    heard: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        heard |= json.loads(line)
    return heard


def code_of(heard: dict[str, Any]) -> int:
    return os.waitstatus_to_exitcode(heard["exited"])


def test_the_boot_document_reaches_a_handler_in_its_sandbox(tmp_path: Path) -> None:
    heard = told(tmp_path, profile_of(tmp_path, group="told"), "/bin/sh", "-c", "cat; cat /etc/hostname /root/none")
    assert code_of(heard) == 1 and heard["tail"][0].startswith("the boot")
    assert "memory" not in heard["sandbox"] or heard["sandbox"]["memory"]
    assert heard["survivors"] == []


def test_a_handler_that_must_not_start_says_why_in_its_last_words(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, mode="require", uid=2**32 - 1, gid=2**32 - 1)  # nobody can have that id
    heard = told(tmp_path, profile, "/bin/touch", str(tmp_path / "ran"))
    assert code_of(heard) == EXIT_NO_SANDBOX and not (tmp_path / "ran").exists()
    assert set(heard["sandbox"]) == {"user"}
    assert heard["tail"] == [
        "not started, since sandbox.mode is require and these layers are refused: user: " + heard["sandbox"]["user"]
    ]


@pytest.mark.parametrize("program", ["/no/such/program", "/etc/hostname"])
def test_a_program_that_there_is_not_is_an_end_with_a_reason(tmp_path: Path, program: str) -> None:
    heard = told(tmp_path, profile_of(tmp_path), program)
    assert code_of(heard) == EXIT_NO_PROGRAM
    assert heard["tail"][-1].startswith("the handler's program cannot be started: ") and program in heard["tail"][-1]


def test_a_link_that_is_not_followed_is_named_in_the_handlers_log(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "a\nforged line").symlink_to("/")
    told(tmp_path, profile_of(tmp_path / "own", models=(str(models),)), "/bin/true")
    line = (tmp_path / "log").read_text()
    assert line == f"sandbox: {models}/a?forged line is not followed: / would open everything\n"


SWARM = """
import os, time
for _ in range(30):
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
"""


def test_what_a_handler_leaves_in_its_group_ends_with_it_and_so_does_the_group(tmp_path: Path) -> None:
    if not can_limit("processes"):
        pytest.skip("no control groups here")
    profile = profile_of(tmp_path, group="swarm", processes=50)
    heard = told(tmp_path, profile, sys.executable, "-Ic", SWARM)
    assert code_of(heard) == 0 and heard["survivors"] == [] and heard["sandbox"] == {}
    assert existing(heard["shim"], heard["supervisor"]) is None
