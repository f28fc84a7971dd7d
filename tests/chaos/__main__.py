"""`make chaos SEED=n`: real workers on a real database, a stream of tasks, faults from a seed, and then the books.

Exit status 1 when a promise was broken; the run's folder is kept then, and the command that plays it again is printed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.deeds import LIST
from tests.chaos.plan import CELLS, plan_for, read
from tests.chaos.run import Play
from tests.chaos.stage import Stage

TASKS = 500


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.replay:
        plan = read(given.replay.read_text().splitlines())
    else:
        plan = plan_for(given.seed, given.tasks, given.cell)
    folder = Path(tempfile.mkdtemp(prefix="w2g-chaos-", dir=given.folder))
    with Stage(plan, folder) as stage:
        played = Play(stage).run()
    return 1 if played.violations else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--cell", choices=CELLS, default="", help="only this fault, again and again")
    parser.add_argument("--replay", type=Path, metavar="FILE", help=f"the {LIST} of an earlier run")
    parser.add_argument("--report", type=Path, metavar="FILE", help="append a line of JSON with what came of it")
    parser.add_argument("--folder", type=Path, help="where the run's own folder is made")
    return parser


if __name__ == "__main__":
    sys.exit(main())
