"""One run from its plan to its books."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from tests.chaos.audit import engine_files, gather, read, remarks, spooled
from tests.chaos.client import Client
from tests.chaos.deeds import Doer
from tests.chaos.history import check
from tests.chaos.operator_desk import OperatorDesk
from tests.chaos.records import History, Violation
from tests.chaos.stage import Stage

Tamper = Callable[[Stage], None]
TURN_S = 0.01
LOOK_S = 0.15
START_S = 40.0
SETTLED_S = 60.0
"""How long after the last task and the last fault everything may take to end, seconds."""
SWEPT_S = 20.0
OPEN = "SELECT count(*) AS n FROM tasks WHERE status NOT IN ('Complete', 'Failed', 'Cancelled')"
CALM = """INSERT INTO tasks (task_type, params, status) VALUES ('comfy', '{"workflow": {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "calm"}}}}', 'queued')"""


@dataclass(frozen=True)
class Played:
    """What came of it. ``nobody``: faults without a victim; ``streamed_s``: from the first task to the last row's end;
    ``cpu_s``: what all workers took of the processors meanwhile."""

    history: History
    violations: tuple[Violation, ...]
    nobody: int
    streamed_s: float
    cpu_s: float


class Play:
    """The main thread's part: it looks after everything in turn and never waits for one of them."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.late: list[Violation] = []
        self.operator = OperatorDesk(stage)

    def run(self, tamper: Tamper | None = None) -> Played:
        """``tamper`` is called before the books are made: what it does to them must be found."""
        self._until(START_S, "the workers start", self._all_started)
        start_s = time.monotonic()
        self.client, self.doer = Client(self.stage, start_s), Doer(self.stage, start_s)
        try:
            self.client.start()
            self._until(float("inf"), "the faults are over", lambda: self.client.done and self.doer.idle)
            self._until(SETTLED_S, "every row is final", self._all_final)
            ended_at, streamed_s = time.time(), time.monotonic() - start_s
            self._until(SETTLED_S, "every spool is empty and every file swept", self._all_swept)
        finally:
            self.client.close()
            self.doer.close()
            self.operator.close()
        self.stage.stop_workers()
        self._sweep_engines()
        if tamper is not None:
            tamper(self.stage)
        history = gather(self.stage, self.client, self.doer, ended_at)
        violations = (*self.late, *remarks(self.stage, self.client, history), *check(history))
        return Played(history, violations, self.doer.nobody, streamed_s, self.stage.cpu_s)

    def _sweep_engines(self) -> None:
        """A handler that was killed leaves its engine's files to the next one's start, which is brought on here."""
        for actor in self.stage.actors.values():
            if engine_files(actor):
                with psycopg.connect(self.stage.url, autocommit=True) as connection:
                    connection.execute(CALM)
                code = self.stage.drain(actor, SWEPT_S)
                if code != 0:
                    self.late.append(Violation(None, "worker exit", f"{actor.name} --once ended with {code}"))

    def _until(self, patience_s: float, what: str, true: Callable[[], bool]) -> None:
        deadline, look_s = time.monotonic() + patience_s, 0.0
        while True:
            self.stage.tend()
            self.operator.turn()
            if hasattr(self, "doer"):
                self.doer.turn()
            now_s = time.monotonic()
            if now_s >= look_s:
                look_s = now_s + LOOK_S
                if true():
                    return
            if now_s > deadline:
                self.late.append(Violation(None, "in time", f"not within {patience_s:.0f} s: {what}"))
                return
            time.sleep(TURN_S)

    def _all_started(self) -> bool:
        return all("started. Polling" in actor.worker.log for actor in self.stage.actors.values())

    def _all_final(self) -> bool:
        try:
            return bool(read(self.stage.url, OPEN)[0]["n"] == 0)
        except psycopg.OperationalError:
            return False

    def _all_swept(self) -> bool:
        """Results are shown a moment after their row is final."""
        actors = self.stage.actors.values()
        return all(
            actor.lives_now and not spooled(actor) and not any((actor.data_dir / "work").glob("*/*/*"))
            for actor in actors
        )
