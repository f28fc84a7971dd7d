"""The machine's GPUs, as the driver's library tells them, or `nvidia-smi` where that cannot be opened.

A machine without one has none, and that is no error.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wan2gp.control import Gpu
from wan2gp.supervisor.control_census import Overdue, SingleFlight
from wan2gp.supervisor.nvml import MIB, Nvml

QUERY = "index,name,memory.used,memory.total,utilization.gpu"
LIMIT_S = 5.0
"""After so long `nvidia-smi` is killed, seconds: with a sick driver it hangs."""

WAIT_S = 1.0
"""How long a status waits for it, seconds."""

FRESH_S = 2.0
"""How long an answer is used again, seconds: starting the program costs tens of milliseconds of CPU."""

VRAM_FRESH_S = 15.0
"""The same for heartbeats, which come for ever: a little less than the time between two."""

MEMORY_WAIT_S = 0.5
"""How long the memory watch waits for the driver, seconds."""


class GpuReader:
    """Reads the GPUs at most every :data:`FRESH_S` seconds. Safe from several threads."""

    def __init__(
        self,
        program: str = "nvidia-smi",
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        nvml: Nvml | None = None,
    ) -> None:
        self._program = program
        self._nvml = nvml
        self._clock = clock
        self._wall_clock = wall_clock
        self._flight = SingleFlight(self._ask, "gpus")
        self._known: tuple[float, tuple[Gpu, ...]] | None = None
        self._vram: dict[str, Any] = {}
        self._vram_asked_at: float | None = None

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

    def vram(self) -> dict[str, Any]:
        """What a pod scaler reads of a worker's memory: ``vram_total_mb`` and ``vram_used_mb``, both MiB and over all
        GPUs that the driver shows, and ``vram_timestamp``, epoch seconds at which that was read.

        Never waits: it gives what was read last, and lets it be read anew in the background. Empty before the first
        answer and on a machine without a GPU; the time stands still while the driver does not answer.
        """
        now = self._clock()
        if self._vram_asked_at is None or now - self._vram_asked_at >= VRAM_FRESH_S:
            self._vram_asked_at = now
            with contextlib.suppress(RuntimeError):  # no thread can be started now: leases matter more
                self._flight.begin()
        return dict(self._vram)

    def _ask(self) -> tuple[Gpu, ...]:
        gpus = self._read_now()
        if gpus:
            self._vram = {
                "vram_total_mb": sum(gpu.memory_total_mib for gpu in gpus),
                "vram_used_mb": sum(gpu.memory_used_mib for gpu in gpus),
                "vram_timestamp": round(self._wall_clock(), 3),
            }
        return gpus

    def _read_now(self) -> tuple[Gpu, ...]:
        known = self._nvml.gpus() if self._nvml is not None else None
        return self._by_program() if known is None else known

    def _by_program(self) -> tuple[Gpu, ...]:
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


class GpuMemory:
    """Who holds how much of the GPUs' memory, for a thread that a sick driver must not hold up for long."""

    def __init__(self, nvml: Nvml) -> None:
        self._flight = SingleFlight(nvml.processes, "gpu-memory")
        self._whole = SingleFlight(nvml.gpus, "gpu-whole")

    def by_pid(self) -> Mapping[int, int] | None:
        """Bytes; None while nothing tells."""
        try:
            return self._flight.take(MEMORY_WAIT_S)
        except (Overdue, RuntimeError):  # the second: no thread can be started now
            return None

    def used(self) -> int | None:
        """Bytes of all GPUs that anybody holds; None while nothing tells."""
        try:
            gpus = self._whole.take(MEMORY_WAIT_S)
        except (Overdue, RuntimeError):
            return None
        return None if gpus is None else sum(gpu.memory_used_mib for gpu in gpus) * MIB


def parse_gpu(fields: Sequence[str]) -> Gpu | None:
    """One line of the answer; None when it is none (a MIG parent tells ``[N/A]`` for its load, a lost GPU an error)."""
    if len(fields) != 5 or not fields[0].strip().isdigit():
        return None
    index, name, used, total, load = (field.strip() for field in fields)
    if not (used.isdigit() and total.isdigit()):
        return None
    return Gpu(int(index), name, int(used), int(total), int(load) if load.isdigit() else None)
