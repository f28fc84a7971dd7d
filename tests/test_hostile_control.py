"""What hostile callers can do to the control socket: nothing that its other callers, or the supervisor, would feel."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.conftest_db import PgServer
from tests.conftest_worker import ROOT, eventually
from tests.control_doubles import PaperSupervisor
from tests.raw_zmtp import COMMAND, GREETING, MORE, connect, frame, join, ready
from tests.shared_worker import shared_worker
from wan2gp import control
from wan2gp.control_client import ControlClient
from wan2gp.ctl_exit import Exit
from wan2gp.processes import may_be_below, start_time
from wan2gp.rundir import control_endpoint
from wan2gp.supervisor import control_door
from wan2gp.supervisor.connections import HANDSHAKE_S
from wan2gp.supervisor.control_door import (
    CONNECTIONS_MAX,
    FRAMES_MAX,
    HELD_MAX_BYTES,
    INTRUSIONS,
    MESSAGE_MAX_BYTES,
    PER_PROCESS_MAX,
    STALLED_S,
    UNSENT_MAX_BYTES,
    ControlDoor,
)
from wan2gp.supervisor.control_server import below_us
from wan2gp.supervisor.ledger import already_here, came_before

MIB = bytes(1 << 20)
ASK = frame(b"1", MORE) + frame(b"token", MORE) + frame(b"{}")
CONNECT = """
import socket, sys
own = socket.socket(socket.AF_UNIX)
own.connect(sys.argv[1])
print(len(own.recv(64)))
"""
Message = tuple[int, list[bytes]]


class Gate:
    """A door with a clock of its own; no caller is the supervisor's unless `ours` is set."""

    def __init__(self, path: Path) -> None:
        self.now = 0.0
        self.endpoint = f"ipc://{path}/c"
        self.ours = False
        self.intruders: list[int] = []
        self.door = ControlDoor(self.endpoint, lambda pid: self.ours, self.intruders.append, lambda: self.now)
        self._open: list[socket.socket] = []

    def join(self) -> socket.socket:
        self._open.append(join(self.endpoint, b""))
        return self._open[-1]

    def connect(self) -> socket.socket:
        self._open.append(connect(self.endpoint))
        return self._open[-1]

    def hear(self) -> list[Message]:
        """All that has come: what a local socket was given is there at once."""
        heard: list[Message] = []
        for _ in range(50):
            heard += self.door.receive()
        return heard

    def pour(self, own: socket.socket, data: bytes) -> list[Message]:
        """Send all of it, or as much as is taken until it is closed."""
        heard: list[Message] = []
        own.setblocking(False)
        rest = memoryview(data)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while rest:
                with contextlib.suppress(BlockingIOError):
                    rest = rest[own.send(rest) :]
                heard += self.door.receive()
        own.settimeout(10)
        return heard + self.hear()

    def close(self) -> None:
        for own in self._open:
            own.close()
        self.door.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    path = Path(tempfile.mkdtemp(prefix="w2g-"))
    made = Gate(path)
    yield made
    made.close()
    shutil.rmtree(path)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[PaperSupervisor]:
    """One that tells its own descendants from others, as a real one does; this process is not below itself."""
    run_dir = Path(tempfile.mkdtemp(prefix="w2g-"))
    running = PaperSupervisor(tmp_path, run_dir, ours=below_us)
    yield running
    running.stop()
    shutil.rmtree(run_dir)


def closed(own: socket.socket) -> bool:
    """Whether the other end has closed it, after whatever it had sent."""
    with contextlib.suppress(ConnectionError):
        while own.recv(65536):
            pass
    return True


def status(supervisor: PaperSupervisor) -> control.WorkerStatus:
    with ControlClient(supervisor.endpoint, supervisor.token) as client:
        return client.call(control.StatusRequest(), control.StatusReply).worker


# -- who may come in -------------------------------------------------------------------------------------------------


def test_what_a_handler_starts_is_closed_at_the_door_and_counted(supervisor: PaperSupervisor) -> None:
    path = supervisor.endpoint.removeprefix("ipc://")
    done = subprocess.run([sys.executable, "-c", CONNECT, path], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0" or "ConnectionResetError" in done.stderr, done
    assert status(supervisor).turned_away == {"handler": 1}


def connecting(path: str) -> subprocess.Popen[str]:
    """A process of ours that connects once it is told to."""
    script = "input()" + CONNECT
    return subprocess.Popen([sys.executable, "-c", script, path], stdin=-1, stdout=-1, stderr=-1, text=True)


def test_what_was_there_before_the_supervisor_may_ask_and_what_came_later_may_not(tmp_path: Path) -> None:
    """An entry script starts sshd or a notebook, and then becomes the worker: their shells are the operator's."""
    run_dir = Path(tempfile.mkdtemp(prefix="w2g-"))
    path = control_endpoint(run_dir).removeprefix("ipc://")
    early = connecting(path)
    foreign = already_here()
    late = connecting(path)
    running = PaperSupervisor(tmp_path, run_dir, ours=lambda pid: below_us(pid) and not came_before(pid, foreign))
    try:
        assert int(early.communicate("\n", timeout=60)[0]) > 0
        said, error = late.communicate("\n", timeout=60)
        assert said.strip() == "0" or "ConnectionResetError" in error
        assert status(running).turned_away == {"handler": 1}
    finally:
        running.stop()
        shutil.rmtree(run_dir)


@pytest.mark.long
def test_a_shell_of_an_entry_script_that_became_the_supervisor_may_ask(
    tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer
) -> None:
    path = tmp_path_factory.mktemp("entry")
    os.mkfifo(path / "go")
    script = f'(cat {path}/go > {path}/job; sh {path}/job > {path}/out 2>&1; echo end >> {path}/out) & exec "$@"'
    with shared_worker(path, _pg_session, within=["/bin/sh", "-c", script, "sh"]) as worker:
        (path / "go").write_text(f"cd {ROOT} && {sys.executable} -m wan2gp.ctl --data-dir {worker.data_dir} ready")
        eventually("it has asked", lambda: (path / "out").exists() and "end" in (path / "out").read_text())
        assert (path / "out").read_text().startswith("ready")


def test_a_pid_that_was_used_again_is_not_the_one_that_came_before() -> None:
    own = os.getpid()
    at = start_time(own)
    assert came_before(own, frozenset({(own, at)})) and not came_before(own, frozenset({(own, (at or 0) + 1)}))


def test_ctl_says_that_it_was_turned_away_and_where_to_ask_instead(tmp_path: Path) -> None:
    run_dir = Path(tempfile.mkdtemp(prefix="w2g-"))
    running = PaperSupervisor(tmp_path, run_dir, ours=below_us)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "wan2gp.ctl", "--data-dir", str(tmp_path), "ready"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (
            done.returncode == Exit.FAILED and "ask from another shell" in done.stderr and "restart" not in done.stderr
        )
    finally:
        running.stop()
        shutil.rmtree(run_dir)


def test_one_that_cannot_be_told_from_a_handler_is_taken_for_one() -> None:
    own = os.getpid()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert may_be_below(child.pid, own)
    child.communicate(b"\n")
    assert may_be_below(child.pid, own), "it is gone, and may have given its connection to another"
    assert not any(may_be_below(pid, own) for pid in (own, os.getppid(), 1, 0))


def test_a_handler_that_connects_without_end_is_reported_and_one_that_tries_again_is_not(gate: Gate) -> None:
    gate.ours = True
    for _ in range(600):  # a minute of a socket of ZeroMQ
        gate.now += 0.1
        own = gate.connect()
        gate.hear()
        own.close()
    assert gate.intruders == []
    for _ in range(int(INTRUSIONS.burst) + 50):
        own = gate.connect()
        gate.hear()
        own.close()
    assert gate.intruders == [os.getpid()]
    gate.now += 0.1
    gate.connect()
    gate.hear()
    assert gate.intruders == [os.getpid()], "its flood is over, and another's single try is none"
    assert gate.door.turned_away == {"handler": 651 + INTRUSIONS.burst}


def test_a_process_with_more_connections_than_any_needs_leaves_room_for_others(gate: Gate) -> None:
    first = gate.join()
    held = [gate.connect() for _ in range(PER_PROCESS_MAX + 5)]
    gate.hear()
    assert all(closed(each) for each in held[PER_PROCESS_MAX - 1 :])
    assert gate.door.turned_away == {"too many of one process": 6}
    assert [frames for _, frames in gate.pour(first, ASK)] == [[b"1", b"token", b"{}"]]


def test_a_full_house_makes_room_for_whoever_asks(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_door, "PER_PROCESS_MAX", 10 * CONNECTIONS_MAX)
    waiting = gate.join()
    assert len(gate.pour(waiting, ASK)) == 1
    idle = []
    for _ in range(CONNECTIONS_MAX - 1):
        gate.now += 0.01
        idle.append(gate.join())
        gate.hear()
    gate.now += 0.01
    assert len(gate.pour(gate.join(), ASK)) == 1
    assert closed(idle[0]) and gate.door.turned_away == {"silent": 1}
    gate.door.send(1, [b"1", b"answer"])
    assert b"answer" in waiting.recv(4096)


def test_a_supervisor_without_descriptors_turns_callers_away_and_goes_on(gate: Gate) -> None:
    own = gate.join()
    gate.hear()
    waiting = gate.connect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        assert len(gate.pour(own, ASK)) == 1
        assert gate.door.turned_away == {"no descriptor": 1}
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert closed(waiting)
    assert len(gate.pour(gate.join(), ASK)) == 1


def test_one_whose_parents_cannot_be_looked_up_may_try_again(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> bool:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(gate.door, "_ours", refuse)
    own = gate.connect()
    assert gate.hear() == [] and closed(own)
    assert gate.door.turned_away == {"no descriptor": 1}


# -- what they say ---------------------------------------------------------------------------------------------------

ENDLESS = {
    "parts without end": frame(b"xx", MORE) * 10_000,
    "large parts without end": frame(MIB, MORE) * FRAMES_MAX,
    "a frame without end": b"\x02" + b"\xff" * 8,
    "a frame too long": b"\x02" + (MESSAGE_MAX_BYTES + 1).to_bytes(8, "big"),
    "parts too long together": frame(MIB, MORE) + b"\x02" + MESSAGE_MAX_BYTES.to_bytes(8, "big"),
    "a command": frame(b"\x04STOP", COMMAND),
    "heartbeats whose answers it leaves": frame(b"\x04PING\0\0", COMMAND) * 100_000,
}


@pytest.mark.parametrize("what", ENDLESS)
def test_an_endless_message_costs_its_sender_the_connection_alone(gate: Gate, what: str) -> None:
    other, own = gate.join(), gate.join()
    assert gate.pour(own, ENDLESS[what]) == []
    assert closed(own) and gate.door.turned_away == {"not the protocol": 1}
    assert len(gate.pour(other, ASK)) == 1


def test_half_messages_of_many_never_hold_more_than_is_given_to_them(gate: Gate) -> None:
    half = b"\x02" + MESSAGE_MAX_BYTES.to_bytes(8, "big") + bytes(MESSAGE_MAX_BYTES - (1 << 20))
    small = gate.join()
    gate.pour(small, ASK[:-1])
    for _ in range(HELD_MAX_BYTES // len(half) + 1):
        gate.pour(gate.join(), half)
    assert gate.door.turned_away == {"too much at once": 1}
    assert len(gate.pour(small, ASK[-1:])) == 1


def test_half_a_handshake_that_never_goes_on_is_not_waited_for(gate: Gate) -> None:
    halves = [b"", GREETING[:30], GREETING, GREETING + ready(b"")[:-1]]
    held = []
    for half in halves:
        held.append(gate.connect())
        gate.pour(held[-1], half)
    due = gate.door.due_s()
    assert due is not None and due <= HANDSHAKE_S
    gate.now += HANDSHAKE_S + 1
    assert gate.hear() == [] and all(closed(each) for each in held)
    assert gate.door.turned_away == {"no handshake": len(halves)}
    assert gate.door.due_s() is None


def test_half_a_message_that_never_goes_on_is_not_waited_for(gate: Gate) -> None:
    own, slow = gate.join(), gate.join()
    gate.pour(own, ASK[:-1])
    gate.pour(slow, ASK[:-2])
    gate.now += STALLED_S
    gate.pour(slow, ASK[-2:-1])
    due = gate.door.due_s()
    assert due is not None and due <= STALLED_S
    gate.now += 1
    assert gate.hear() == [] and closed(own)
    assert gate.door.turned_away == {"half a message": 1}
    assert len(gate.pour(slow, ASK[-1:])) == 1, "it goes on, if slowly"


def test_a_client_that_never_reads_its_answer_is_found_out(gate: Gate) -> None:
    own, other = gate.join(), gate.join()
    assert len(gate.pour(own, ASK)) == 1
    gate.door.send(1, [b"1", MIB])
    gate.now += STALLED_S + 1
    assert gate.hear() == [] and closed(own)
    assert gate.door.turned_away == {"does not read": 1}
    gate.door.send(1, [b"1", b"late"])
    assert len(gate.pour(other, ASK)) == 1


def test_answers_that_nobody_reads_have_a_limit_and_one_of_any_length_arrives(gate: Gate) -> None:
    own = gate.join()
    asked = len(gate.pour(own, ASK * 4))
    assert asked == 4
    for _ in range(4):
        gate.door.send(1, [b"1", bytes(UNSENT_MAX_BYTES // 2)])
    assert closed(own) and gate.door.turned_away == {"does not read": 1}


def test_a_flood_of_requests_is_taken_at_its_rate_and_the_rest_stays_with_its_sender(gate: Gate) -> None:
    own, other = gate.join(), gate.join()
    own.setblocking(False)
    heard = 0
    for _ in range(20):
        with contextlib.suppress(BlockingIOError):
            while True:
                own.send(ASK * 200)
        heard += len(gate.hear())
    assert heard <= control_door.RATE.burst
    assert len(gate.pour(other, ASK)) == 1
    due = gate.door.due_s()
    assert due is not None and 0 < due < 1


def test_a_socket_of_zeromq_with_heartbeats_is_answered_without_being_cut_off(supervisor: PaperSupervisor) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer, monitor = context.socket(zmq.DEALER), None
    try:
        dealer.setsockopt(zmq.HEARTBEAT_IVL, 20)
        dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5000)
        dealer.setsockopt(zmq.IDENTITY, b"me")
        monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        dealer.connect(supervisor.endpoint)
        for number in range(3):
            dealer.send_multipart([b"%d" % number, supervisor.token.encode(), control.encode(control.LogsRequest())])
            assert dealer.poll(10_000) and dealer.recv_multipart()[0] == b"%d" % number
            assert not monitor.poll(100)
        assert status(supervisor).turned_away == {}
    finally:
        dealer.disable_monitor()
        dealer.close(linger=0)
        context.destroy(linger=0)


# -- in real processes -----------------------------------------------------------------------------------------------


def test_callers_that_do_it_all_at_once_keep_nobody_else_waiting(supervisor: PaperSupervisor) -> None:
    held = [join(supervisor.endpoint, b"") for _ in range(4)]
    held += [connect(supervisor.endpoint) for _ in range(20)]
    with contextlib.suppress(ConnectionError):
        held[0].sendall(frame(b"xx", MORE) * 10_000)
    held[1].sendall(frame(b"1", MORE) + frame(supervisor.token.encode(), MORE))
    asked = frame(b"1", MORE) + frame(supervisor.token.encode(), MORE) + frame(control.encode(control.LogsRequest()))
    held[2].sendall(asked * 50)
    held[4].sendall(GREETING[:11])
    assert status(supervisor).turned_away == {"not the protocol": 1}
    assert supervisor.faults == []
    for own in held:
        own.close()
