"""Runs as a script, by its path: starts an engine, and ends whatever it started when it ends or its starter does.

Arguments: the number of a socket that keeps records apart, the starter's pid, and a port, or 0. The first record that
comes is the command, its parts divided by NUL; each later one asks for SIGTERM to the engine's group; end of file
orders the end of everything. What goes back: ``started <pid>`` and, at its end, ``exited <status>``, as ``subprocess``
counts it.

A custom node's processes change session and lose their parents. They fall to the nearest ancestor that adopts orphans,
so one must stay above the engine: this program, twice. The lower one watches the engine and the upper one the lower,
and each ends everything below when the other is gone: either may be killed. Neither shows the command in its own name,
so that who looks for the engine, or kills it by name, finds the engine alone.

With a port the engine may listen at that one and connect to none, by a layer of Landlock of its own: a layer knows
ports and no addresses, so an engine that could connect to its own port could to the same one of every other host.

It imports little, for it costs memory as long as the engine lives, and nothing of this package, whose interpreter it
may not share.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
ASK_VERSION, NET_PORT = 1, 2
BIND_TCP, CONNECT_TCP = 1, 2
PORTS_SINCE = 4
"""The ABI that brought ports, with Linux 6.7. Source: ``linux/landlock.h``, landlock(7)."""
CANNOT_CONFINE = 126
CANNOT_EXECUTE = 127
COMMAND_BYTES = 1 << 20
END_S = 5.0
"""How long what was killed may take to go. What has not is in an uninterruptible call of the kernel."""
PAUSE_S = 0.002
ENDS = {int(signal.SIGTERM), int(signal.SIGHUP)}


def main(channel: int, starter: int, port: int) -> NoReturn:
    """The upper one. Only its end matters to the starter, and that it comes after that of everything below."""
    os.set_inheritable(channel, False)
    wake = _wake_by_signals()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    _die_with(starter, signal.SIGTERM)
    upper = os.getpid()
    lower = os.fork()  # as this process has a single thread, no lock can be held for ever in the new one
    if lower == 0:
        _lower(channel, upper, port)
    os.close(channel)
    guard = Guard(lower, wake)
    guard.until_over()
    guard.end_below()
    sys.exit(0)


def _lower(channel: int, upper: int, port: int) -> NoReturn:
    wake = _wake_by_signals()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    _die_with(upper, signal.SIGTERM)
    command = os.fsdecode(os.read(channel, COMMAND_BYTES)).split("\0")
    if command == [""]:  # the starter is gone already
        sys.exit(0)
    child = _start(command, port)
    _say(channel, f"started {child}")
    guard = Guard(child, wake, channel, lambda status: _say(channel, f"exited {status}"))
    guard.until_over()
    guard.end_below()
    sys.exit(0)


def _start(command: list[str], port: int) -> int:
    """Returns when it has its own group, name and answers to signals."""
    parent = os.getpid()
    replaced, until_replaced = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.setsid()
        # It would inherit an ignored SIGINT from a worker started with `&`, and never stop cleanly.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        _die_with(parent, signal.SIGKILL)
        try:
            if port:
                _connect_nowhere(port)
        except OSError as error:
            _give_up(f"cannot keep {command[0]} from connecting: {error.strerror}", CANNOT_CONFINE)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            _give_up(f"cannot execute {command[0]}: {error.strerror}", CANNOT_EXECUTE)
    os.close(until_replaced)
    os.read(replaced, 1)
    os.close(replaced)
    return child


def _give_up(why: str, status: int) -> NoReturn:
    sys.stderr.write(f"{why}\n")
    sys.stderr.flush()
    os._exit(status)


def _connect_nowhere(port: int) -> None:
    """Let this process, and all it becomes and starts, listen at one TCP port and connect to none. Where Landlock is
    not to be had, or knows no ports, nothing happens: whoever made the sandbox has said so. Raises
    :class:`OSError`."""
    try:
        if _syscall(LANDLOCK_CREATE_RULESET, None, 0, ASK_VERSION) < PORTS_SINCE:
            return
    except OSError:
        return
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    handled = (ctypes.c_uint64 * 2)(0, BIND_TCP | CONNECT_TCP)  # nothing of files
    rule = (ctypes.c_uint64 * 2)(BIND_TCP, port)
    ruleset = _syscall(LANDLOCK_CREATE_RULESET, ctypes.byref(handled), ctypes.sizeof(handled), 0)
    _syscall(LANDLOCK_ADD_RULE, ruleset, NET_PORT, ctypes.byref(rule), 0)
    _syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _syscall(number: int, *arguments: Any) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    given = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *given)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Guard:
    """Above one child, of which it tells the end, and above all that falls to this process."""

    def __init__(
        self, child: int, wake: int, orders: int | None = None, ended: Callable[[int], None] = lambda status: None
    ) -> None:
        self._child = child
        self._wake = wake
        self._ended = ended
        self._over = False
        self._poller = select.poll()
        for descriptor in (wake, orders):
            if descriptor is not None:
                self._poller.register(descriptor, select.POLLIN)

    def until_over(self) -> None:
        """Returns when the child has ended, or everything is to end."""
        while not self._over:
            for descriptor, _ in self._poller.poll():
                said = _read(descriptor)
                if descriptor == self._wake:
                    self._over = self._over or not ENDS.isdisjoint(said)
                elif said:
                    _signal(os.killpg, self._child, signal.SIGTERM)
                else:
                    self._over = True
            self._reap()

    def end_below(self) -> None:
        """Kills until nothing is left: one may fork between the look and the signal, and the children of one that
        dies fall to us."""
        end = time.monotonic() + END_S
        while self._reap() and time.monotonic() < end:
            for pid in _children():
                _signal(os.kill, pid, signal.SIGKILL)
            time.sleep(PAUSE_S)

    def _reap(self) -> bool:
        """Takes in the dead. False when there is no child left."""
        try:
            while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                if found[0] == self._child:
                    self._over = True
                    self._ended(os.waitstatus_to_exitcode(found[1]))
        except ChildProcessError:
            return False
        return True


def _wake_by_signals() -> int:
    """Signals only wake. Returns the descriptor from which their numbers are read."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return read


def _die_with(parent: int, number: int) -> None:
    """Get a signal when the parent ends, or now when it has."""
    _prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        sys.exit(1)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _signal(send: Callable[[int, int], None], pid: int, number: int) -> None:
    try:
        send(pid, number)
    except (ProcessLookupError, PermissionError):  # it is gone, or a program with rights of its own
        return


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 512)
    except BlockingIOError:
        return b"\0"
    except OSError:  # the starter is gone, and with it what it had not read
        return b""


def _say(channel: int, words: str) -> None:
    try:
        os.write(channel, words.encode())
    except OSError:  # nobody is there to hear it, which the next look at the channel finds
        return


def _children() -> list[int]:
    """Ours, dead ones included."""
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:  # a kernel without that list
        return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _parent(entry) == me]


def _parent(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
