"""Runs as a script, by its path: readies a new process, then becomes ComfyUI. Arguments: parent's pid, command….

A separate program and no ``preexec_fn``: that one runs Python between fork and exec in a process that has threads,
where any lock may be held for ever. What is set here survives the exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
CANNOT_EXECUTE = 127


def main(parent: int, command: list[str]) -> None:
    """Returns only when the command cannot be executed."""
    # ComfyUI would inherit an ignored SIGINT from a worker started with `&`, and never stop cleanly.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the death signal was set
        sys.exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"cannot execute {command[0]}: {error.strerror}\n")
        sys.exit(CANNOT_EXECUTE)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
