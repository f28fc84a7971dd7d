"""What is told of runs: the verdict of one seed, a line of JSON that can be kept, and the table of many such lines.

``python -m tests.chaos.report FILE`` prints the table of ``docs/reliability.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.figures import NAMES, Figures, Load, Times, total
from tests.chaos.history import check
from tests.chaos.memory import quarters
from tests.chaos.records import History, Rule, Violation

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
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {system}"


# -- one run -------------------------------------------------------------------------------------------------------------


def verdict(one: Result, violations: Sequence[Violation]) -> str:
    """The text of one seed."""
    named = f"seed {one.seed}" + (f", {one.cell}" if one.cell else "")
    lines = [
        f"{named}: {one.tasks} tasks, {one.attempts} attempts, {one.workers} worker(s), {one.machine}",
        f"  faults: {_counted(one.faults)}",
        f"  rows: {_counted(one.rows)}",
    ]
    lines += [f"  {name}: {times}" for name, times in one.times.items()]
    lines += [f"  memory of {role}: {first:.0f} → {last:.0f} MiB" for role, (first, last) in one.memory.items()]
    lines += _loads(one)
    lines.append(f"  {len(violations)} violation(s)" if violations else "  no violation: nothing lost, nothing doubled")
    lines += [f"    {one.task_id or 'the run'}: {one.rule}: {one.sentence}" for one in violations]
    return "\n".join(lines) + "\n"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in sorted(counts)) or "none"


def _loads(one: Result) -> list[str]:
    return [f"  {name}: {_load(load)}" for name, load in (("load", one.load), ("without faults", one.calm)) if load]


def _load(load: Load) -> str:
    cpu = load.cpu_per_task_s
    cost = "" if cpu is None else f", {cpu * 1000:.0f} ms of CPU each"
    return f"{load.tasks} tasks in {load.seconds:.1f} s ({load.tasks_per_s:.1f} a second{cost})"


# -- lines -------------------------------------------------------------------------------------------------------------


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
    """The run of a line. Raises :class:`ValueError`, :class:`TypeError` or :class:`KeyError` for what is none."""
    fields: dict[str, Any] = json.loads(text)
    fields["times"] = {name: Times(tuple(one["values"]), one["unseen"]) for name, one in fields["times"].items()}
    fields["memory"] = {role: (first, last) for role, (first, last) in fields["memory"].items()}
    for name in ("load", "calm"):
        fields[name] = None if fields[name] is None else Load(**fields[name])
    return Result(**fields)


# -- the table of many runs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sum:
    """Many runs as one."""

    runs: Sequence[Result]
    rows: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)

    @property
    def times(self) -> dict[str, Times]:
        return total(run.times for run in self.runs)


def add_up(runs: Sequence[Result]) -> Sum:
    """Counts of all runs."""
    sums = Sum(runs)
    for run in runs:
        sums.rows.update(run.rows)
        sums.faults.update(run.faults)
        sums.violations.update(run.violations)
    return sums


def table(runs: Sequence[Result]) -> str:
    """Markdown: what was done and what came of it, then the named faults one by one, then the times."""
    sums = add_up(runs)
    parts = [_head(sums), _of_cells([run for run in runs if run.cell]), _of_times(sums.times), _of_costs(runs)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]], right: int = 1) -> str:
    """``right``: from this column on, numbers."""
    rule = ["---" if column < right else "---:" for column in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def _head(sums: Sum) -> str:
    runs = sums.runs
    broken = sum(sums.violations.values())
    told = [
        ("machine", "; ".join(sorted({run.machine for run in runs if run.machine})) or "not noted"),
        ("when", _days(runs)),
        ("runs", f"{len(runs)} ({len({run.seed for run in runs})} seeds)"),
        ("tasks", f"{sum(run.tasks for run in runs):,}"),
        ("attempts", f"{sum(run.attempts for run in runs):,}"),
        ("ended", _counted(sums.rows)),
        ("faults", f"{sum(sums.faults.values()):,}: {_counted(sums.faults)}"),
        ("**lost**", f"**{sum(run.lost for run in runs)}**"),
        ("**done twice**", f"**{sum(run.doubled for run in runs)}**"),
        ("**late writes accepted**", f"**{sum(run.stale for run in runs)}**"),
        ("other promises broken", _counted(_others(sums.violations)) if broken else "none"),
    ]
    return _markdown(("", ""), told, right=2)


def _others(violations: Counter[str]) -> dict[str, int]:
    return {rule: count for rule, count in violations.items() if rule not in LOST | DOUBLED | STALE}


def _days(runs: Sequence[Result]) -> str:
    days = sorted({time.strftime("%Y-%m-%d", time.gmtime(run.at)) for run in runs if run.at})
    return "not noted" if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _of_cells(runs: Sequence[Result]) -> str:
    cells: dict[str, list[Result]] = {}
    for run in runs:
        cells.setdefault(run.cell, []).append(run)
    rows = []
    for cell, some in sorted(cells.items()):
        tasks, lost = sum(run.tasks for run in some), sum(run.lost for run in some)
        counts = (tasks, sum(sum(run.faults.values()) for run in some), lost, sum(run.doubled for run in some))
        share = 100 * (tasks - lost) / tasks if tasks else 0.0
        rows.append((cell, *(str(count) for count in counts), f"{share:.4g} %"))
    head = ("fault, again and again", "tasks", "faults", "lost", "done twice", "kept")
    return _markdown(head, rows) if rows else ""


def _of_times(times: Mapping[str, Times]) -> str:
    head = ("seconds", "n", "p50", "p95", "p99", "longest", "not measured")
    return _markdown(head, (_time_row(NAMES[name], times.get(name, Times())) for name in NAMES))


def _time_row(words: str, times: Times) -> tuple[str, ...]:
    shares = (times.at(share) for share in (0.5, 0.95, 0.99, 1.0))
    seen = ["none seen" if value is None else f"{value:.3f}" for value in shares]
    return (words, str(len(times.values)), *seen, str(times.unseen))


def _of_costs(runs: Sequence[Result]) -> str:
    rows = [(name, *_cost([load for load in loads if load])) for name, loads in _by_load(runs)]
    memory = [(f"memory of {role}, first and last quarter of a run", _grown(runs, role)) for role in _roles(runs)]
    head = ("work", "tasks a second", "CPU of all workers a task, ms")
    parts = [
        _markdown(head, rows),
        _markdown(("memory, the run in which it grew most", "MiB"), memory) if memory else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _by_load(runs: Sequence[Result]) -> Iterator[tuple[str, list[Load | None]]]:
    yield "with the faults", [run.load for run in runs]
    yield "without them", [run.calm for run in runs]


def _cost(loads: Sequence[Load]) -> tuple[str, str]:
    timed = [load for load in loads if load.cpu_s is not None]
    rate = Load(sum(load.tasks for load in loads), sum(load.seconds for load in loads)).tasks_per_s
    cpu = Load(sum(load.tasks for load in timed), 1.0, sum(load.cpu_s or 0.0 for load in timed)).cpu_per_task_s
    return (f"{rate:.1f}" if loads else "not run"), ("not measured" if cpu is None else f"{cpu * 1000:.0f}")


def _roles(runs: Sequence[Result]) -> list[str]:
    return sorted({role for run in runs for role in run.memory})


def _grown(runs: Sequence[Result], role: str) -> str:
    pairs = [run.memory[role] for run in runs if role in run.memory]
    first, last = max(pairs, key=lambda pair: pair[1] - pair[0])
    return f"{first:.0f} → {last:.0f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a file of lines. Exit status 2 when it has none, or one that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.report", description=__doc__)
    parser.add_argument("file", type=Path)
    path = parser.parse_args(arguments).file
    runs = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            runs.append(parse(text))
        except (ValueError, TypeError, KeyError) as error:
            parser.error(f"{path}, line {number}, is not the line of a run: {error!r}")
    if not runs:
        parser.error(f"{path} tells of no run")
    sys.stdout.write(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
