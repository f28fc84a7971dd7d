"""What a kernel or container refuses is told by name, and where it is required nothing is started."""

from __future__ import annotations

import json
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


def test_a_container_that_forbids_to_change_users(tmp_path: Path) -> None:
    call = {"x86_64": 117, "aarch64": 147}[MACHINE]
    seen = confined(profile_of(tmp_path, uid=65_321, gid=65_321), OK, without=[call])
    said = "setresuid" if can_change_user() else "setgroups"
    assert set(seen.refused) == {"user"} and seen.refused["user"].startswith(said)


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
    ]


def without_groups() -> None:
    """In a process of its own: two sandboxes where the kernel has no control groups."""
    enter.cgroups.open_group = lambda *_: "no control groups"  # type: ignore[assignment]
    found = []
    for uid in (None, 65_321):
        sandbox = enter.Sandbox(Profile(mode="require", group="x", memory_bytes=2**30, uid=uid))
        sandbox._judge()
        found.append({str(layer.value): reason for layer, reason in sandbox.refused.items()})
        sandbox.close()
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
