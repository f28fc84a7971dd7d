"""A process whose output is always read, whose end is seen at once, and which takes its descendants along."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

RING_LINES = 200
LINE_CHARS = 500
"""A longer line is cut in the ring; the log gets all of it."""
NOTED_LINES = 200
CHUNK_BYTES = 65536
TERM_GRACE_S = 1.0
"""ComfyUI dies at SIGTERM within 0.1 s; what has not is killed."""
REAP_S = 5.0
DRAIN_S = 1.0
_LAUNCHER = Path(__file__).with_name("launch.py")


class DrainedProcess:
    """Started in its own session, from the main thread: the death signal fires when the starting *thread* ends."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        environ: Mapping[str, str],
        log_fd: int = 1,
        notable: re.Pattern[str] | None = None,
    ) -> None:
        """Raises OSError when no process can be made. ``log_fd`` gets all output, byte by byte. Lines in which
        ``notable`` is found are kept in :attr:`noted` when they have long left the ring."""
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *command]
        self._process = subprocess.Popen(
            launcher,
            cwd=cwd,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._log_fd = log_fd
        self._ring: collections.deque[str] = collections.deque(maxlen=RING_LINES)
        self._partial = b""
        self._notable = notable
        self.noted: list[str] = []
        """The first lines that are notable, oldest first."""
        self.printed = 0
        """Lines so far, also those that left the ring."""
        self._drain = threading.Thread(target=self._read_all, name="comfy-output", daemon=True)
        self._drain.start()

    def exit_code(self) -> int | None:
        """As ``subprocess``: negative is a signal; None while it runs.

        Only looks: until :meth:`stop` the process stays a zombie, so that its id, which is its group's, is not given
        to a stranger who would be killed in its place.
        """
        if self._process.returncode is not None:
            return self._process.returncode
        seen = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if seen is None:
            return None
        return seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status

    def wait(self, timeout_s: float) -> int | None:
        """The exit code as soon as there is one, or None after ``timeout_s`` seconds."""
        if self._pidfd >= 0:
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            poller.poll(max(0, int(timeout_s * 1000)))
        return self.exit_code()

    def lines(self, count: int = RING_LINES) -> list[str]:
        """The last lines it printed, oldest first."""
        return list(self._ring)[-count:]

    def lines_since(self, printed: int) -> list[str]:
        """What it said after :attr:`printed` had that value, as far as the ring has it."""
        count = min(self.printed - printed, RING_LINES)
        return self.lines(count) if count > 0 else []

    def drained(self) -> None:
        """After its end: wait a moment for its last lines. A child of it may hold the pipe open for longer."""
        self._drain.join(DRAIN_S)

    def rss_bytes(self) -> int:
        """Resident memory of the process itself; 0 when it is gone."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def stop(self, grace_s: float = TERM_GRACE_S) -> None:
        """Ends it and all it started. Safe to call again, and for a process that ended by itself."""
        if self._process.returncode is not None:
            return
        family = self._descendants()
        if self.exit_code() is None and grace_s > 0:
            self._signal_group(signal.SIGTERM)
            self.wait(grace_s)
        # After the leader's death too: an ffmpeg that goes on alone would finish a file nobody wants.
        self._signal_group(signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(REAP_S)
        self._release()

    def _descendants(self) -> list[psutil.Process]:
        """Also those that made a session of their own, as long as their parents live."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.Error:
            return []

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _release(self) -> None:
        self._drain.join(DRAIN_S)
        if self._pidfd >= 0 and self._process.returncode is not None:
            os.close(self._pidfd)
            self._pidfd = -1

    def _read_all(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        with pipe:
            while chunk := os.read(pipe.fileno(), CHUNK_BYTES):
                self._log(chunk)
                self._keep(chunk)
        self._keep(b"\n")

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
