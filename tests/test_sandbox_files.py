"""Files, by Landlock: a handler meets its own places and the system's, whatever way it takes to others."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.sandboxed import Seen, confined, profile_of

WAYS = """
own, other, launcher = sys.argv[1], sys.argv[2], os.getppid()
secret = other + "/secret"
def read(path):
    with open(path) as file:
        file.read(1)
def write(path, flags=os.O_WRONLY):
    os.close(os.open(path, flags))
say("read", lambda: read(secret))
say("list", lambda: os.listdir(other))
say("write", lambda: write(secret))
say("append", lambda: write(secret, os.O_WRONLY | os.O_APPEND))
say("empty", lambda: os.truncate(secret, 0))
say("empty_by_opening", lambda: write(secret, os.O_RDONLY | os.O_TRUNC))
say("make", lambda: write(other + "/new", os.O_WRONLY | os.O_CREAT))
say("make_directory", lambda: os.mkdir(other + "/directory"))
say("remove", lambda: os.unlink(secret))
say("rename_away", lambda: os.rename(secret, own + "/stolen"))
say("rename_over", lambda: (write(own + "/mine", os.O_WRONLY | os.O_CREAT), os.rename(own + "/mine", secret)))
say("hard_link", lambda: os.link(secret, own + "/linked"))
say("link", lambda: (os.symlink(secret, own + "/link"), read(own + "/link")))
say("link_in_path", lambda: (os.symlink(other, own + "/path"), read(own + "/path/secret")))
say("up_and_down", lambda: read(own + "/../other/secret"))
say("root_of_launcher", lambda: read(f"/proc/{launcher}/root{secret}"))
say("directory_of_launcher", lambda: os.listdir(f"/proc/{launcher}/cwd"))
say("environment_of_launcher", lambda: read(f"/proc/{launcher}/environ"))
say("memory_of_launcher", lambda: read(f"/proc/{launcher}/mem"))
say("descriptors_of_launcher", lambda: os.readlink(f"/proc/{launcher}/fd/0"))
say("devices", lambda: os.listdir("/dev"))
say("terminal", lambda: write("/dev/ptmx", os.O_RDWR))
say("own_file", lambda: write(own + "/file", os.O_RDWR | os.O_CREAT | os.O_TRUNC))
say("own_directory", lambda: (os.mkdir(own + "/a"), os.rename(own + "/file", own + "/a/file")))
say("own_fifo", lambda: os.mkfifo(own + "/fifo"))
say("own_device", lambda: os.mknod(own + "/node", 0o600 | 0o020000, os.makedev(1, 3)))
say("null", lambda: write("/dev/null", os.O_RDWR | os.O_CREAT | os.O_TRUNC))
say("system", lambda: read("/etc/passwd"))
import subprocess
print("a_child", subprocess.run([sys.executable, "-Ic", "open(" + repr(secret) + ")"], stderr=-3).returncode)
"""


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of the handler's own, and somebody's secret."""
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    (other / "secret").write_text("the secret")
    return own, other


def untouched(other: Path) -> bool:
    return [path.name for path in other.iterdir()] == ["secret"] and (other / "secret").read_text() == "the secret"


def assert_closed(seen: Seen) -> None:
    answers = dict(seen.answers)
    fine = {name: answers.pop(name) for name in ("own_file", "own_directory", "own_fifo", "null", "system")}
    assert set(fine.values()) == {"ok"}, fine
    assert answers.pop("own_device") in ("EPERM", "EACCES")
    assert answers.pop("a_child") == "1"
    assert set(answers.values()) <= {"EACCES", "EXDEV", "EPERM"}, answers


def test_a_handler_that_wants_what_lies_beside_its_own_place(places: tuple[Path, Path]) -> None:
    own, other = places
    seen = confined(profile_of(own), WAYS, own, other)
    assert seen.refused == {}
    assert_closed(seen)
    assert untouched(other)


def test_without_a_sandbox_every_one_of_those_ways_is_open(places: tuple[Path, Path]) -> None:
    """The control: else the test above would prove nothing."""
    own, other = places
    ways = ("read", "list", "write", "append", "make", "hard_link", "link", "link_in_path", "up_and_down")
    answers = confined(profile_of(own, mode="off"), WAYS, own, other).answers
    assert {answers[way] for way in ways} == {"ok"}
    assert answers["environment_of_launcher"] == "ok" and answers["a_child"] == "0"


def test_a_kernel_whose_landlock_does_not_know_of_truncation(places: tuple[Path, Path]) -> None:
    """Linux 5.19 to 6.1: the filter of system calls stands in."""
    own, other = places
    seen = confined(profile_of(own), WAYS, own, other, abi=2)
    assert set(seen.refused) == {"scope"}
    assert seen.answers["empty"] == seen.answers["empty_by_opening"] == "EACCES"
    assert seen.answers["own_file"] == "ok"  # what is opened for writing may be emptied
    assert untouched(other)


def test_a_path_that_does_not_exist_is_no_reason_to_fail(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, devices=("/dev/null", "/dev/no-such-gpu"), models=(str(tmp_path / "none"),))
    seen = confined(profile, "say('there', lambda: None)")
    assert (seen.answers, seen.refused) == ({"there": "ok"}, {})


def test_a_file_is_granted_alone(places: tuple[Path, Path]) -> None:
    own, other = places
    (other / "beside").write_text("")
    profile = profile_of(own)
    profile = profile_of(own, read=(*profile.read, str(other / "secret")))
    code = "say('it', lambda: open(sys.argv[1] + '/secret')); say('beside', lambda: open(sys.argv[1] + '/beside'))"
    assert confined(profile, code, other).answers == {"it": "ok", "beside": "EACCES"}


def test_what_a_path_named_socket_is_kept_from_by_its_mode_alone(places: tuple[Path, Path]) -> None:
    """Landlock does not see such a connection: sockets that handlers must not reach lie in closed directories, or ask
    for a word."""
    own, other = places
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(other / "socket"))
        server.listen()
        code = "import socket; say('connect', lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[1]))"
        assert confined(profile_of(own), code, other / "socket").answers == {"connect": "ok"}
