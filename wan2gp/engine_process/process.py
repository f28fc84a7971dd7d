"""A process whose output is always read, whose end is seen at once, and which takes its descendants along."""

from __future__ import annotations

import array
import collections
import contextlib
import fcntl
import os
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from wan2gp.engine_process.family import below, children

RING_LINES = 200
LINE_CHARS = 500
"""A longer line is cut in the ring; the log gets all of it."""
NOTED_LINES = 200
CHUNK_BYTES = 65536
TERM_GRACE_S = 1.0
"""An idle engine dies at SIGTERM within 0.1 s; what has not is killed."""
REAP_S = 5.0
CATCH_UP_STEP_S = 0.005
LAUNCH_S = 30.0
"""How long the launcher, which takes a few hundredths, may take to start the command, seconds."""
DRAIN_S = 1.0
RECORD_BYTES = 64
_LAUNCHER = Path(__file__).with_name("launch.py")


class DrainedProcess:
    """Started in its own session, from the main thread: the death signal fires when the starting *thread* ends.

    Between it and this process stands the launcher (see ``launch.py``), which ends all that it started when it ends.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        environ: Mapping[str, str],
        log_fd: int = 1,
        notable: re.Pattern[str] | None = None,
        pass_fds: Sequence[int] = (),
        only_port: int = 0,
    ) -> None:
        """Raises OSError when no process can be made. ``log_fd`` gets all output, byte by byte. Lines in which
        ``notable`` is found are kept in :attr:`noted` when they have long left the ring. ``pass_fds`` are open in the
        command, with the same numbers, and in the launchers above it. ``only_port``: the one TCP port that the command
        may listen at; it may connect to none then, where the kernel can see to that. 0: as this process."""
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._launcher = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_LAUNCHER), *map(str, (theirs.fileno(), os.getpid(), only_port))],
                cwd=cwd,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[theirs.fileno(), *pass_fds],
            )
        except OSError:
            self._channel.close()
            raise
        finally:
            theirs.close()
        self.pid = self._launch(command)
        """Of the command itself."""
        self._code: int | None = None
        self._closing = threading.Lock()
        self._log_fd = log_fd
        self._ring: collections.deque[str] = collections.deque(maxlen=RING_LINES)
        self._partial = b""
        self._notable = notable
        self.noted: list[str] = []
        """The first lines that are notable, oldest first."""
        self.printed = 0
        """Lines so far, also those that left the ring."""
        self._reading = False
        self._drain = threading.Thread(target=self._read_all, name="engine-output", daemon=True)
        self._drain.start()

    def _launch(self, command: Sequence[str]) -> int:
        """Hand the command over; the pid of what became of it."""
        try:
            self._channel.send(os.fsencode("\0".join(command)))
            self._channel.settimeout(LAUNCH_S)
            said = self._channel.recv(RECORD_BYTES).split()
        except OSError as error:
            said, why = [], str(error)
        else:
            why = "its launcher ended"
        if not said:
            self._launcher.kill()
            with self._launcher, self._channel:
                raise OSError(f"{command[0]} was not started: {why}")
        self._channel.setblocking(False)
        return int(said[1])

    def exit_code(self) -> int | None:
        """As ``subprocess``: negative is a signal; None while it runs."""
        with self._closing:
            return self._code if self._channel.fileno() < 0 else self._told()

    def _told(self) -> int | None:
        """What the launcher has said. Only looks, so that each who waits for the news finds it."""
        try:
            said = self._channel.recv(RECORD_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            said = b""
        # Without a last word the launcher was killed, and the kernel has killed the command with it.
        return int(said.split()[1]) if said else -signal.SIGKILL

    def wait(self, timeout_s: float) -> int | None:
        """The exit code as soon as there is one, or None after ``timeout_s`` seconds."""
        if (descriptor := self._channel.fileno()) >= 0:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            poller.poll(max(0, int(timeout_s * 1000)))
        return self.exit_code()

    def lines(self, count: int = RING_LINES) -> list[str]:
        """The last lines it printed, oldest first."""
        return list(self._ring)[-count:]

    def lines_since(self, printed: int) -> list[str]:
        """What it said after :attr:`printed` had that value, as far as the ring has it."""
        count = min(self.printed - printed, RING_LINES)
        return self.lines(count) if count > 0 else []

    def caught_up(self, within_s: float = DRAIN_S) -> None:
        """Wait until all that it has printed by now can be had by :meth:`lines`, for at most so many seconds: an answer
        that it gives in another way may be here before its words."""
        end_s = monotonic() + within_s
        while monotonic() < end_s and (self._waits_in_pipe() or self._reading):
            time.sleep(CATCH_UP_STEP_S)

    def _waits_in_pipe(self) -> bool:
        pipe = self._launcher.stdout
        if pipe is None or pipe.closed:
            return False
        waiting = array.array("i", [0])
        with contextlib.suppress(OSError, ValueError):  # it is closed meanwhile
            fcntl.ioctl(pipe.fileno(), termios.FIONREAD, waiting)
        return waiting[0] > 0

    def drained(self) -> None:
        """After its end: wait a moment for its last lines. A child of it may hold the pipe open for longer."""
        self._drain.join(DRAIN_S)

    def processes(self) -> list[psutil.Process]:
        """The command and all that it started, also what has changed its session or lost its parent."""
        found = []
        for watcher in children(self._launcher.pid):
            for pid in [*([watcher] if watcher == self.pid else ()), *below(watcher)]:
                with contextlib.suppress(psutil.Error):  # it ended meanwhile
                    found.append(psutil.Process(pid))
        return found

    def pids(self) -> list[int]:
        """Of :meth:`processes`, of which some may have ended meanwhile; none when all are gone."""
        return [process.pid for process in self.processes()]

    def stop(self, grace_s: float = TERM_GRACE_S) -> None:
        """Ends it and all it started. Safe to call again, and for a process that ended by itself."""
        if self._channel.fileno() < 0:
            return
        if self.exit_code() is None and grace_s > 0:
            with contextlib.suppress(OSError):  # the launcher is gone, and so is the command
                self._channel.send(b"term")
            self.wait(grace_s)
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)
        try:
            self._launcher.wait(REAP_S)
        except subprocess.TimeoutExpired:
            self._force()
        self._release()

    def _force(self) -> None:
        """The launcher is frozen, or the kernel does not let something below it go."""
        with contextlib.suppress(psutil.Error):
            upper = psutil.Process(self._launcher.pid)
            for process in [*upper.children(recursive=True), upper]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._launcher.wait(REAP_S)

    def _release(self) -> None:
        self._drain.join(DRAIN_S)
        with self._closing:
            self._code = self._told()
            self._channel.close()

    def _read_all(self) -> None:
        pipe = self._launcher.stdout
        assert pipe is not None
        with pipe:
            poller = select.poll()
            poller.register(pipe.fileno(), select.POLLIN)
            while poller.poll():
                self._reading = True  # before the pipe is empty: see caught_up
                chunk = os.read(pipe.fileno(), CHUNK_BYTES)
                if not chunk:
                    break
                self._log(chunk)
                self._keep(chunk)
                self._reading = False
        self._keep(b"\n")
        self._reading = False

    def _log(self, chunk: bytes) -> None:
        with contextlib.suppress(OSError):  # a log that cannot be written must not stop the reading
            while chunk:
                chunk = chunk[os.write(self._log_fd, chunk) :]

    def _keep(self, chunk: bytes) -> None:
        """Progress bars rewrite their line with a carriage return: each state counts as a line."""
        *complete, self._partial = (self._partial + chunk).replace(b"\r", b"\n").split(b"\n")
        self._partial = self._partial[-CHUNK_BYTES:]
        for raw in complete:
            line = raw.decode(errors="replace").rstrip()[:LINE_CHARS]
            if line:
                self._ring.append(line)
                self.printed += 1
                if self._notable is not None and len(self.noted) < NOTED_LINES and self._notable.search(line):
                    self.noted.append(line)


def monotonic() -> float:
    """The clock of this package, seconds."""
    return time.monotonic()
