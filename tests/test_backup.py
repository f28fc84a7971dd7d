"""The database is put back to what it was some time ago, under workers that live on: they do what it then asks for,
once, and nothing that it does not know."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest_db import PgServer
from tests.conftest_worker import Row, Worker, eventually

Start = Callable[..., Worker]
OFTEN = ("--poll-interval", "0.2")
SHORT = {"WAN2GP_LEASE_S": "6", "WAN2GP_RENEW_S": "0.5"}
"""Half a lease tells who is well: longer than any pause that a busy machine makes."""


def known(worker: Worker) -> dict[str, Row]:
    return {str(row["id"]): row for row in worker.sql("SELECT * FROM tasks")}


def shown(workers: list[Worker], task: str) -> list[Path]:
    return [path for worker in workers for path in (worker.data_dir / "outputs").rglob(f"{task}_*")]


@pytest.mark.long
def test_a_database_restored_from_a_backup_under_living_workers_has_all_its_tasks_done_once(
    start_worker: Start, pg_server: PgServer, tmp_path: Path
) -> None:
    workers = [start_worker(*OFTEN, name=name, environ=SHORT) for name in ("one", "two")]
    pids = [worker.process.pid for worker in workers]
    one = workers[0]
    gates = {name: tmp_path / name for name in ("throughout", "ended", "next", "unknown")}
    wanted = {name: {"gate": str(gate), "files": {"a.txt": name}} for name, gate in gates.items()}

    def runs(task: str) -> None:
        eventually("it runs", lambda: any(f"task {task}" in worker.log for worker in workers))

    done = one.insert("maker", {"files": {"a.txt": "done"}})
    one.ended(done)
    throughout = one.insert("tardy", wanted["throughout"])  # its holder has it before, and after
    ended = one.insert("late", wanted["ended"])  # its holder knows better than the backup, which says that it runs
    following = one.insert("tardy", wanted["next"], dependant_on=ended)  # runs, and the backup knows no start of it
    blocked = one.insert("maker", {"files": {"a.txt": "blocked"}}, dependant_on=ended)  # done; the backup knows nothing
    for task in (throughout, ended):
        runs(task)
    eventually("the leases are there", lambda: len(one.sql("SELECT 1 FROM task_leases WHERE token IS NOT NULL")) == 2)
    pg_server.save(tmp_path / "backup")
    pg_server.start_server()

    gates["ended"].touch()
    for task in (ended, blocked):
        one.ended(task)
    runs(following)
    unknown = one.insert("late", wanted["unknown"])  # there is no such row in the backup
    runs(unknown)
    pg_server.stop_server()
    gates["unknown"].touch()
    journals = [worker.data_dir / "spool" / "journal" for worker in workers]
    eventually("its end is spooled", lambda: any(unknown.encode() in journal.read_bytes() for journal in journals))
    pg_server.restore(tmp_path / "backup")
    pg_server.start_server()

    assert unknown not in known(one) and known(one)[ended]["status"] == "In Progress"
    for name in ("throughout", "next"):
        gates[name].touch()
    tasks = [done, throughout, ended, following, blocked]
    for task in tasks:
        row = one.ended(task)
        assert (row["status"], row["attempts"]) == ("Complete", 1), (row, [worker.log[-3000:] for worker in workers])
        names = [event["name"] for event in one.events(task)]
        assert (names.count("completed"), names.count("retried")) == (1, 0), names
        (artifact,) = row["result_data"]["artifacts"]
        assert hashlib.sha256(Path(row["output_location"]).read_bytes()).hexdigest() == artifact["sha256"]
        assert artifact["path"] == row["output_location"] and Path(artifact["path"]) in shown(workers, task)
    assert set(known(one)) == set(tasks)
    (lease,) = one.sql("SELECT losses, interruptions, history FROM task_leases WHERE task_id = %s", ended)
    assert (lease["losses"], lease["interruptions"]) == (0, 1), "nobody died under it"
    assert lease["history"][0]["kind"] == "lease_forgotten"
    for worker in workers:
        eventually("the spool is empty", worker.spool_is_empty)
    assert shown(workers, unknown) == []
    said = f"The end of task {unknown} was refused, its row is gone: its files are deleted"
    assert [said in worker.log for worker in workers].count(True) == 1
    assert [worker.process.pid for worker in workers] == pids
    assert all(worker.process.poll() is None and "started. Polling" in worker.log for worker in workers)
    one.ended(one.insert("noop"))
