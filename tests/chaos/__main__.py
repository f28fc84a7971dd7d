"""`make chaos SEED=n`: real workers on a real database, a stream of tasks, faults from a seed, and then the books.

Exit status 1 when a promise was broken; the run's folder is kept then, and the command that plays it again is printed.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

from tests.chaos.audit import kept, logs_of
from tests.chaos.deeds import LIST
from tests.chaos.figures import Load, measure
from tests.chaos.plan import CELLS, Plan, plan_for, read
from tests.chaos.report import append, machine, result, verdict
from tests.chaos.run import Play, Played, Tamper
from tests.chaos.stage import Stage

TASKS = 500
STORY = "history.json"


def main(arguments: list[str] | None = None, tamper: Tamper | None = None) -> int:
    """The exit status. ``tamper`` does something to what a run left before the books are made."""
    given = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything that was started is ended
    if given.replay:
        plan = read(given.replay.read_text().splitlines())
    else:
        plan = plan_for(given.seed, given.tasks, given.cell)
    if given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="w2g-chaos-", dir=given.folder))
    try:
        fine = _play(plan, folder, given, tamper)
    except Exception:  # whatever broke the run, there is a verdict: it could not be judged
        (folder / "failure.txt").write_text(traceback.format_exc())
        _say(f"seed {plan.seed}: the run itself failed: {traceback.format_exc(limit=0).strip()}")
        fine = False
    if fine and not given.keep:
        shutil.rmtree(folder)
    else:
        _say(f"left for a look: {folder}")
    if not fine:
        _say(f"to play it again: {sys.executable} -m tests.chaos --replay {folder / LIST}")
    return 0 if fine else 1


def _play(plan: Plan, folder: Path, given: argparse.Namespace, tamper: Tamper | None) -> bool:
    calm = _calm(plan, folder / "calm") if given.calm else None
    with Stage(plan, folder) as stage:
        played = Play(stage).run(tamper)
    (folder / STORY).write_text(kept(played.history, played.violations))
    figures = measure(played.history, logs_of(stage), _load(played), calm)
    told = result(
        plan.seed,
        played.history,
        figures,
        played.violations,
        cell=plan.cell,
        machine=machine(),
        at=time.time(),
    )
    _say(verdict(told, played.violations).rstrip())
    if played.nobody:
        _say(f"  {played.nobody} fault(s) found no victim")
    if given.report:
        append(told, given.report)
    return not played.violations


def _calm(plan: Plan, folder: Path) -> Load:
    """The same work with no faults, to compare with."""
    folder.mkdir()
    with Stage(replace(plan, deeds=()), folder) as stage:
        return _load(Play(stage).run())


def _load(played: Played) -> Load:
    return Load(len(played.history.rows), played.streamed_s, played.cpu_s)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--cell", choices=CELLS, default="", help="only this fault, again and again")
    parser.add_argument("--replay", type=Path, metavar="FILE", help=f"the {LIST} of an earlier run")
    parser.add_argument("--report", type=Path, metavar="FILE", help="append a line of JSON with what came of it")
    parser.add_argument("--calm", action="store_true", help="do the same work without faults before, to compare")
    parser.add_argument("--keep", action="store_true", help="keep the run's folder in any case")
    parser.add_argument("--folder", type=Path, help="where the run's own folder is made")
    return parser


if __name__ == "__main__":
    sys.exit(main())
