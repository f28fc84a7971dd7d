"""What a kernel or container refuses is told by name, and where it is required nothing is started."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest_worker import ROOT
from tests.sandboxed import can_change_user, confined, confined_command, profile_of
from wan2gp.profile import Layer, Profile, decode_profile, encode_profile
from wan2gp.sandbox import enter, probe
from wan2gp.sandbox.kernel import MACHINE, SECCOMP
from wan2gp.sandbox.landlock import abi

LANDLOCK = 444
OK = "say('ran', lambda: None)"
UNSAFE = "not started, since sandbox.mode is require and these layers are refused: "


def test_a_container_that_forbids_landlock(tmp_path: Path) -> None:
    seen = confined(profile_of(tmp_path), OK, without=[LANDLOCK])
    assert seen.answers == {"ran": "ok"}
    assert set(seen.refused) == {"files", "scope"}  # TCP is forbidden as a whole instead
    assert "Operation not permitted" in seen.refused["files"]
    some = confined(profile_of(tmp_path, tcp=(9,)), OK, without=[LANDLOCK])
    assert set(some.refused) == {"files", "scope", "tcp"}
    open_to_all = confined(profile_of(tmp_path, tcp=None), OK, without=[LANDLOCK])
    assert set(open_to_all.refused) == {"files", "scope"}


def test_a_container_that_forbids_filters(tmp_path: Path) -> None:
    seen = confined(profile_of(tmp_path), OK, without=[SECCOMP[MACHINE]])
    assert seen.answers == {"ran": "ok"}
    assert set(seen.refused) == {"system_calls"}
    older = confined(profile_of(tmp_path), OK, without=[SECCOMP[MACHINE]], abi=2)
    assert set(older.refused) == {"system_calls", "scope", "tcp", "files"}
    assert "6.2" in older.refused["files"]


MOVES = """
os.makedirs(sys.argv[1] + "/cache/tmp.pid_1/part")
open(sys.argv[1] + "/cache/tmp.pid_1/kernel", "w").close()
say("file", lambda: os.replace(sys.argv[1] + "/cache/tmp.pid_1/kernel", sys.argv[1] + "/cache/kernel"))
say("directory", lambda: os.rename(sys.argv[1] + "/cache/tmp.pid_1/part", sys.argv[1] + "/cache/part"))
say("link", lambda: os.link(sys.argv[1] + "/cache/kernel", sys.argv[1] + "/linked"))
"""


def test_a_kernel_whose_landlock_lets_nobody_move_files(tmp_path: Path) -> None:
    """Linux 5.13 to 5.18: every compiler's cache would end with `Invalid cross-device link`."""
    for version in (1, 2):
        (folder := tmp_path / str(version)).mkdir()
        seen = confined(profile_of(folder, tcp=(9,)), MOVES, folder, abi=version)
        assert set(seen.answers.values()) == {"ok"}, seen.answers
        assert set(seen.refused) == {"scope", "tcp", *(("files",) if version == 1 else ())}
    required = confined(profile_of(folder, mode="require"), OK, abi=1)
    assert required.status == enter.EXIT_NO_SANDBOX and "Linux 5.19" in required.refused["files"]
    assert "6.12" in required.refused["scope"] and "tcp" not in required.refused


def test_one_path_that_takes_no_rule_costs_nothing_but_itself(tmp_path: Path) -> None:
    """The files of name spaces are of a file system that no path leads to."""
    closed = tmp_path / "closed"
    closed.write_text("")
    (folder := tmp_path / "own").mkdir()
    profile = profile_of(folder, devices=("/dev/null", "/proc/self/ns/net"))
    seen = confined(profile, "say('closed', lambda: open(sys.argv[1]))", closed)
    assert seen.refused == {} and seen.answers == {"closed": "EACCES"}
    sandbox = enter.Sandbox(profile)
    sandbox.close()
    assert [note for note in sandbox.notes if note.startswith("/proc/self/ns/net is not granted: ")]


def test_a_gpu_without_the_device_that_cuda_would_make_is_told_of_with_the_remedy(tmp_path: Path) -> None:
    """Set-user-ID programs give nothing in a sandbox."""
    told = []
    for devices in (("/dev/nvidia0", "/dev/nvidiactl"), ("/dev/nvidia0", "/dev/nvidia-uvm"), ("/dev/nvidiactl",), ()):
        sandbox = enter.Sandbox(profile_of(tmp_path, devices=devices))
        sandbox.close()
        told.append([note for note in sandbox.notes if "nvidia-modprobe -u -c=0" in note])
    assert [len(notes) for notes in told] == [1, 0, 0, 0]


def test_a_container_that_forbids_to_change_users(tmp_path: Path) -> None:
    call = {"x86_64": 117, "aarch64": 147}[MACHINE]
    profile = profile_of(tmp_path, uid=65_321, gid=65_321, processes=77)
    seen = confined_command(profile, ["/bin/cat", "/proc/self/limits"], without=[call])
    said = "setresuid" if can_change_user() else "setgroups"
    assert set(seen.refused) == {"user"} and seen.refused["user"].startswith(said)
    assert not re.search(r"Max processes +77 ", seen.said), "the worker's own processes count there"


def test_a_handler_is_not_started_without_a_layer_that_is_required(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, mode="require", tcp=(9,))
    for missing, layers in (([LANDLOCK], {"files", "scope", "tcp"}), ([SECCOMP[MACHINE]], {"system_calls"})):
        seen = confined(profile, f"open({str(tmp_path / 'ran')!r}, 'w')", without=missing)
        assert seen.status == enter.EXIT_NO_SANDBOX
        assert set(seen.refused) == layers
        assert seen.said.startswith(UNSAFE) and all(f"{layer}: " in seen.said for layer in layers)
    assert not (tmp_path / "ran").exists()


def test_what_watches_keep_is_never_a_reason_not_to_start(tmp_path: Path) -> None:
    """A machine without control groups: told, and the watches over processes and memory take their place."""
    code = "import sys; from tests.test_sandbox_refused import without_groups; without_groups()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stderr == "" and json.loads(done.stdout) == [
        {"processes": "no control groups", "memory": "no control groups"},
        {"memory": "no control groups"},
        {"memory": "no control groups", "user": "refused", "processes": "no control groups"},
    ]


def without_groups() -> None:
    """In a process of its own: two sandboxes where the kernel has no control groups; the second gets no user either."""
    enter.cgroups.open_group = lambda *_: "no control groups"  # type: ignore[assignment]
    found = []
    for uid in (None, 65_321):
        sandbox = enter.Sandbox(Profile(mode="require", group="x", memory_bytes=2**30, uid=uid))
        sandbox._judge()
        found.append({str(layer.value): reason for layer, reason in sandbox.refused.items()})
        sandbox.close()
    sandbox._without_user("refused")
    found.append({str(layer.value): reason for layer, reason in sandbox.refused.items()})
    json.dump(found, sys.stdout)


def test_the_sandbox_may_be_left_out(tmp_path: Path) -> None:
    seen = confined_command(profile_of(tmp_path, mode="off", group="x"), ["/bin/cat", "/proc/self/status"])
    assert "NoNewPrivs:\t0" in seen.said and "Seccomp:\t0" in seen.said and seen.refused == {}


def test_the_probe_tells_what_a_start_would(tmp_path: Path) -> None:
    if abi() < 6:
        pytest.skip("Linux before 6.12")
    assert probe.missing(profile_of(tmp_path, tcp=(9,))) == {}
    assert probe.missing(profile_of(tmp_path, mode="require")) == {}


def test_the_probe_tells_what_is_refused_and_does_not_stop_there(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, mode="require", uid=2**32 - 1)  # no user can have that id
    missing = probe.missing(profile)
    assert set(missing) == {Layer.USER} and missing[Layer.USER]


def test_a_profile_survives_the_way_to_the_shim() -> None:
    profile = Profile(read=("/a b", "/ü"), tcp=None, uid=5, groups=(1, 2), environ={"A": "b"})
    assert decode_profile(encode_profile(profile)) == profile
    with pytest.raises(TypeError):
        decode_profile('{"nonsense": 1}')
