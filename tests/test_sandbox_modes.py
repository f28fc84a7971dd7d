"""Modes, owners and attributes of files: their owner may change them wherever they lie, and Landlock sees nothing."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.bpf_machine import verdict
from tests.sandboxed import PYTHON, SYSTEM, can_change_user, confined, confined_command, profile_of
from wan2gp.sandbox.kernel import MACHINE
from wan2gp.sandbox.seccomp import MODE_CALLS, OWNERS_CALLS, SCHEDULING_CALLS, Wishes, program
from wan2gp.sandbox.syscalls import NUMBERS

known_machine = pytest.mark.skipif(MACHINE not in NUMBERS, reason="no filter for this machine")
UID = 65_324
SETRESUID = {"x86_64": 117, "aarch64": 147}
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

CHANGES = """
import ctypes, json, shutil, subprocess, tarfile
prey, folder = sys.argv[1].encode(), sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
descriptor, there = os.open(prey, os.O_RDONLY), -100
name, value = b"user.spoilt", b"yes"
ways = {
    "chmod": (prey, 0o666), "fchmod": (descriptor, 0o666), "fchmodat": (there, prey, 0o666),
    "fchmodat2": (there, prey, 0o666, 0), "chown": (prey, 1, 1), "lchown": (prey, 1, 1), "fchown": (descriptor, 1, 1),
    "fchownat": (there, prey, 1, 1, 0), "setxattr": (prey, name, value, 3, 0), "lsetxattr": (prey, name, value, 3, 0),
    "fsetxattr": (descriptor, name, value, 3, 0), "setxattrat": (there, prey, 0, name, None, 0),
    "removexattr": (prey, b"user.kept"), "lremovexattr": (prey, b"user.kept"),
    "fremovexattr": (descriptor, b"user.kept"), "removexattrat": (there, prey, 0, b"user.kept"),
    "file_setattr": (there, prey, None, 0, 0),
}
def call(number, arguments):
    given = [ctypes.c_ulong(one) if isinstance(one, int) else one for one in arguments]
    if libc.syscall(ctypes.c_long(number), *given) < 0:
        raise OSError(ctypes.get_errno(), "")
for way, number in json.loads(sys.argv[3]).items():
    say(way, lambda: call(number, ways[way]))
"""
USES = """
import zipfile
os.mkdir(folder + "/made", 0o755)
source = folder + "/made/source"
with open(source, "w") as file:
    file.write("useful")
def same(path):
    assert open(path).read() == "useful"
say("copy", lambda: same(shutil.copy(source, folder + "/copy")))
say("copy_with_all", lambda: same(shutil.copy2(source, folder + "/copy2")))
say("tree", lambda: same(shutil.copytree(folder + "/made", folder + "/tree") + "/source"))
def packed():
    with tarfile.open(folder + "/all.tar", "w") as archive:
        archive.add(source, "source")
    with tarfile.open(folder + "/all.tar") as archive:
        archive.extractall(folder + "/unpacked")
    same(folder + "/unpacked/source")
say("archive", packed)
say("programs", lambda: subprocess.run(["cp", "-a", folder + "/made", folder + "/cp"], check=True))
say("install", lambda: subprocess.run(["install", "-m", "600", source, folder + "/in"], check=True))
def program():
    with os.fdopen(os.open(folder + "/program", os.O_WRONLY | os.O_CREAT, 0o755), "w") as file:
        file.write("#!/bin/sh\\nexit 0\\n")
    subprocess.run([folder + "/program"], check=True)
say("program", program)
"""


@pytest.fixture
def prey(tmp_path: Path) -> Path:
    """Ours, and readable to the handler."""
    place = tmp_path / "outputs"
    place.mkdir()
    (place / "result").write_text("result")
    (place / "result").chmod(0o600)
    return place / "result"


def state(path: Path) -> tuple[object, ...]:
    found = path.stat()
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, os.listxattr(path)


def calls() -> dict[str, int]:
    return {name: NUMBERS[MACHINE][name] for name in (*OWNERS_CALLS, *MODE_CALLS) if name in NUMBERS[MACHINE]}


def folder_of(tmp_path: Path) -> Path:
    made = tmp_path / "own"
    made.mkdir()
    return made


@known_machine
@pytest.mark.parametrize("refused", [False, True], ids=["no user of its own", "refused by the container"])
def test_the_supervisors_files_keep_their_modes_under_its_own_user_id(
    tmp_path: Path, prey: Path, refused: bool
) -> None:
    """It says yes and does nothing, since copies and archives end at any other answer; what they make can be used."""
    before, folder = state(prey), folder_of(tmp_path)
    profile = profile_of(folder, read=(*SYSTEM, *PYTHON, str(prey.parent)), uid=UID if refused else None)
    seen = confined(
        profile, CHANGES + USES, prey, folder, json.dumps(calls()), without=[SETRESUID[MACHINE]] if refused else []
    )
    assert set(seen.refused) == ({"user"} if refused else set())
    assert {name: word for name, word in seen.answers.items() if word != "ok"} == {}
    assert len(seen.answers) == len(calls()) + 7 and state(prey) == before


@known_machine
@pytest.mark.skipif(not can_change_user(), reason="only root can give user ids away")
def test_a_handler_with_a_user_id_of_its_own_may_change_its_own_files_and_no_others(tmp_path: Path) -> None:
    shared = Path("/dev/shm") / f"w2g-{os.getpid()}-modes"
    script = f"echo > {shared} && chmod 640 {shared} && stat -c %a {shared}; chmod 777 /usr/bin 2>&1"
    try:
        seen = confined_command(profile_of(tmp_path, write=("/dev/shm",), uid=UID, gid=UID), ["/bin/sh", "-c", script])
        assert seen.refused == {} and seen.said.startswith("640\n") and "not permitted" in seen.said
    finally:
        shared.unlink(missing_ok=True)


TERMINALS = """
import os, sys
def attempt(name, what):
    try:
        what()
        print(name, "ok")
    except OSError as error:
        print(name, error.strerror)
def talk():
    ours, theirs = os.openpty()
    os.write(theirs, b"hello")
    assert os.read(ours, 5) == b"hello"
attempt("own", talk)
attempt("another's", lambda: os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY))
"""


def test_the_terminal_that_the_worker_was_started_from_is_opened_by_no_handler(tmp_path: Path) -> None:
    """A pseudo-terminal of its own only under a user of its own, whom the others' modes keep out."""
    ours, theirs = os.openpty()
    python = shutil.which("python3", path="/usr/bin:/bin")
    try:
        for uid in (None, UID) if can_change_user() and python else (None,):
            profile = profile_of(tmp_path, uid=uid, terminals=("/dev/ptmx", "/dev/pts"))
            program = [python if uid else sys.executable, "-I", "-c", TERMINALS, os.ttyname(theirs)]
            seen = confined_command(profile, [str(part) for part in program])
            own = "ok" if uid else "Permission denied"
            assert seen.said == f"own {own}\nanother's Permission denied\n" and seen.refused == {}
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("machine", list(NUMBERS))
def test_both_machines_answer_all_of_them(machine: str) -> None:
    for own_user, answer in ((False, 0), (True, None)):
        filtered = program(machine, Wishes(own_user=own_user))
        found = {name: NUMBERS[machine].get(name) for name in (*OWNERS_CALLS, *MODE_CALLS)}
        known = [number for number in found.values() if number is not None]
        assert {verdict(filtered, ARCHITECTURES[machine], number) for number in known} == {answer}
        assert {name for name, number in found.items() if number is None} <= {"chmod", "chown", "lchown"}


@pytest.mark.parametrize("machine", list(NUMBERS))
def test_a_mode_passes_that_closes_nothing_to_the_owner_and_opens_nothing_to_others(machine: str) -> None:
    """0600 would shut the worker out of its own directories."""
    filtered, regular = program(machine, Wishes()), 0o100000
    for name, before in (("chmod", (0,)), ("fchmod", (0,)), ("fchmodat", (0, 0)), ("fchmodat2", (0, 0))):
        number = NUMBERS[machine].get(name)
        for mode in (0o600, 0o500, 0, 0o701, 0o755, 0o4700, 0o1700, 0o2700, 0o666) if number else ():
            assert verdict(filtered, ARCHITECTURES[machine], number or 0, *before, regular | mode) == 0, (name, mode)
        if number:
            assert verdict(filtered, ARCHITECTURES[machine], number, *before, regular | 0o700) is None


BUILD = """
set -e
cd "$1"
printf '#!/bin/sh\\necho runs\\n' > helper
chmod +x helper
./helper
cp /bin/true copied && ./copied
if command -v cc > /dev/null; then
    echo 'int main(void) { return 0; }' > a.c && TMPDIR="$1" cc a.c && ./a.out
fi
echo built
"""


@known_machine
def test_what_a_compiler_makes_and_what_is_made_executable_runs(tmp_path: Path) -> None:
    """Triton, downloaded helpers: without a user of its own too."""
    folder = folder_of(tmp_path)
    devices = ("/dev/null", "/dev/urandom")
    seen = confined_command(profile_of(folder, devices=devices), ["/bin/sh", "-c", BUILD, "sh", str(folder)])
    assert seen.said.endswith("runs\nbuilt\n") and seen.status == 0, seen.said


PRIORITIES = """
import ctypes, threading
libc = ctypes.CDLL(None, use_errno=True)
prey, numbers = int(sys.argv[1]), dict(zip(("ioprio_set", "sched_setattr"), map(int, sys.argv[2:4])))
def call(name, *arguments):
    if libc.syscall(ctypes.c_long(numbers[name]), *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
idle = os.sched_param(0)
say("priority", lambda: os.setpriority(os.PRIO_PROCESS, prey, 19))
say("priority_of_its_group", lambda: os.setpriority(os.PRIO_PGRP, os.getpgid(prey), 19))
say("policy", lambda: os.sched_setscheduler(prey, os.SCHED_IDLE, idle))
say("parameters", lambda: os.sched_setparam(prey, idle))
attributes = (ctypes.c_uint64 * 6)(48 | os.SCHED_IDLE << 32)
say("attributes", lambda: call("sched_setattr", prey, attributes, 0))
say("disk", lambda: call("ioprio_set", 1, prey, 3 << 13))
def own():
    os.setpriority(os.PRIO_PROCESS, 0, 7)
    os.sched_setscheduler(0, os.SCHED_BATCH, idle)
    call("ioprio_set", 1, 0, 3 << 13)
    assert (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)) == (7, os.SCHED_BATCH)
say("own", own)
def thread():
    processors = os.sched_getaffinity(0)
    running = threading.Thread(target=lambda: os.sched_setaffinity(threading.get_native_id(), processors))
    running.start()
    running.join()
say("processors_of_a_thread", thread)
"""


@known_machine
def test_the_supervisors_priorities_are_its_own_under_its_user_id(tmp_path: Path) -> None:
    """A worker that is slowed down loses its leases."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as prey:
        try:
            before = standing(prey.pid)
            numbers = (NUMBERS[MACHINE][name] for name in ("ioprio_set", "sched_setattr"))
            answers = confined(profile_of(tmp_path), PRIORITIES, prey.pid, *numbers).answers
            assert set(answers.values()) == {"ok"}, answers
            assert standing(prey.pid) == before
        finally:
            prey.kill()


def standing(pid: int) -> tuple[object, ...]:
    """How the kernel treats it."""
    return os.getpriority(os.PRIO_PROCESS, pid), os.sched_getscheduler(pid), psutil.Process(pid).ionice()


@pytest.mark.parametrize("machine", list(NUMBERS))
def test_priorities_of_others_are_not_set_on_either_machine(machine: str) -> None:
    def answer(name: str, *arguments: int, own_user: bool = False) -> int | None:
        filtered = program(machine, Wishes(own_user=own_user))
        return verdict(filtered, ARCHITECTURES[machine], NUMBERS[machine][name], *arguments)

    for name in SCHEDULING_CALLS:
        assert (answer(name, 0), answer(name, 77), answer(name, 77, own_user=True)) == (None, 0, None)
    for name, process in (("setpriority", 0), ("ioprio_set", 1)):
        assert {answer(name, process + kind, 0) for kind in (0, 1)} == {None}
        assert {answer(name, process, 77), answer(name, process + 1, 77), answer(name, process + 2, 0)} == {0}
        assert answer(name, process + 2, 5, own_user=True) is None
