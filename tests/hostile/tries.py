"""What became of each try, in words that a test can compare."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

GOT_CHARS = 120
libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The peer answered, and said no."""


@dataclass(frozen=True)
class Loot:
    """A file that a vice passes off as its result: `path` is below its place."""

    path: str
    bytes: int
    sha256: str


@dataclass
class Tries:
    """`saw`: by try, the name of the error number that stopped it, or ``got …``."""

    saw: dict[str, str] = field(default_factory=dict)
    loot: list[Loot] = field(default_factory=list)

    def __call__(self, label: str, act: Callable[[], Any]) -> None:
        try:
            got = act()
        except Refused as refusal:
            self.saw[label] = f"refused: {refusal}"
        except OSError as error:
            self.saw[label] = errno.errorcode.get(error.errno or 0, f"{type(error).__name__}: {error}")
        else:
            self.saw[label] = f"got {got!r}"[:GOT_CHARS]


def checked(result: int, what: str = "") -> int:
    """What a function of the C library returned; raises its error."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
