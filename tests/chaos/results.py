"""A run in numbers, and the line of JSON that it is kept as."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.chaos.history import check
from tests.chaos.memory import quarters
from tests.chaos.records import History, Rule, Violation
from tests.chaos.times import Figures, Load, Times

LOST = frozenset({Rule.ACKNOWLEDGED.value, Rule.FINAL.value, Rule.RESCUED.value})
DOUBLED = frozenset({Rule.COMPLETED_ONCE.value, Rule.ONE_END.value, Rule.PUBLISHED.value})
STALE = frozenset({Rule.STALE.value, Rule.ALONE.value, Rule.ROBBED.value})
MIB = 2**20


@dataclass(frozen=True)
class Result:
    """One run, as it is kept. ``cell``: the fault that it was about, when it was about one. ``memory``: by role, the
    median of the first and the last quarter of the worker that grew most, MiB."""

    seed: int
    tasks: int
    workers: int
    rows: Mapping[str, int]
    faults: Mapping[str, int]
    attempts: int
    lost: int
    doubled: int
    stale: int
    violations: Mapping[str, int]
    times: Mapping[str, Times]
    memory: Mapping[str, tuple[float, float]]
    load: Load | None = None
    calm: Load | None = None
    cell: str = ""
    machine: str = ""
    at: float = 0.0


def result(
    seed: int,
    history: History,
    figures: Figures,
    violations: Sequence[Violation] | None = None,
    *,
    cell: str = "",
    machine: str = "",
    at: float = 0.0,
) -> Result:
    """A run in numbers. ``violations``: what was found, when more than the books have looked; None: they look now."""
    found = check(history) if violations is None else violations
    return Result(
        seed=seed,
        tasks=len(history.rows),
        workers=len({life.worker for life in history.lives}),
        rows=dict(Counter(row.status for row in history.rows)),
        faults=dict(Counter(f"{deed.name} {deed.victim}" for deed in history.deeds)),
        attempts=sum(1 for event in history.events if event.name == "claimed"),
        lost=_tasks(found, LOST),
        doubled=_tasks(found, DOUBLED),
        stale=_tasks(found, STALE),
        violations=dict(Counter(one.rule for one in found)),
        times=figures.times,
        memory=_memory(history),
        load=figures.load,
        calm=figures.calm,
        cell=cell,
        machine=machine,
        at=at,
    )


def _tasks(found: Iterable[Violation], rules: frozenset[str]) -> int:
    return len({one.task_id for one in found if one.rule in rules})


def _memory(history: History) -> dict[str, tuple[float, float]]:
    most: dict[str, tuple[float, float]] = {}
    for life in history.lives:
        for role, (first, last) in quarters(life).items():
            if role not in most or last - first > most[role][1] - most[role][0]:
                most[role] = (first, last)
    return {role: (round(first / MIB, 1), round(last / MIB, 1)) for role, (first, last) in sorted(most.items())}


def machine() -> str:
    """One line: processor, cores, memory, system, Python."""
    model = "unknown processor"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {system}"


def append(one: Result, path: Path) -> None:
    """Add a run to a file of lines of JSON. Raises :class:`OSError`."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line(one) + "\n")


def line(one: Result) -> str:
    """All of it, samples to the tenth of a millisecond, without a line break."""
    fields = asdict(one)
    for times in fields["times"].values():
        times["values"] = [round(value, 4) for value in times["values"]]
    return json.dumps(fields, sort_keys=True)


def parse(text: str) -> Result:
    """The run of a line. Raises :class:`ValueError` for what is none."""
    fields: Any = json.loads(text)
    try:
        fields["times"] = {name: Times(tuple(one["values"]), one["unseen"]) for name, one in fields["times"].items()}
        fields["memory"] = {role: (first, last) for role, (first, last) in fields["memory"].items()}
        for name in ("load", "calm"):
            fields[name] = None if fields[name] is None else Load(**fields[name])
        return Result(**fields)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"it is no run: {error!r}") from error


def counted(counts: Mapping[str, int]) -> str:
    """``3 kill handler, 1 cut network``."""
    return ", ".join(f"{counts[name]} {name}" for name in sorted(counts)) or "none"
