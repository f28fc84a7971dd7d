"""Hears no signal that can be ignored, no cancellation and no request to leave."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Tries


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    """The handlers are set from the main thread, if this is it; the mask holds in any."""
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        try:
            signal.signal(number, signal.SIG_IGN)
        except ValueError:
            break
    (place / "deaf").touch()
    deadline = time.monotonic() + float(prey["seconds"])
    while time.monotonic() < deadline:
        time.sleep(0.05)
    tries.saw["deaf"] = "got to the end"
