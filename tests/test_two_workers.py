"""Two supervisors on one database and two hundred tasks of all kinds; one of the two is killed half-way."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest_worker import FINAL, Worker, eventually

Start = Callable[..., Worker]
TASKS = 200
KINDS: dict[str, dict[str, Any]] = {
    "noop": {},
    "maker": {"files": {"a.txt": "x"}},
    "sleeper": {"seconds": 0.05},
    "raiser": {},
}
SHORT = {"WAN2GP_LEASE_S": "2", "WAN2GP_RENEW_S": "0.5"}


def test_one_of_two_dies_half_way_and_every_row_ends_exactly_once(start_worker: Start) -> None:
    workers = [start_worker("--poll-interval", "0.5", name=name, environ=SHORT) for name in ("doomed", "other")]
    doomed, other = workers
    kinds = list(KINDS)
    rows = [(kinds[number % len(kinds)], json.dumps(KINDS[kinds[number % len(kinds)]])) for number in range(TASKS)]
    rows += [("crasher", json.dumps({"exit": 3}))]
    values = ", ".join(["(%s, %s, 'queued')"] * len(rows))
    other.sql(f"INSERT INTO tasks (task_type, params, status) VALUES {values}", *[part for row in rows for part in row])
    half = "SELECT count(*) AS n FROM tasks WHERE status = ANY(%s)"
    eventually("half is done", lambda: other.sql(half, list(FINAL))[0]["n"] >= TASKS // 2)
    doomed.kill()
    eventually("nothing is left of it", lambda: not doomed.survivors(), 5.0)
    eventually("all is done", lambda: other.sql(half, list(FINAL))[0]["n"] == len(rows))

    # The dead one comes back and tells of what it had finished last; for much of that it is too late.
    back = start_worker("--poll-interval", "0.5", name="doomed", environ=SHORT)
    for worker in (back, other):
        eventually("all is settled", worker.spool_is_empty)

    found = {str(row["id"]): row for row in other.sql("SELECT * FROM tasks")}
    events: dict[str, Counter[str]] = {task: Counter() for task in found}
    for event in other.sql("SELECT task_id, name FROM task_events"):
        events[str(event["task_id"])][event["name"]] += 1
    for task, row in found.items():
        wanted = "Failed" if row["task_type"] == "raiser" else "Complete"
        said = events[task]
        assert row["status"] == wanted, row
        assert (said["completed"], said["failed"]) == ((1, 0) if wanted == "Complete" else (0, 1)), (row, said)
        assert row["attempts"] == said["claimed"] == 1 + said["retried"], (row, said)
    assert [row["attempts"] for row in found.values() if row["task_type"] == "crasher"] == [2]
    shown = [path for worker in workers for path in (worker.data_dir / "outputs").rglob("*") if path.is_file()]
    by_task = Counter(path.name.split("_")[0] for path in shown)
    assert by_task == Counter(task for task, row in found.items() if row["task_type"] == "maker")
    assert all(Path(row["output_location"]).is_file() for row in found.values() if row["task_type"] == "maker")
