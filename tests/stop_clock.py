"""How long something takes, without the time for which the machine kept it waiting."""

from __future__ import annotations

import time
from pathlib import Path

BLIND_S = 2.0
"""What is taken for that time where the kernel does not tell it, seconds."""


class StopClock:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._began, self._kept = time.monotonic(), _kept_waiting_s()

    def seconds(self) -> float:
        """Less the time in which some process wanted a processor or a disk and did not get it: on a crowded machine
        nothing can be said of a program's haste, and on an idle one it is exact."""
        kept = _kept_waiting_s()
        waited = BLIND_S if kept is None or self._kept is None else kept - self._kept
        return time.monotonic() - self._began - waited


def _kept_waiting_s() -> float | None:
    total = 0
    for kind in ("cpu", "io"):
        try:
            line = Path(f"/proc/pressure/{kind}").read_text().splitlines()[0]
        except OSError:
            return None
        total += int(line.partition("total=")[2])
    return total / 1e6
