"""How `wan2gp-ctl` ends: its exit statuses, the exception that carries one with its sentence, and what may not be in
that sentence."""

from __future__ import annotations

import enum
import re

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Terminal sequences (colours, titles, cursor) and control characters, except tab and line feed."""


def harmless(text: str) -> str:
    """Text from rows and logs, which other people's programs wrote, without terminal sequences."""
    return _ESCAPES.sub("", text)


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
        super().__init__(harmless(message))
        self.exit_code = exit_code
