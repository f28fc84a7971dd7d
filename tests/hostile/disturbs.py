"""Makes other processes slow or poor without a signal: `prey["pids"]`. What it sets is what there is."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.calls import call
from tests.hostile.tries import Tries

IOPRIO_WHO_PROCESS, IOPRIO_NONE = 1, 0


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    for who, pid in prey["pids"].items():
        for name, act in WAYS.items():
            tries(f"{who}, {name}", lambda act=act, pid=pid: act(pid))


def limits(pid: int) -> str:
    """To a file limit of nothing it would be as easily."""
    there = resource.prlimit(pid, resource.RLIMIT_CORE)
    resource.prlimit(pid, resource.RLIMIT_CORE, there)
    return "set"


def priority(pid: int) -> str:
    os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid))
    return "set"


def processors(pid: int) -> str:
    os.sched_setaffinity(pid, os.sched_getaffinity(pid))
    return "set"


def policy(pid: int) -> str:
    os.sched_setscheduler(pid, os.sched_getscheduler(pid), os.sched_param(0))
    return "set"


WAYS = {
    "limits": limits,
    "priority": priority,
    "processors": processors,
    "policy": policy,
    "disk priority": lambda pid: call("ioprio_set", IOPRIO_WHO_PROCESS, pid, IOPRIO_NONE),
    "victim of the OOM killer": lambda pid: Path(f"/proc/{pid}/oom_score_adj").open("w").close(),
    "name": lambda pid: Path(f"/proc/{pid}/comm").open("w").close(),
    "pages": lambda pid: call("migrate_pages", pid, 0, None, None),
}
