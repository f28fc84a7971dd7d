"""The machine's GPUs, as `nvidia-smi` tells them; a machine without one has none, and that is no error."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence

from wan2gp.control import Gpu
from wan2gp.supervisor.control_census import Overdue, SingleFlight

QUERY = "index,name,memory.used,memory.total,utilization.gpu"
LIMIT_S = 5.0
"""After so long `nvidia-smi` is killed, seconds: with a sick driver it hangs."""

WAIT_S = 1.0
"""How long a status waits for it, seconds."""

FRESH_S = 2.0
"""How long an answer is used again, seconds: starting the program costs tens of milliseconds of CPU."""


class GpuReader:
    """Reads the GPUs at most every :data:`FRESH_S` seconds. Safe from several threads."""

    def __init__(self, program: str = "nvidia-smi", clock: Callable[[], float] = time.monotonic) -> None:
        self._program = program
        self._clock = clock
        self._flight = SingleFlight(self._ask, "gpus")
        self._known: tuple[float, tuple[Gpu, ...]] | None = None

    def read(self) -> tuple[Gpu, ...]:
        """The GPUs; empty without a driver; the last known ones while it does not answer."""
        known = self._known
        if known is not None and self._clock() - known[0] < FRESH_S:
            return known[1]
        try:
            gpus = self._flight.take(WAIT_S)
        except Overdue:
            return known[1] if known is not None else ()
        self._known = (self._clock(), gpus)
        return gpus

    def _ask(self) -> tuple[Gpu, ...]:
        program = shutil.which(self._program)
        if program is None:
            return ()
        command = [program, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return ()
        return tuple(gpu for line in done.stdout.splitlines() if (gpu := parse_gpu(line.split(", "))) is not None)


def parse_gpu(fields: Sequence[str]) -> Gpu | None:
    """One line of the answer; None when it is none (a MIG parent tells ``[N/A]`` for its load, a lost GPU an error)."""
    if len(fields) != 5 or not fields[0].strip().isdigit():
        return None
    index, name, used, total, load = (field.strip() for field in fields)
    if not (used.isdigit() and total.isdigit()):
        return None
    return Gpu(int(index), name, int(used), int(total), int(load) if load.isdigit() else None)
