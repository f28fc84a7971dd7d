"""What became of a job: judged by its files and errors, never by the engine's word ``success``."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path


class Outcome(enum.Enum):
    OK = "ok"
    CANCELLED = "cancelled"
    OUT_OF_MEMORY = "out_of_memory"
    """Of the card or of the machine: which of the two the engine says is often wrong."""
    MISSING_WEIGHTS = "missing_weights"
    UNKNOWN_MODEL = "unknown_model"
    VALIDATION = "validation"
    """The engine refused the settings."""
    NO_OUTPUTS = "no_outputs"
    """It says that it succeeded, and there is no file."""
    FAILED = "failed"
    EXITED = "exited"
    """Its process ended."""
    BROKEN = "broken"
    """Its process can take no further job and was ended: a part of it still worked, or it was silent for too long."""


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    sentence: str
    """What happened, for the task's row; "" when it is OK."""
    files: tuple[Path, ...] = ()
    """What was made, complete, regular and below the job's own directory, in the engine's order. Also where the
    outcome is not OK."""
    errors: tuple[str, ...] = ()
    """The engine's own messages."""
    tail: tuple[str, ...] = ()
    """The last lines it printed during the job."""
    fresh: bool = False
    """The process is gone: the next job starts another."""
