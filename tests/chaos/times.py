"""Samples, loads and the names of what is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Times:
    """Samples in seconds, and how many faults gave none."""

    values: tuple[float, ...] = ()
    unseen: int = 0

    def at(self, share: float) -> float | None:
        """The smallest sample that at least ``share`` (0..1) of all samples do not exceed; None when there is none."""
        ordered = sorted(self.values)
        return ordered[max(math.ceil(share * len(ordered)), 1) - 1] if ordered else None

    def __add__(self, other: Times) -> Times:
        return Times(self.values + other.values, self.unseen + other.unseen)

    def __str__(self) -> str:
        missed = f", {self.unseen} not measured" if self.unseen else ""
        if not self.values:
            return f"none seen{missed}"
        said = " ".join(f"{name} {self.at(share):.3f}" for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)))
        return f"{said} max {max(self.values):.3f} s (n = {len(self.values)}{missed})"


@dataclass(frozen=True)
class Load:
    """How much was done, in how many seconds, with how many CPU seconds of all the workers (None: not measured)."""

    tasks: int
    seconds: float
    cpu_s: float | None = None

    @property
    def tasks_per_s(self) -> float:
        return self.tasks / self.seconds if self.seconds else 0.0

    @property
    def cpu_per_task_s(self) -> float | None:
        return self.cpu_s / self.tasks if self.cpu_s is not None and self.tasks else None


@dataclass(frozen=True)
class Figures:
    """``times`` by name, see :data:`NAMES`; ``load`` with the faults, ``calm`` the same without (None: not run)."""

    times: Mapping[str, Times] = field(default_factory=dict)
    load: Load | None = None
    calm: Load | None = None


NAMES: dict[str, str] = {
    "death of a child": "a handler, its shim or the courier was killed → the log says that it ended",
    "death of ComfyUI": "ComfyUI was killed → the log says that it stopped",
    "handler back": "a handler or its shim was killed → another process of it is ready for tasks",
    "handler again": "a handler or its shim was killed → the next task that waits for it begins",
    "handler done": "a handler or its shim was killed → its next task is completed",
    "ComfyUI again": "ComfyUI was killed → the next task that waits for it is given to it, less the server's own start",
    "ComfyUI start": "the server's own start: spawned → it answers",
    "worker lost": "a supervisor was killed or stood still → what it held is back in the queue, or runs again",
    "hang": "a task stands still → it is found, beyond the limit of its phase",
}
"""Every measurement, and from where to where it goes."""


def total(many: Iterable[Mapping[str, Times]]) -> dict[str, Times]:
    """The samples of many runs together, by name."""
    sums: dict[str, Times] = {}
    for times in many:
        for name, some in times.items():
            sums[name] = sums.get(name, Times()) + some
    return sums
