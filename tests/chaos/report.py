"""What is told of runs: the verdict of one seed, and the table of many.

``python -m tests.chaos.report FILE`` prints the table of ``docs/reliability.md`` from the lines that runs have left.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.records import Violation
from tests.chaos.results import Result, append, counted, line, machine, parse, result
from tests.chaos.table import table
from tests.chaos.times import Load

__all__ = ["Result", "append", "line", "machine", "main", "parse", "result", "table", "verdict"]


def verdict(one: Result, violations: Sequence[Violation]) -> str:
    """The text of one seed."""
    named = f"seed {one.seed}" + (f", {one.cell}" if one.cell else "")
    lines = [
        f"{named}: {one.tasks} tasks, {one.attempts} attempts, {one.workers} worker(s), {one.machine}",
        f"  faults: {counted(one.faults)}",
        f"  rows: {counted(one.rows)}",
    ]
    lines += [f"  {name}: {times}" for name, times in one.times.items()]
    lines += [f"  memory of {role}: {first:.0f} → {last:.0f} MiB" for role, (first, last) in one.memory.items()]
    lines += _loads(one)
    lines.append(f"  {len(violations)} violation(s)" if violations else "  no violation: nothing lost, nothing doubled")
    lines += [f"    {one.task_id or 'the run'}: {one.rule}: {one.sentence}" for one in violations]
    return "\n".join(lines) + "\n"


def _loads(one: Result) -> list[str]:
    return [f"  {name}: {_load(load)}" for name, load in (("load", one.load), ("without faults", one.calm)) if load]


def _load(load: Load) -> str:
    cpu = load.cpu_per_task_s
    cost = "" if cpu is None else f", {cpu * 1000:.0f} ms of CPU each"
    return f"{load.tasks} tasks in {load.seconds:.1f} s ({load.tasks_per_s:.1f} a second{cost})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a file of lines. Exit status 2 when it has none, or one that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.report", description=__doc__)
    parser.add_argument("file", type=Path)
    path = parser.parse_args(arguments).file
    runs = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            runs.append(parse(text))
        except ValueError as error:
            parser.error(f"{path}, line {number}, cannot be read: {error}")
    if not runs:
        parser.error(f"{path} tells of no run")
    sys.stdout.write(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
