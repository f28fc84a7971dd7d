"""Starts a process in its sandbox. For a caller with one thread only: code runs between fork and exec."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from dataclasses import dataclass

from wan2gp.cgroups import Group
from wan2gp.processes import die_with_parent
from wan2gp.profile import Layer, Profile
from wan2gp.sandbox.enter import EXIT_NO_SANDBOX, Sandbox, Unsafe


@dataclass(frozen=True)
class Started:
    """A process."""

    process: subprocess.Popen[bytes]
    refused: dict[Layer, str]
    """By layer that its sandbox lacks, why."""
    notes: list[str]
    """What its sandbox does not open although a link or a list leads there, in a sentence each."""
    group: Group | None
    """Its control group, the caller's to end and remove."""


def start(command: list[str], boot: bytes, profile: Profile) -> Started:
    """Start ``command`` with ``boot`` on its standard input and both outputs in one pipe; it dies with its parent.

    Where the profile requires a layer that is refused, the process ends with :data:`~wan2gp.sandbox.enter.
    EXIT_NO_SANDBOX` and says so instead. Raises :class:`OSError` when there is no process or no such program, and
    :class:`subprocess.SubprocessError` for what nobody foresaw before the program.
    """
    sandbox, me = Sandbox(profile), os.getpid()
    ours, theirs = os.pipe2(os.O_CLOEXEC)

    def in_child() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.setsid()  # a signal to its own group is none to ours
        _enter(sandbox, theirs)
        die_with_parent(signal.SIGKILL, me)  # last: a change of user forgets it

    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **profile.environ},
            preexec_fn=in_child,
        )
    except (OSError, subprocess.SubprocessError):
        if sandbox.group is not None:
            sandbox.group.remove()
        raise
    finally:
        os.close(theirs)
        sandbox.close()
        report = _read(ours)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once: its exit says more
        process.stdin.write(boot)
        process.stdin.close()
    return Started(process, report, sandbox.notes, sandbox.group)


def _enter(sandbox: Sandbox, report: int) -> None:
    """In the child. Nothing is buffered: there is no orderly end between fork and exec."""
    try:
        sandbox.enter()
    except Unsafe as error:
        os.write(report, json.dumps(sandbox.refused).encode())
        _say_on_stdout(f"{error}\n")
        os._exit(EXIT_NO_SANDBOX)
    os.write(report, json.dumps(sandbox.refused).encode())


def _say_on_stdout(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(1, line.encode())


def _read(report: int) -> dict[Layer, str]:
    """What the child wrote before it became the program, or ended."""
    with os.fdopen(report, "rb") as pipe:
        text = pipe.read()
    return {Layer(name): reason for name, reason in json.loads(text or b"{}").items()}
