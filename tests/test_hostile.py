"""Other people's code, in a handler and in a node of ComfyUI, tries to harm more than its task: each try is stopped, it
is shown by what, and the worker serves the next task."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest_db import PgServer
from tests.conftest_worker import eventually
from tests.hostile.victim import SECRET
from tests.hostile_worker import BUILTIN, IN_HANDLER, REAL, USER, Saw, Scene, code_folders, loot, scene
from wan2gp.sandbox import landlock

CLOSED = frozenset({"EACCES", "EPERM"})
UNKNOWN = frozenset({"ENOSYS", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"})
"""What a kernel says of a system call or a kind of socket that it does not have."""
ELSEWHERE = "EXDEV"
"""What Landlock says of a file that is to get a name in another directory."""
KERNEL = ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/1/oom_score_adj", "/sys/power/state")


pytestmark = pytest.mark.skipif(landlock.abi() < landlock.SCOPE_SINCE, reason="this kernel lacks parts of Landlock")


@pytest.fixture(scope="module", params=["handler", USER, BUILTIN, REAL])
def hostile(request: pytest.FixtureRequest, _pg_session: PgServer) -> Iterator[Scene]:
    with scene(request.param, _pg_session) as one:
        yield one


def all_stopped(saw: Saw, *words: str) -> None:
    """Every try ended in one of these."""
    allowed = {*CLOSED, *words}
    assert not {label: word for label, word in saw.items() if word not in allowed}


def secrets(hostile: Scene) -> dict[str, str]:
    return {"a result": str(hostile.data_dir / "outputs" / "secret"), "a key": str(hostile.home / ".ssh/id_ed25519")}


def test_it_reads_no_environment_of_another_process(hostile: Scene) -> None:
    all_stopped(hostile.saw("reads_environ", pids=hostile.pids()))


def test_it_reads_no_memory_and_takes_no_open_file_of_another_process(hostile: Scene) -> None:
    all_stopped(hostile.saw("reads_memory", pids=hostile.pids()))


def test_it_reads_no_database_no_spool_no_key_and_nothing_of_another_task(hostile: Scene) -> None:
    saw = hostile.saw("reads_files", files=loot(hostile), system={"the passwords": "/etc/shadow"})
    all_stopped(saw, ELSEWHERE)


def test_it_plants_nothing_where_others_would_run_or_trust_it(hostile: Scene) -> None:
    hostile.pids()  # the victim's home is there
    saw = hostile.saw("writes_files", folders=code_folders(hostile), spoilt=secrets(hostile))
    all_stopped(saw, ELSEWHERE)
    assert {Path(path).read_text() for path in secrets(hostile).values()} == {SECRET}


def test_it_reaches_no_other_host(hostile: Scene) -> None:
    all_stopped(hostile.saw("connects_out", **hostile.ears.ports), *UNKNOWN)
    assert hostile.ears.heard() == []


def test_it_reaches_its_own_servers_port_neither_there_nor_elsewhere(hostile: Scene) -> None:
    """The kernel knows ports and no addresses: all the world listens at 8188."""
    if hostile.kind in IN_HANDLER:
        pytest.skip("there is no server below this handler")
    port = hostile.worker.handler("comfy")["engine"]["port"]
    with socket.create_server(("127.0.0.2", port)) as theirs:
        own, other = ["127.0.0.1", port], ["127.0.0.2", port]
        all_stopped(hostile.saw("connects_out", hosts={"its own server": own, "another host": other}), *UNKNOWN)
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.accept()


def test_it_reaches_no_other_program_by_an_abstract_socket(hostile: Scene) -> None:
    all_stopped(hostile.saw("connects_abstract", abstract=hostile.ears.name))
    assert hostile.ears.heard() == []


def test_postgres_does_not_let_it_in(hostile: Scene) -> None:
    saw = hostile.saw("connects_database", postgres=hostile.postgres)
    all_stopped(saw, "refused: asks for a password (SCRAM)")


def test_the_supervisor_does_not_obey_it(hostile: Scene) -> None:
    control = str(hostile.run_dir / "control")
    saw = hostile.saw("connects_control", control=control, token=str(hostile.data_dir / "control.token"))
    assert saw["the token"] in CLOSED
    all_stopped(
        saw, "refused: it wants the token", "refused: nothing to answer", "refused: hung up", "EPIPE", "ECONNRESET"
    )
    assert hostile.worker.status()["worker"]["state"] == "running"


def test_it_opens_no_socket_into_the_kernel(hostile: Scene) -> None:
    all_stopped(hostile.saw("makes_sockets"), *UNKNOWN)


def test_it_kills_neither_its_parent_nor_the_supervisor_nor_a_stranger(hostile: Scene) -> None:
    pids = hostile.pids()
    parent = hostile.kind in IN_HANDLER  # ComfyUI's is its own launcher
    all_stopped(hostile.saw("kills", pids=pids, signal=int(signal.SIGKILL), parent=parent))
    assert hostile.stranger.poll() is None and hostile.pids() == pids


def test_it_gains_no_privilege_and_no_namespace(hostile: Scene) -> None:
    saw = hostile.saw("gains_privileges")
    sudo = {"refused: not installed", "refused: exit status 1"}
    assert saw["sudo"] in sudo
    all_stopped(saw, "ENOSYS", *sudo)


def test_it_opens_no_device_of_the_machine(hostile: Scene) -> None:
    kernel = [path for path in KERNEL if os.path.exists(path)]
    all_stopped(hostile.saw("opens_devices", terminal=hostile.terminal, kernel=kernel))


def test_it_leaves_no_control_group_and_lifts_no_limit(hostile: Scene) -> None:
    all_stopped(hostile.saw("escapes_cgroup"), "EROFS", "ENOENT", "none here")


def test_it_inherits_no_file_and_no_secret(hostile: Scene) -> None:
    saw = hostile.saw("inherits", data_dir=str(hostile.data_dir), words=["postgresql:", "password"])
    assert set(saw.values()) == {"refused: nothing of the supervisor's", "refused: no secret", "refused: no core dumps"}


def test_it_takes_no_limit_and_no_name_from_another_process(hostile: Scene) -> None:
    """Priorities and processors only with a user of its own: threads are given theirs by the same system calls."""
    saw = hostile.saw("disturbs", pids=hostile.pids())
    by_user = ("priority", "processors", "policy", "disk priority")
    all_stopped({label: word for label, word in saw.items() if label.split(", ")[1] not in by_user})
    if hostile.has_own_user():
        all_stopped(saw)


def test_it_changes_no_mode_and_no_owner_of_what_is_not_its_own(hostile: Scene) -> None:
    if not hostile.has_own_user():
        pytest.skip("handlers have the worker's own user here, who may change the modes of its files")
    all_stopped(hostile.saw("changes_modes", spoilt=secrets(hostile)))


def test_it_leaves_no_memory_behind(hostile: Scene) -> None:
    """EMFILE: the limit of what the queues of POSIX may hold together is nothing."""
    all_stopped(hostile.saw("leaves_memory", key=time.monotonic_ns() % 10**8), "ENOSYS", "EMFILE")


@pytest.mark.parametrize("how", ["link", "chain of links", "hard link", "moved", "copied", "behind a folder"])
def test_it_passes_off_no_file_of_another_task_as_its_result(hostile: Scene, how: str) -> None:
    refuses_loot(hostile, how, Path(loot(hostile)["another task's file"]))


@pytest.mark.long
@pytest.mark.parametrize("how", ["climbing", "absolute", "pipe", "device", "socket", "sparse"])
def test_it_passes_off_nothing_that_is_no_file_in_its_place(hostile: Scene, how: str) -> None:
    refuses_loot(hostile, how, Path(loot(hostile)["another task's file"]))


def test_it_passes_off_no_link_to_the_passwords(hostile: Scene) -> None:
    """Though it knows their size, and what they add up to."""
    refuses_loot(hostile, "link", Path("/etc/shadow"))


def refuses_loot(hostile: Scene, how: str, prey: Path) -> None:
    before = prey.read_bytes()
    sha256 = hashlib.sha256(before).hexdigest()
    row = hostile.ended(hostile.insert("returns_loot", how=how, loot=str(prey), bytes=len(before), sha256=sha256))
    assert row["status"] == "Failed"
    code = row["error_message"].split(":")[0]
    assert code in ("output.refused", "comfy.bad_output", "comfy.no_outputs", "handler.crashed"), row["error_message"]
    shown = [path.read_bytes() for path in (hostile.data_dir / "outputs").rglob("loot*")]
    assert prey.read_bytes() == before and before not in shown
    hostile.serves()


@pytest.mark.long
def test_its_flood_costs_itself_alone(hostile: Scene) -> None:
    hostile.ended(hostile.insert("floods", times=3000, router=str(hostile.run_dir / "router")))
    hostile.serves()
    assert not [line for line in hostile.worker.log.splitlines() if line.startswith("2026-01-01")]


def test_deaf_to_every_signal_it_ends_when_its_task_is_cancelled(hostile: Scene) -> None:
    task = hostile.insert("survives_sigterm", seconds=100)
    hostile.worker.running(task)
    eventually("it is deaf", lambda: list(hostile.data_dir.rglob("deaf")))
    family = {process.pid for process in hostile.worker.family()}
    hostile.worker.ctl("cancel", task)
    assert hostile.ended(task)["status"] == "Cancelled"
    hostile.serves()
    assert family - {process.pid for process in hostile.worker.family()}, "it was not ended"


def test_its_daemon_stays_in_the_sandbox_and_ends_with_it(hostile: Scene) -> None:
    saw = hostile.saw("leaves_daemon", secret=secrets(hostile)["a result"])
    daemon = int(saw["daemon"])
    assert psutil.pid_exists(daemon) and saw["its read"] in CLOSED
    assert hostile.worker.ctl("restart", hostile.handler).returncode == 0
    eventually("it is gone", lambda: not psutil.pid_exists(daemon))
    hostile.serves()
