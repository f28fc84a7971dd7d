"""The same vices without a sandbox: what stops them elsewhere is the sandbox, and not that they cannot bite."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.conftest_db import PgServer
from tests.hostile_worker import Scene, code_folders, loot, scene

Prey = Callable[[Scene], Mapping[str, Any]]
OURS = frozenset({"our package", "our bytecode", "installed packages", "the tests"})
"""Not to be tried where it would work."""
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def free(_pg_session: PgServer) -> Iterator[Scene]:
    with scene("handler", _pg_session, WAN2GP_SANDBOX="off") as one:
        yield one


def pids(free: Scene) -> Mapping[str, Any]:
    return {"pids": free.pids()}


def planted(free: Scene) -> Mapping[str, Any]:
    return {"spoilt": {"a result": str(free.data_dir / "outputs" / "secret")}}


def folders(free: Scene) -> Mapping[str, Any]:
    free.pids()
    found = {label: path for label, path in code_folders(free).items() if label not in OURS}
    return {"folders": found, **planted(free)}


BITES: Mapping[str, tuple[Prey, tuple[str, ...]]] = {
    "reads_environ": (pids, ("victim environ", "stranger environ")),
    "reads_memory": (pids, ("victim mem", "stranger ptrace", "victim process_vm_readv", "stranger pidfd_getfd")),
    "reads_files": (
        lambda free: {"files": loot(free)},
        ("another task's file, opened", "the spool, moved here", "the database, hard link", "the user's key, O_PATH"),
    ),
    "writes_files": (folders, ("the spool, a file", "another handler's home, a file moved", "a result, removed")),
    "changes_modes": (planted, ("a result, mode", "a result, owner", "a result, times")),
    "connects_out": (
        lambda free: free.ears.ports,
        ("elsewhere, AF_INET", "elsewhere, fast open", "elsewhere, AF_INET datagram", "listens"),
    ),
    "connects_abstract": (lambda free: {"abstract": free.ears.name}, ("connects", "sends")),
    "connects_control": (
        lambda free: {"control": str(free.run_dir / "control"), "token": str(free.data_dir / "control.token")},
        ("the token",),
    ),
    "kills": (
        lambda free: {"pids": {"stranger": free.stranger.pid}, "signal": int(signal.SIGUSR1)},
        ("stranger, kill", "stranger, tgkill", "stranger, rt_sigqueueinfo", "stranger, by pidfd"),
    ),
    "disturbs": (pids, ("victim, limits", "victim, priority", "stranger, processors")),
    "gains_privileges": (lambda free: {}, ("new privileges", "a user namespace", "io_uring_setup", "keyctl")),
    "opens_devices": (lambda free: {"terminal": free.terminal}, ("the operator's terminal",)),
    "leaves_memory": (lambda free: {"key": free.stranger.pid}, ("System V memory", "System V semaphores")),
}


@pytest.mark.parametrize("vice", BITES)
def test_without_a_sandbox_it_bites(free: Scene, vice: str) -> None:
    prey, labels = BITES[vice]
    saw = free.saw(vice, **prey(free))
    assert not {label: saw[label] for label in labels if not saw[label].startswith("got")}
