"""What can go wrong with a Wan2GP, from the point of view of one who drives it. Knows nothing of tasks."""

from __future__ import annotations

import enum
from collections.abc import Sequence


class WanError(Exception):
    """Base of everything this package raises on purpose."""


class NotInstalled(WanError):
    """There is no Wan2GP in the directory, or no interpreter to run it; the message says which."""


class Abandoned(WanError):
    """Whoever waited for the start, or for an answer, no longer wants to."""


class Why(enum.Enum):
    """Why an engine does not start."""

    NO_CUDA = "no_cuda"
    """Its PyTorch finds no CUDA: built without, no driver, or no card."""
    IMPORT = "import"
    """A module of it, or of its environment, cannot be imported."""
    EXIT = "exit"
    """It ended its own process: its versions do not fit together, or it refused its arguments."""
    SLOW = "slow"
    """It lives, and was not ready in time."""
    REFUSED = "refused"
    """The kernel did not let the process be made."""


class Unavailable(WanError):
    """The engine does not start here, and will not at the next attempt either, except where ``why`` is
    ``Why.SLOW`` or ``Why.EXIT`` by a signal. ``tail``: the last lines it printed."""

    def __init__(self, why: Why, cause: str, tail: Sequence[str] = ()) -> None:
        super().__init__(cause)
        self.why = why
        self.tail = tuple(tail)


class Gone(WanError):
    """The engine's process ended while an answer was waited for. ``code`` as ``subprocess`` counts it."""

    def __init__(self, code: int, tail: Sequence[str] = ()) -> None:
        super().__init__(f"the engine's process ended: {describe_exit(code)}")
        self.code = code
        self.tail = tuple(tail)


class BadWord(WanError):
    """The engine's process said something that is not of the protocol, or nothing for too long. It is of no use."""


class AnswerTooLong(WanError):
    """What the engine says of a model is longer than a line may be."""


class RequestTooLong(WanError):
    """The settings are longer than a line may be."""


class UnknownModel(WanError):
    """The engine lists no model of that name."""


def describe_exit(code: int) -> str:
    """``exit code 3``, or ``killed by signal 9``."""
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
