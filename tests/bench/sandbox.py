"""What the sandbox costs: two workers side by side, one without it, take turns, so that a busy moment meets both."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import TypeVar

import psycopg

from tests.bench.stage import all_ended, connect, percentile, say, working
from tests.conftest_worker import Worker, eventually

STARTS = 25
TASKS = 500
START_MS, TASK_MS = 30.0, 0.5
"""How much more a start and a task may take, milliseconds."""
READY = re.compile(r"Handler noop is ready \(pid \d+, ([\d.]+)s\)")
INSERT = "INSERT INTO tasks (task_type, params, status) VALUES ('noop', '{}', 'queued') RETURNING id"
Of = TypeVar("Of")
Connection = psycopg.Connection[tuple[object, ...]]


def sandbox() -> bool:
    """Starts of a handler, then single no-op tasks: the median of the differences between neighbours."""
    with working(WAN2GP_SANDBOX="best") as with_it, working(WAN2GP_SANDBOX="off") as without:
        workers = (with_it, without)
        starts: tuple[list[float], list[float]] = ([], [])
        tasks: tuple[list[float], list[float]] = ([], [])
        with connect(with_it) as one, connect(without) as other:
            for connection in (one, other):
                connection.execute(INSERT)
                all_ended(connection, "noop")
            for worker, took in _turns(workers, starts, STARTS):
                took.append(_start_ms(worker))
            for connection, took in _turns((one, other), tasks, TASKS):
                took.append(_task_ms(connection))
    good = _compare("a handler's start", starts, START_MS)
    return _compare(f"{TASKS} no-op tasks, one by one", tasks, TASK_MS) and good


def _turns(both: tuple[Of, Of], took: tuple[list[float], list[float]], times: int) -> Iterator[tuple[Of, list[float]]]:
    """One and the other, then the other and one: what the first leaves to do meets both alike."""
    pairs = list(zip(both, took, strict=True))
    for _ in range(times):
        yield from pairs
        pairs.reverse()


def _compare(what: str, took: tuple[list[float], list[float]], most_ms: float) -> bool:
    with_it, without = (percentile(one, 0.5) for one in took)
    extra = percentile([one - other for one, other in zip(*took, strict=True)], 0.5)
    shown = f"{extra:+.2f} ms ({with_it:.2f} - {without:.2f})"
    return say(f"{what}: sandboxed minus not, p50", shown, f"<= {most_ms:g} ms", extra <= most_ms)


def _start_ms(worker: Worker) -> float:
    """From the decision to start until the handler's hello, as the worker's log has it, to 10 ms."""
    before = len(READY.findall(worker.log))
    worker.ctl("restart", "noop")
    eventually("the handler is ready again", lambda: len(READY.findall(worker.log)) > before)
    return float(READY.findall(worker.log)[-1]) * 1000


def _task_ms(connection: Connection) -> float:
    """From the insert to the end, as seen from outside."""
    started = time.perf_counter()
    row = connection.execute(INSERT).fetchone()
    while True:
        found = connection.execute("SELECT status FROM tasks WHERE id = %s", row).fetchone()
        if found is not None and found[0] == "Complete":
            return (time.perf_counter() - started) * 1000
        time.sleep(0.0002)
