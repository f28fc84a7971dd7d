"""Finding a supervisor: the lock, the run directory, run.json and the token, each against what once went wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from wan2gp.config import ConfigError, load_config
from wan2gp.processes import start_time
from wan2gp.rundir import (
    DataDirBusy,
    DataDirError,
    DataDirLock,
    RunDir,
    RunDirError,
    RunInfo,
    create_token,
    holder_of,
    read_run,
    read_token,
    remove_run,
    write_run,
)

HOLDER = """
import subprocess, sys
from pathlib import Path
from wan2gp.rundir import DataDirLock
lock = DataDirLock.take(Path(sys.argv[1]))
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A short path: pytest's own are too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="w2") as name:
        yield Path(name)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock of ``tmp_path``, with a child of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_second_supervisor_on_a_data_directory_is_refused_and_told_who_has_it(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(DataDirBusy, match=f"{tmp_path} is in use by the process {holder.pid}"):
        DataDirLock.take(tmp_path)


def test_wan2gp_ctl_sees_who_holds_the_lock_without_taking_it(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    found = holder_of(tmp_path)
    assert found is not None and found.pid == holder.pid


def test_kill_dash_nine_frees_the_lock_although_a_child_lives_on(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert holder_of(tmp_path) is None
    DataDirLock.take(tmp_path).release()


def test_a_data_directory_that_nobody_used_has_no_holder(tmp_path: Path) -> None:
    assert holder_of(tmp_path / "never") is None


def test_a_data_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirError, match="cannot use the data directory"):
        DataDirLock.take(tmp_path / "file" / "below")


def test_a_lock_file_that_was_removed_meanwhile_guards_nothing_and_is_taken_again(tmp_path: Path) -> None:
    first = DataDirLock.take(tmp_path)
    (tmp_path / "supervisor.lock").unlink()
    first.release()
    second = DataDirLock.take(tmp_path)
    assert holder_of(tmp_path) is not None
    second.release()


def _config(data_dir: Path, run_dir: Path):  # type: ignore[no-untyped-def]
    return load_config(flags={"data_dir": data_dir}, environ={"WAN2GP_RUN_DIR": str(run_dir)})


def test_the_run_directory_is_private_and_goes_away_again(tmp_path: Path, short_dir: Path) -> None:
    run_dir = RunDir.prepare(_config(tmp_path, short_dir / "r"))
    assert (short_dir / "r").stat().st_mode & 0o777 == 0o700
    assert run_dir.router == f"ipc://{short_dir}/r/router" and run_dir.control == f"ipc://{short_dir}/r/control"
    run_dir.remove()
    assert not (short_dir / "r").exists()


def test_two_data_directories_with_one_run_directory_do_not_steal_each_others_sockets(
    tmp_path: Path, short_dir: Path
) -> None:
    first = RunDir.prepare(_config(tmp_path / "a", short_dir / "r"))
    with pytest.raises(RunDirError, match="in use by another supervisor"):
        RunDir.prepare(_config(tmp_path / "b", short_dir / "r"))
    first.remove()
    RunDir.prepare(_config(tmp_path / "b", short_dir / "r")).remove()


def test_what_a_killed_supervisor_left_in_the_run_directory_is_no_obstacle(tmp_path: Path, short_dir: Path) -> None:
    (short_dir / "r").mkdir(mode=0o700)
    for name in ("router", "control", "lock"):
        (short_dir / "r" / name).write_text("stale")
    RunDir.prepare(_config(tmp_path, short_dir / "r")).remove()


def test_a_socket_path_that_linux_would_cut_is_refused_with_its_length(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"has 1\d\d bytes, Linux allows 107: set WAN2GP_RUN_DIR"):
        RunDir.prepare(_config(tmp_path, tmp_path / ("d" * 100)))
    assert not (tmp_path / ("d" * 100)).exists()


def test_a_link_that_somebody_laid_under_our_name_is_refused(tmp_path: Path, short_dir: Path) -> None:
    (short_dir / "elsewhere").mkdir(mode=0o700)
    (short_dir / "r").symlink_to(short_dir / "elsewhere")
    with pytest.raises(RunDirError, match="a link"):
        RunDir.prepare(_config(tmp_path, short_dir / "r"))


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away needs root")
def test_a_run_directory_of_somebody_else_is_refused(tmp_path: Path, short_dir: Path) -> None:
    (short_dir / "r").mkdir(mode=0o700)
    os.chown(short_dir / "r", 12345, -1)
    with pytest.raises(RunDirError, match="belongs to the user id 12345"):
        RunDir.prepare(_config(tmp_path, short_dir / "r"))


def test_wan2gp_run_dir_set_to_a_shared_folder_does_not_lock_others_out_of_it(tmp_path: Path, short_dir: Path) -> None:
    (short_dir / "r").mkdir()
    (short_dir / "r").chmod(0o1777)
    with pytest.raises(ConfigError, match="open to others"):
        RunDir.prepare(_config(tmp_path, short_dir / "r"))
    assert (short_dir / "r").stat().st_mode & 0o7777 == 0o1777


def test_run_json_comes_back_as_it_was_and_half_of_one_is_none(tmp_path: Path) -> None:
    ticks = start_time(os.getpid())
    assert ticks is not None and ticks > 0
    info = RunInfo(os.getpid(), ticks, "/run/x", "w1", "2026-01-01T00:00:00Z", "0.1.0", "embedded")
    write_run(tmp_path, info)
    assert read_run(tmp_path) == info
    (tmp_path / "run.json").write_text('{"pid": 1')
    assert read_run(tmp_path) is None
    remove_run(tmp_path)
    assert read_run(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_gone_has_no_start_time() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    assert start_time(process.pid) is None


def test_only_its_owner_can_read_the_token_and_each_life_has_its_own(tmp_path: Path) -> None:
    first = create_token(tmp_path)
    second = create_token(tmp_path)
    assert first != second and len(second) == 64 and read_token(tmp_path) == second
    assert (tmp_path / "control.token").stat().st_mode & 0o777 == 0o600
