"""One child's processes: the shim that ``multiprocess`` spawns and the handler below it.

Must be used from one thread that lives as long as the supervisor: the shim's death signal fires when the *thread* that
spawned it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import multiprocess

from wan2gp import shim
from wan2gp.boot import Boot, encode_boot
from wan2gp.environment import SAFE_PATH
from wan2gp.processes import frozen, kill
from wan2gp.profile import Profile, encode_profile
from wan2gp.supervisor.kin import Kin

KILL_S = 3.0
"""How long a shim may take over a kill, which takes it milliseconds, before it is killed itself, seconds."""

UNCONFINED = Profile(mode="off")

LENGTH = struct.Struct("!i")
READ_BYTES = 65536

_spawn = multiprocess.get_context("spawn")


@dataclass(frozen=True)
class Death:
    """How a child ended. ``status`` is its wait status, or None when nobody saw it (its shim was killed)."""

    status: int | None
    tail: tuple[str, ...] = ()
    survivors: tuple[int, ...] = ()
    by_us: bool = False
    """True when we killed it."""
    met: tuple[str, ...] = ()
    """Limits of its control group that its processes met: ``memory``, ``processes``."""

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel ended it for what its processes held together."""
        return self.code == -signal.SIGKILL and "memory" in self.met and not self.by_us

    @property
    def code(self) -> int | None:
        """Exit status, or minus the signal's number."""
        return None if self.status is None else os.waitstatus_to_exitcode(self.status)

    def cause(self) -> str:
        """One sentence for a person."""
        code = self.code
        if code is None:
            return "its guardian process was killed"
        if code >= 0:
            return f"exit status {code}"
        if self.out_of_memory:
            return (
                "ended by the kernel, since its processes held as much memory as memory.hard_mib allows: give smaller "
                "inputs, or raise the limit on a machine that has the memory"
            )
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        if -code == signal.SIGKILL:
            return "killed by the supervisor" if self.by_us else f"killed by {name}: out of memory, or by hand"
        guess = {signal.SIGSEGV: "a crash in native code", signal.SIGABRT: "an abort in native code"}
        hint = guess.get(signal.Signals(-code)) if -code in set(signal.Signals) else None
        return f"ended by {name}" + (f": {hint}" if hint else "")

    def as_dict(self) -> dict[str, Any]:
        """For ``result_data.attempts`` and ``task_events``."""
        code = self.code
        return {
            "exit_code": code if code is not None and code >= 0 else None,
            "signal": -code if code is not None and code < 0 else None,
            "last_lines": list(self.tail),
        }


class Child:
    """A spawned shim and its handler. ``identity`` is its name on the wire, fresh for every spawn."""

    def __init__(self, name: str, incarnation: int) -> None:
        self.name = name
        self.incarnation = incarnation
        self.identity = f"{name}#{incarnation}#{secrets.token_hex(16)}".encode()
        self.pid: int | None = None
        """The handler's pid, once its shim has told it."""
        self.refused: dict[str, str] = {}
        """Layers of its sandbox that the kernel refused, with the reason, once its shim has told them."""
        self.started = time.monotonic()
        self._uid: int | None = None
        self.shim_pid = 0
        """0 before it is spawned."""
        self._killed_at: float | None = None
        self._report: dict[str, Any] | None = None
        self._unread = b""

    def spawn(
        self,
        *,
        target: str,
        endpoint: str,
        home: Path,
        log: Path,
        settings: dict[str, Any],
        warm: bool,
        secrets: dict[str, str],
        profile: Profile = UNCONFINED,
    ) -> None:
        """Start the processes; returns at once. ``home`` is there. Raises :class:`OSError` when the system has no
        process to give."""
        boot = Boot(self.name, target, endpoint, self.identity.decode(), str(home), settings, secrets, warm)
        command = [sys.executable, *SAFE_PATH, "-m", "wan2gp.handlers", self.name]
        self._uid = profile.uid
        self._channel, theirs = _spawn.Pipe()
        try:
            hidden = tuple(each.encode() for each in secrets.values() if each)
            self._start(theirs, (command, encode_boot(boot), str(log), os.getpid(), encode_profile(profile), hidden))
        except OSError:
            self._channel.close()
            raise
        finally:
            theirs.close()
        os.set_blocking(self._channel.fileno(), False)

    def _start(self, theirs: Any, arguments: tuple[Any, ...]) -> None:
        self._process = _spawn.Process(
            target=shim.main,
            args=(theirs, *arguments),
            name=f"shim-{self.name}",
            daemon=True,
        )
        self._process.start()
        assert self._process.pid is not None
        self.shim_pid = self._process.pid

    def owns(self, kin: Kin) -> bool:
        """True when that process is the handler, or below it. Raises :class:`OSError` where it cannot be told."""
        return kin.is_of(self.shim_pid, self._uid)

    def descriptors(self) -> tuple[int, int]:
        """What becomes readable when there is news (the channel) or the shim has died (its sentinel)."""
        return self._channel.fileno(), self._process.sentinel

    def news(self) -> Death | None:
        """Read what the shim has told. Returns the death once the handler, or the shim itself, has ended. Never waits:
        a shim may be stopped in the middle of a word."""
        for message in self._messages():
            if "started" in message:
                self.pid, self.refused = message["started"], message.get("sandbox", {})
            else:
                self._report = message
        if self._report is not None:
            report = self._report
            return Death(
                report["exited"],
                tuple(report["tail"]),
                tuple(report["survivors"]),
                self._killed_at is not None,
                tuple(report.get("met", ())),
            )
        return None if self._process.is_alive() else Death(None, by_us=self._killed_at is not None)

    def _messages(self) -> Iterator[dict[str, Any]]:
        """Those that are there whole: each comes behind its length, as ``multiprocess`` sends it."""
        with contextlib.suppress(OSError):  # nothing more for now, or a connection that is broken
            while data := os.read(self._channel.fileno(), READ_BYTES):
                self._unread += data
        while len(self._unread) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._unread)[0]
            if len(self._unread) < end:
                return
            message, self._unread = self._unread[LENGTH.size : end], self._unread[end:]
            yield json.loads(message)

    def terminate(self) -> None:
        """SIGTERM to the handler, by its shim."""
        self._send(shim.TERM)

    def kill(self) -> None:
        """SIGKILL to the handler and everything below it, by its shim; to the shim as well when that is frozen."""
        if self._killed_at is None:
            self._killed_at = time.monotonic()
        self._send(shim.KILL)
        if frozen(self.shim_pid):
            kill(self.shim_pid)

    def insist(self) -> None:
        """Kill the shim too when it has let a kill pass for :data:`KILL_S`: the kernel ends the handler with it, and
        what else was below falls to us."""
        if self._killed_at is not None and time.monotonic() - self._killed_at > KILL_S:
            kill(self.shim_pid)

    def _send(self, word: bytes) -> None:
        with contextlib.suppress(OSError):  # the shim is gone, and with it what it guarded
            self._channel.send_bytes(word)

    def release(self) -> None:
        """After its death: give the descriptors back."""
        self._process.join(1.0)
        if self._process.is_alive():  # it reported an end and hangs in its own: nothing is below it any more
            self._process.kill()
            self._process.join(1.0)
        self._channel.close()
        # A call of the kernel that hangs holds it: the search for strays meets it again, and so does the next life.
        with contextlib.suppress(ValueError):
            self._process.close()
