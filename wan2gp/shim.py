"""The tiny process between supervisor and handler: nothing below it outlives its purpose.

``multiprocess`` spawns :func:`main`. It leads its own session, adopts every orphan below itself, and ends everything
beneath when the handler ends, when the supervisor's end of the channel closes (also by ``kill -9``), or when told to.
The handler's output runs through it into a capped log file; its last lines go into the cause of death. It is the only
thing that can see every grandchild, so it must stay small: it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable
from subprocess import SubprocessError
from typing import Any, NoReturn, Protocol

from wan2gp.processes import adopt_orphans, descendants, die_with_parent, kill, kill_below, start_time, undumpable
from wan2gp.profile import Profile, decode_profile, encode_profile
from wan2gp.sandbox.start import Started, start

LOG_MAX_BYTES = 8 * 1024 * 1024
"""Size at which a handler's log is set aside as ``.1``, replacing the one before, bytes."""
TAIL_LINES = 30
"""How many last lines go into a cause of death."""
TAIL_LINE_BYTES = 2000
TAIL_BYTES, SURVIVORS = 14_000, 200
"""How much of them and of what survived a report holds: up to 16 KiB it is one write, which fits the channel whole, so
that nobody who reads it ever waits for the rest."""
READS_AT_ONCE = 16

UNCONFINED = encode_profile(Profile(mode="off"))

NOTES = 20
"""How many sentences about what the sandbox does not open go into the handler's log."""
EXIT_NO_PROGRAM = 127
"""Exit status that is told of a handler whose program there is not, as shells do."""
GROUP_KILL_S = 1.0
"""How long everybody in the handler's control group may take to end before they are looked for by parent, seconds."""

KILL = b"kill"
TERM = b"term"


class Channel(Protocol):
    """The part of a ``multiprocess`` connection that is used."""

    def fileno(self) -> int: ...
    def recv_bytes(self) -> bytes: ...
    def send_bytes(self, buf: bytes) -> None: ...


def main(
    channel: Channel,
    command: list[str],
    boot: bytes,
    log_path: str,
    supervisor: int,
    profile: str = UNCONFINED,
    hidden: tuple[bytes, ...] = (),
) -> None:
    """Run ``command`` with ``boot`` on its standard input, in the sandbox of ``profile`` (see
    :func:`~wan2gp.profile.encode_profile`), until it or the supervisor ends. ``hidden``: its tokens, which engines like
    to print when they are refused; the log gets ``***`` for each.

    Sends two JSON messages over ``channel``: ``{"started": pid, "at": ticks, "sandbox": {layer that it lacks: why}}``
    and ``{"exited": wait status, "tail": [lines], "survivors": [pids], "met": {limit: how often}}``, the last from
    :meth:`~wan2gp.cgroups.Group.hits`.
    """
    with contextlib.suppress(PermissionError):  # already a leader
        os.setsid()
    adopt_orphans()
    wake = _signals()
    die_with_parent(signal.SIGTERM, supervisor)
    log = CappedLog(log_path, hidden=hidden)
    _to_log(log)
    try:
        started = start(command, boot, decode_profile(profile))
    except (OSError, SubprocessError) as error:
        log.write(f"the handler's program cannot be started: {error}\n".encode())
        _leave(channel, log, EXIT_NO_PROGRAM << 8, {})
    undumpable()  # the boot document is in this memory, and what runs below may have the same user id
    handler = started.process
    for note in started.notes[:NOTES]:
        line = "".join(char if char.isprintable() else "?" for char in note)  # names of files are anybody's
        log.write(f"sandbox: {line}\n".encode(errors="replace"))
    _tell(channel, {"started": handler.pid, "at": start_time(handler.pid), "sandbox": started.refused})
    status = _Watch(channel, started, log, wake).until_the_end()
    met: dict[str, int] = {}
    if started.group is not None:
        met = started.group.hits()
        started.group.remove()
    _leave(channel, log, status, met)


def _leave(channel: Channel, log: CappedLog, status: int | None, met: dict[str, int]) -> NoReturn:
    survivors = descendants(os.getpid())[:SURVIVORS]
    _tell(channel, {"exited": status, "tail": log.tail(), "survivors": survivors, "met": met})
    log.close()
    sys.stdout.flush()
    os._exit(0)


def _signals() -> int:
    """Signals only wake the loop. Returns the descriptor to poll."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to answer
    return read


def _to_log(log: CappedLog) -> None:
    """The shim's own words, a traceback say, go where the handler's go."""
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)


def _tell(channel: Channel, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the supervisor is gone; so are we, soon
        channel.send_bytes(json.dumps(message).encode())


class CappedLog:
    """A log file of bounded size, and the last lines in memory."""

    def __init__(self, path: str, max_bytes: int = LOG_MAX_BYTES, hidden: Iterable[bytes] = ()) -> None:
        """``hidden``: what is replaced by ``***``, where a program prints it in one go."""
        self._path = path
        self._hidden = tuple(hidden)
        self._max_bytes = max_bytes
        self._lines: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._partial = b""
        self._open()

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._file).st_size

    def fileno(self) -> int:
        return self._file

    def write(self, data: bytes) -> None:
        """Append; a full disk costs the line, not the process."""
        for secret in self._hidden:
            data = data.replace(secret, b"***")
        if self._size + len(data) > self._max_bytes:
            self._turn_over()
        with contextlib.suppress(OSError):
            self._size += os.write(self._file, data)
        *lines, self._partial = (self._partial + data).replace(b"\r", b"\n").split(b"\n")
        self._partial = self._partial[-TAIL_LINE_BYTES:]
        self._lines.extend(line[-TAIL_LINE_BYTES:] for line in lines if line.strip())

    def _turn_over(self) -> None:
        """Set the full file aside. On a disk that allows nothing the old one goes on, from its beginning."""
        old = self._file
        try:
            os.replace(self._path, self._path + ".1")
            self._open()
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(old, 0)
            self._size = 0
            return
        os.close(old)
        _to_log(self)

    def tail(self) -> list[str]:
        """The last lines, without blank ones: as many as fit :data:`TAIL_BYTES` of JSON."""
        lines = [*self._lines, self._partial] if self._partial.strip() else [*self._lines]
        said = [line.decode(errors="replace") for line in lines]
        while sum(len(json.dumps(line)) + len(", ") for line in said) > TAIL_BYTES:
            del said[0]
        return said

    def close(self) -> None:
        os.close(self._file)


class _Watch:
    """One poll loop over the three things that can happen: output, a signal, the supervisor."""

    def __init__(self, channel: Channel, started: Started, log: CappedLog, wake: int) -> None:
        handler = started.process
        assert handler.stdout is not None
        self._channel = channel
        self._handler = handler
        self._group = started.group
        self._log = log
        self._wake = wake
        self._output = handler.stdout.fileno()
        self._status: int | None = None
        self._dying = False
        os.set_blocking(self._output, False)
        self._poll = select.poll()
        self._on: dict[int, Callable[[], None]] = {
            self._output: self._pump,
            wake: self._signalled,
            channel.fileno(): self._heard,
        }
        for descriptor in self._on:
            self._poll.register(descriptor, select.POLLIN)

    def until_the_end(self) -> int | None:
        """The handler's wait status, when nothing is left below."""
        while self._status is None and not self._dying:
            for descriptor, _ in self._poll.poll():
                self._on[descriptor]()
            self._reap()
        if self._group is not None:  # it starts nothing more, so that killing comes to an end
            self._group.kill(GROUP_KILL_S)
        kill_below(os.getpid(), self._reap)
        self._pump()
        return self._status

    def _pump(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(READS_AT_ONCE):  # so that a flood of output cannot keep an order to kill waiting
                data = os.read(self._output, 65536)
                if not data:
                    with contextlib.suppress(KeyError):
                        self._poll.unregister(self._output)
                    return
                self._log.write(data)

    def _signalled(self) -> None:
        numbers = os.read(self._wake, 512)
        if signal.SIGTERM in numbers or signal.SIGHUP in numbers:
            self._dying = True

    def _heard(self) -> None:
        try:
            word = self._channel.recv_bytes()
        except (EOFError, OSError):  # the supervisor is gone
            self._dying = True
            self._poll.unregister(self._channel.fileno())
            return
        if word == TERM:
            kill(self._handler.pid, signal.SIGTERM)
        else:
            self._dying = True

    def _reap(self) -> None:
        """Everything that fell to us; remembers the handler's own end."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._handler.pid:
                    self._status = status
                    self._handler.returncode = os.waitstatus_to_exitcode(status)
