"""`make chaos SEED=n`: two workers, a stream of tasks, and things killed, frozen and cut off at random, then the books.

The seed decides what is done and in which order; how far each process had come at that moment no seed can decide.
Exit status 1 when a row is not final, was finished twice, or its file is missing or doubled.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.conftest_db import PgServer
from tests.conftest_worker import FINAL, Worker, eventually, launch, surely_end, worker_environment

LEASES = {"WAN2GP_LEASE_S": "3", "WAN2GP_RENEW_S": "0.5"}
KINDS = {
    "noop": {},
    "maker": {"files": {"a.txt": "x"}},
    "sleeper": {"seconds": 0.3},
    "raiser": {},
}
SETTLED_S = 120.0


class Chaos:
    """One run. Workers that were killed come back under their own name and data directory."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.dice = random.Random(seed)
        self.folder = folder
        self.server = PgServer(folder / "pg", Path(tempfile.mkdtemp(prefix="w2g-pg-")))
        self.url = self.server.new_database(self.server.contract_template())
        self.workers = {name: self.start(name) for name in ("one", "two")}
        self.deeds: dict[str, Callable[[], None]] = {
            "kill a handler": self.kill_handler,
            "kill a shim": self.kill_shim,
            "kill a supervisor": self.kill_supervisor,
            "freeze a supervisor": self.freeze_supervisor,
            "restart the database": self.server.restart,
            "stop a supervisor": self.stop_supervisor,
        }

    def start(self, name: str) -> Worker:
        place = self.folder / name
        variables = worker_environment(place, Path(tempfile.mkdtemp(prefix="w2g-")), DATABASE_URL=self.url, **LEASES)
        return launch(place / "data", self.url, {**variables, "WORKER_ID": name}, "--poll-interval", "0.5")

    def replace(self, name: str) -> None:
        old = self.workers[name]
        eventually(f"nothing is left of {name}", lambda: not old.survivors(), 10)
        shutil.rmtree(old.environ["WAN2GP_RUN_DIR"], ignore_errors=True)
        Path(old.environ["WAN2GP_RUN_DIR"]).mkdir(mode=0o700)
        self.workers[name] = launch(old.data_dir, self.url, old.environ, "--poll-interval", "0.5")

    def anyone(self) -> str:
        return self.dice.choice(sorted(self.workers))

    def below(self, mark: str) -> list[psutil.Process]:
        """Processes of one worker whose command line has `mark`."""
        found = []
        for process in self.workers[self.anyone()].family():
            try:
                if mark in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill_handler(self) -> None:
        for process in self.below("-m wan2gp.handlers")[:1]:
            process.kill()

    def kill_shim(self) -> None:
        for process in self.below("spawn_main")[:1]:
            process.kill()

    def kill_supervisor(self) -> None:
        name = self.anyone()
        self.workers[name].kill()
        self.replace(name)

    def stop_supervisor(self) -> None:
        name = self.anyone()
        self.workers[name].stop()
        self.replace(name)

    def freeze_supervisor(self) -> None:
        process = self.workers[self.anyone()].process
        process.send_signal(signal.SIGSTOP)
        time.sleep(self.dice.choice([0.5, 5.0]))  # shorter and longer than a lease
        process.send_signal(signal.SIGCONT)

    def insert(self, count: int) -> None:
        rows = [self.dice.choice(sorted(KINDS)) for _ in range(count)]
        values = ", ".join(["(%s, %s, 'queued')"] * count)
        flat = [part for kind in rows for part in (kind, json.dumps(KINDS[kind]))]
        self.workers["one"].sql(f"INSERT INTO tasks (task_type, params, status) VALUES {values}", *flat)

    def run(self, rounds: int) -> list[str]:
        """Do it, and return what is wrong."""
        for number in range(rounds):
            self.insert(20)
            time.sleep(self.dice.uniform(0.1, 0.6))
            deed = self.dice.choice(sorted(self.deeds))
            sys.stdout.write(f"{number + 1:>3}/{rounds} {deed}\n")
            sys.stdout.flush()
            self.deeds[deed]()
        one = self.workers["one"]
        open_rows = "SELECT count(*) AS n FROM tasks WHERE status <> ALL(%s)"
        eventually("all rows are final", lambda: one.sql(open_rows, list(FINAL))[0]["n"] == 0, SETTLED_S)
        for worker in self.workers.values():
            eventually("the spools are empty", worker.spool_is_empty, SETTLED_S)
        return self.audit()

    def audit(self) -> list[str]:
        """The books: rows, events and files must tell one story."""
        wrong = []
        one = self.workers["one"]
        events: dict[str, Counter[str]] = {}
        for event in one.sql("SELECT task_id, name FROM task_events"):
            events.setdefault(str(event["task_id"]), Counter())[event["name"]] += 1
        files = Counter(
            path.name.split("_")[0]
            for worker in self.workers.values()
            for path in (worker.data_dir / "outputs").rglob("*")
            if path.is_file()
        )
        for row in one.sql("SELECT id::text, task_type, status, attempts, error_message FROM tasks"):
            said = events[row["id"]]
            ends = said["completed"] + said["failed"]
            if ends != 1:
                wrong.append(f"{row} ended {ends} times: {dict(said)}")
            made = 1 if row["task_type"] == "maker" and row["status"] == "Complete" else 0
            if files[row["id"]] != made:
                wrong.append(f"{row} has {files[row['id']]} files, not {made}")
        return wrong

    def close(self) -> None:
        surely_end(list(self.workers.values()))
        self.server.stop_server()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="w2g-chaos-"))
    chaos = Chaos(given.seed, folder)
    try:
        wrong = chaos.run(given.rounds)
        counts = chaos.workers["one"].sql("SELECT status, count(*) AS n FROM tasks GROUP BY status ORDER BY status")
    finally:
        chaos.close()
    told = ", ".join(f"{row['n']} {row['status']}" for row in counts)
    sys.stdout.write(f"seed {given.seed}: {told}; {len(wrong)} wrong\n" + "".join(f"  {line}\n" for line in wrong))
    if wrong:
        sys.stdout.write(f"left for a look: {folder}\n")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
