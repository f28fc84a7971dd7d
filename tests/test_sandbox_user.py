"""What a handler is before any path or port: its user, its capabilities, its limits, its group of processes."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest_worker import ROOT, eventually
from tests.sandboxed import SYSTEM, can_change_user, confined, confined_command, profile_of
from wan2gp import cgroups
from wan2gp.processes import alive
from wan2gp.profile import Profile

root = pytest.mark.skipif(not can_change_user(), reason="only root can give user ids away")
UID, GROUP = 65_321, 65_000
"""Of nobody: no handler of a worker beside this test runs under it."""


def status_of(said: str) -> dict[str, list[str]]:
    """The lines of `/proc/self/status`."""
    return {name: words.split() for name, _, words in (line.partition(":") for line in said.splitlines())}


def test_nothing_of_the_supervisors_power_is_left(tmp_path: Path) -> None:
    seen = confined_command(profile_of(tmp_path), ["/bin/cat", "/proc/self/status"])
    status = status_of(seen.said)
    assert seen.refused == {}
    # Who is not root cannot empty the bounding set, and gets nothing out of it for no_new_privs.
    names = ("CapInh", "CapPrm", "CapEff", "CapAmb", *(["CapBnd"] if can_change_user() else []))
    assert {int(status[name][0], 16) for name in names} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"], status["Umask"]) == (["1"], ["2"], ["0077"])


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; those that pytest makes are ours alone."""
    made = Path(tempfile.mkdtemp(prefix="w2g-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@root
def test_a_program_that_would_give_its_user_more_gives_nothing(open_folder: Path) -> None:
    program = open_folder / "give-me-root"
    program.write_bytes(Path("/bin/cat").read_bytes())
    program.chmod(0o4755)
    profile = profile_of(open_folder, uid=UID, gid=UID)
    status = status_of(confined_command(profile, [str(program), "/proc/self/status"]).said)
    assert set(status["Uid"]) == {str(UID)}


@root
def test_a_handler_with_a_user_id_of_its_own(tmp_path: Path) -> None:
    """The kernel then keeps it from every file that is not for all, and from every process but its own."""
    profile = profile_of(tmp_path, uid=UID, gid=UID, groups=(GROUP,), processes=77)
    script = "cat /proc/self/status /proc/self/limits; kill -0 $PPID 2>&1; cat /etc/shadow 2>&1"
    seen = confined_command(profile, ["/bin/sh", "-c", script])
    status = status_of(seen.said)
    assert seen.refused == {}
    assert set(status["Uid"]) == set(status["Gid"]) == {str(UID)} and status["Groups"] == [str(GROUP)]
    assert re.search(r"Max processes +77 +77", seen.said)
    assert len(re.findall("Operation not permitted|Permission denied", seen.said)) == 2


@root
def test_a_fork_bomb_under_a_user_id_of_its_own_needs_no_control_group(tmp_path: Path) -> None:
    script = """
trap 'kill -9 0' EXIT
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 60 >/dev/null & echo $i; done 2>&1
"""
    seen = confined_command(profile_of(tmp_path, uid=UID + 1, gid=UID + 1, processes=8), ["/bin/sh", "-c", script])
    started = re.findall(r"^\d+$", seen.said, re.MULTILINE)
    assert (len(started), seen.status) == (7, -9) and "fork" in seen.said.lower()


SWARM = """
trap 'kill -9 0' EXIT
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do sleep 60 >/dev/null & echo $i; done 2>&1
echo > "$1"
for i in $(seq 100); do [ -e "$2" ] && break; sleep 0.1; done
"""


@root
def test_a_user_id_that_another_worker_has_too_takes_no_processes_from_it(open_folder: Path) -> None:
    """Two workers, or two containers, on one machine: the kernel counts a user's processes over all of them."""
    if not can_limit("processes"):
        pytest.skip("no control groups here")
    open_folder.chmod(0o777)
    profile = profile_of(open_folder, uid=UID + 3, gid=UID + 3, group="each", processes=20)
    marks = [str(open_folder / name) for name in ("one", "two")]
    with ThreadPoolExecutor(2) as workers:
        commands = [["/bin/sh", "-c", SWARM, "sh", *order] for order in (marks, marks[::-1])]
        found = list(workers.map(lambda command: confined_command(profile, command), commands))
    assert [len(re.findall(r"^\d+$", seen.said, re.MULTILINE)) for seen in found] == [14, 14]
    assert [(seen.status, seen.refused) for seen in found] == [(-9, {})] * 2


PARENT = """
import os, signal, sys
from wan2gp.profile import Profile
from wan2gp.sandbox.start import start
uid = int(sys.argv[1])
started = start(["/bin/sleep", "600"], b"", Profile(read=("/usr", "/lib", "/lib64", "/bin"), uid=uid, gid=uid))
print(started.process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@root
def test_a_handler_of_another_user_still_dies_with_its_parent(tmp_path: Path) -> None:
    """A change of user makes the kernel forget that wish, so it is made again behind it."""
    done = subprocess.run([sys.executable, "-c", PARENT, str(UID + 2)], stdout=subprocess.PIPE, timeout=30, cwd=ROOT)
    pid = int(done.stdout)
    eventually("the handler is gone", lambda: not alive(pid))


def test_a_fork_bomb_meets_its_own_limit(tmp_path: Path) -> None:
    code = """
def fork():
    if os.fork() == 0:
        import time; time.sleep(600)
for _ in range(40):
    answer = attempt(fork)
    if answer != "ok":
        break
print("fork", answer)
import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.killpg(0, signal.SIGTERM)
"""
    if not can_limit("processes"):
        pytest.skip("no control groups here")
    seen = confined(profile_of(tmp_path, group="bomb", processes=20), code)
    assert (seen.answers, seen.refused) == ({"fork": "EAGAIN"}, {})


def test_no_process_runs_before_it_is_in_its_control_group(tmp_path: Path) -> None:
    """It enters by itself before it is the program, under whatever user: what it starts cannot be outside."""
    if not (can_limit("processes") and can_limit("memory")):
        pytest.skip("no control groups here")
    for uid in (None, UID) if can_change_user() else (None,):
        profile = profile_of(tmp_path, group="inside", processes=20, memory_bytes=2**30, uid=uid)
        seen = confined_command(profile, ["/bin/sh", "-c", "cat /proc/self/cgroup"])
        inside = [line.split(":")[1] for line in seen.said.splitlines() if "/inside-" in line]
        assert seen.refused == {}
        assert inside == [""] or {"memory", "pids"} <= set(",".join(inside).split(","))


def can_limit(what: str) -> bool:
    group = cgroups.open_group("probe", 2**30, 100, os.getpid())
    if isinstance(group, str):
        return False
    group.remove()
    return what not in group.missing


LIMITS = """
import resource
say("large", lambda: os.ftruncate(os.open(sys.argv[1] + "/large", os.O_RDWR | os.O_CREAT), 2**21))
say("fits", lambda: os.ftruncate(os.open(sys.argv[1] + "/fits", os.O_RDWR | os.O_CREAT), 2**19))
opened = [os.dup(1) for _ in range(10)]
say("many", lambda: [os.dup(1) for _ in range(40)])
os.closerange(opened[0], 100)
print("core", *resource.getrlimit(resource.RLIMIT_CORE))
print("first_to_go", open("/proc/self/oom_score_adj").read().strip())
"""


def test_files_descriptors_and_core_dumps_have_limits(tmp_path: Path) -> None:
    code = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + LIMITS
    answers = confined(profile_of(tmp_path, open_files=40, file_bytes=2**20), code, tmp_path).answers
    assert answers == {"large": "EFBIG", "fits": "ok", "many": "EMFILE", "core": "0 0", "first_to_go": "500"}


def test_limits_of_the_worker_itself_are_not_raised(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = "import resource; print('files', *resource.getrlimit(resource.RLIMIT_NOFILE))"
    answers = confined(profile_of(tmp_path, open_files=hard + 10), code).answers
    assert answers == {"files": f"{hard} {hard}"}


def test_what_is_set_for_a_handler_is_what_it_and_its_children_see(tmp_path: Path) -> None:
    profile = Profile(read=SYSTEM, environ={"HOME": str(tmp_path), "TMPDIR": "/none"})
    seen = confined_command(profile, ["/bin/sh", "-c", "/bin/sh -c 'echo $HOME $TMPDIR'"])
    assert seen.said == f"{tmp_path} /none\n"
