"""On PYTHONPATH of a worker under test: a flush takes as long as the file `delay` beside this one says, seconds.

Read at every flush, so that a disk can become slow, and quick again, under a running process.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

_CONTROL = os.path.join(os.path.dirname(__file__), "delay")


def _slowed(flush: Callable[[int], None]) -> Callable[[int], None]:
    def flush_slowly(descriptor: int) -> None:
        with contextlib.suppress(FileNotFoundError, ValueError), open(_CONTROL) as file:
            time.sleep(float(file.read()))
        flush(descriptor)

    return flush_slowly


os.fsync = _slowed(os.fsync)  # type: ignore[assignment]
os.fdatasync = _slowed(os.fdatasync)
