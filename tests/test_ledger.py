"""What a supervisor writes down of its processes for its next life: the right ones die by it, and nobody else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest_worker import Worker, eventually
from wan2gp.processes import alive, boot_id, children, start_time
from wan2gp.supervisor.ledger import Ledger, already_here, end_strays

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing?connect_timeout=2"

Start = Callable[..., Worker]


@pytest.fixture
def stranger() -> Iterator[int]:
    """The pid of a process that has nothing to do with us, as far as the ledger does not say so."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        yield process.pid
        process.kill()


def noted(*entries: tuple[int, int], boot: str | None = None) -> str:
    return json.dumps({"boot": boot or boot_id(), "processes": entries})


def started(pid: int) -> int:
    found = start_time(pid)
    assert found is not None
    return found


@pytest.fixture
def ledger(tmp_path: Path) -> Callable[[str], Ledger]:
    def make(text: str) -> Ledger:
        (tmp_path / "children.json").write_text(text)
        return Ledger(tmp_path / "children.json")

    return make


def test_a_process_that_an_earlier_life_left_dies(ledger: Callable[[str], Ledger], stranger: int) -> None:
    assert ledger(noted((stranger, started(stranger)))).sweep() == 1
    eventually("it is dead", lambda: not alive(stranger))


def test_a_stranger_that_got_the_pid_lives(ledger: Callable[[str], Ledger], stranger: int) -> None:
    assert ledger(noted((stranger, started(stranger) - 1), (stranger, started(stranger) + 1))).sweep() == 0
    assert alive(stranger)


def test_a_stranger_that_got_pid_and_start_time_after_a_reboot_lives(
    ledger: Callable[[str], Ledger], stranger: int
) -> None:
    assert ledger(noted((stranger, started(stranger)), boot=str(uuid.uuid4()))).sweep() == 0
    assert alive(stranger)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[[1, 2]]", "null", "{}", '{"boot": 1}', '{"boot": "x", "processes": 3}']
)
def test_a_damaged_file_names_nobody_and_stops_no_start(ledger: Callable[[str], Ledger], text: str) -> None:
    assert ledger(text).sweep() == 0


@pytest.mark.parametrize("entry", [[1], ["x", 1], [None, None], {"pid": 1}, 7])
def test_a_damaged_entry_names_nobody(ledger: Callable[[str], Ledger], entry: Any, stranger: int) -> None:
    text = json.dumps({"boot": boot_id(), "processes": [[stranger, started(stranger)], entry]})
    assert ledger(text).sweep() == 0
    assert alive(stranger)


def test_what_is_written_is_what_the_next_life_ends(tmp_path: Path, stranger: int) -> None:
    Ledger(tmp_path / "children.json").write([stranger, 2**22 + 1])
    assert Ledger(tmp_path / "children.json").sweep() == 1
    eventually("it is dead", lambda: not alive(stranger))


def test_a_whole_family_dies_also_when_it_is_frozen(ledger: Callable[[str], Ledger]) -> None:
    program = "sleep 600 & setsid sleep 600 & wait"
    with subprocess.Popen(["sh", "-c", program], start_new_session=True) as shell:
        family = eventually("it has children", lambda: len(found := children(shell.pid)) == 2 and found)
        os.kill(shell.pid, signal.SIGSTOP)
        assert ledger(noted((shell.pid, started(shell.pid)))).sweep() == 1
        eventually("all are dead", lambda: not any(map(alive, [shell.pid, *family])))


def test_a_stray_of_another_session_dies_and_our_own_and_older_children_live(stranger: int) -> None:
    ours = already_here()
    with (
        subprocess.Popen(["sleep", "600"]) as same_session,
        subprocess.Popen(["sleep", "600"], start_new_session=True) as owned,
        subprocess.Popen(["sleep", "600"], start_new_session=True) as stray,
    ):
        assert end_strays(frozenset({owned.pid}), ours) == 1
        assert not alive(stray.pid)
        assert all(map(alive, (same_session.pid, owned.pid, stranger)))
        for process in (same_session, owned):
            process.kill()


def test_a_worker_ends_what_its_last_life_left_and_no_stranger(
    start_worker: Start, tmp_path: Path, stranger: int
) -> None:
    """Its first life begins over a damaged file. The stranger of the second has the pid of one of the dead."""
    ledger = tmp_path / "w1" / "children.json"
    ledger.parent.mkdir()
    ledger.write_text("{")
    first = start_worker()
    first.kill()
    eventually("all is gone", lambda: not first.survivors())
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as left:
        ledger.write_text(noted((stranger, started(stranger) - 100), (left.pid, started(left.pid))))
        again = start_worker()
        assert left.wait(10) == -signal.SIGKILL
    assert alive(stranger)
    assert "Ended 1 process(es) that an earlier life left" in again.log


def test_what_a_killed_life_told_of_itself_is_gone_though_the_next_one_does_not_get_up(
    tmp_path: Path,
) -> None:
    (tmp_path / "run.json").write_text("{}")
    command = [sys.executable, "-m", "wan2gp.supervisor", "--data-dir", str(tmp_path), "--database-url", NOWHERE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 5, done.stderr
    assert not (tmp_path / "run.json").exists()
