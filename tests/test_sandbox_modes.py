"""Modes, owners and attributes of files: their owner may change them wherever they lie, and Landlock sees nothing."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from tests.bpf_machine import verdict
from tests.sandboxed import PYTHON, SYSTEM, can_change_user, confined, confined_command, profile_of
from wan2gp.sandbox.kernel import MACHINE
from wan2gp.sandbox.seccomp import OWNERS_CALLS, Wishes, program
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
    return {name: NUMBERS[MACHINE][name] for name in OWNERS_CALLS if name in NUMBERS[MACHINE]}


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
    for modes, answer in ((False, 0), (True, None)):
        filtered = program(machine, Wishes(modes=modes))
        found = {name: NUMBERS[machine].get(name) for name in OWNERS_CALLS}
        known = [number for number in found.values() if number is not None]
        assert {verdict(filtered, ARCHITECTURES[machine], number) for number in known} == {answer}
        assert {name for name, number in found.items() if number is None} <= {"chmod", "chown", "lchown"}
