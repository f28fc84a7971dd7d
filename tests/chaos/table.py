"""The table of many runs, as Markdown: what was done, what came of it, how long things took and what they cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.chaos.results import DOUBLED, LOST, STALE, Result, counted
from tests.chaos.times import NAMES, Load, Times, total


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
        ("ended", counted(sums.rows)),
        ("faults", f"{sum(sums.faults.values()):,}: {counted(sums.faults)}"),
        ("**lost**", f"**{sum(run.lost for run in runs)}**"),
        ("**done twice**", f"**{sum(run.doubled for run in runs)}**"),
        ("**late writes accepted**", f"**{sum(run.stale for run in runs)}**"),
        ("other promises broken", counted(_others(sums.violations)) if broken else "none"),
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
    memory = [(role, _grown(runs, role)) for role in _roles(runs)]
    head = ("work", "tasks a second", "CPU of all workers a task, ms")
    parts = [
        _markdown(head, rows),
        _markdown(("memory of each, first and last quarter of the run in which it grew most", "MiB"), memory)
        if memory
        else "",
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
