"""What Postgres's error codes mean to a worker. Codes only: the texts are in the server's language."""

from __future__ import annotations

TRY_AGAIN = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: nothing was done, the same call may be made at once."""
NO_FUNCTION = frozenset({"42883", "3F000"})
GOING_DOWN = frozenset({"57P01", "57P02", "57P03"})
"""The session's server process, or the server, ends or has not started yet."""
STARTING = "57P03"
READ_ONLY = "25006"
CANCELED = "57014"
"""By a time limit of the server's, or by somebody."""
OVERDUE = frozenset({"25P03", "25P04"})
"""A time limit of the server's on transactions ended the session."""
NO_PERMISSION = "42501"
_UNAVAILABLE = ("08", "40", "53", "55", "57", "58", READ_ONLY, *OVERDUE)


def is_unavailable(state: str) -> bool:
    """Whether the same call may succeed later, without anybody mending it."""
    return state.startswith(_UNAVAILABLE)
