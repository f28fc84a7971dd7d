"""How `wan2gp-ctl` ends: its exit statuses, and the exception that carries one with its sentence."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """The exit statuses of `wan2gp-ctl`."""

    OK = 0
    FAILED = 1
    """The task failed, or the supervisor refused."""
    USAGE = 2
    """The command line, a file or the configuration cannot be used."""
    NO_SUPERVISOR = 3
    """No supervisor runs for the data directory, or it does not answer."""
    INTERRUPTED = 130
    """Ctrl-C."""


class CtlError(Exception):
    """Ends the program with ``exit_code``; the text is one sentence for a person."""

    def __init__(self, exit_code: Exit, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
