"""The users: they insert and cancel as planned, try again while the database is away, and note what they are told."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from tests.chaos.plan import CancelPlan, TaskPlan
from tests.chaos.records import Cancelled, Inserted
from tests.chaos.stage import Stage
from tests.chaos.work import placed

AGAIN_S = 0.1
CONNECT_S = 5
ANSWER_S = 10
CTL_S = 20.0
INSERT = """INSERT INTO tasks (id, task_type, params, status, priority, max_attempts, dependant_on)
            VALUES (%s, %s, %s, 'queued', %s, %s, %s) ON CONFLICT (id) DO NOTHING"""
ENQUEUE = "SELECT wan2gp_enqueue(%s, %s, %s, %s, NULL, %s, %s)"
CANCEL = "UPDATE tasks SET status = 'cancelled' WHERE id = %s AND status IN ('Queued', 'In Progress') RETURNING id"


class Client:
    """Two threads, so that a slow `wan2gp-ctl` delays no insert. ``inserted`` and ``cancelled`` are its own log."""

    def __init__(self, stage: Stage, start_s: float) -> None:
        self.inserted: list[Inserted] = []
        self.cancelled: list[Cancelled] = []
        self.troubles: list[str] = []
        """What ended a thread that was to go on."""
        self._stage = stage
        self._start_s = start_s
        self._stop = threading.Event()
        plan = stage.plan
        steps: list[tuple[float, Callable[[], None]]] = []
        steps += [(task.at_s, lambda task=task: self._insert(task)) for task in plan.tasks]  # type: ignore[misc]
        steps += [(one.at_s, lambda one=one: self._cancel(one)) for one in plan.cancels if one.by == "sql"]  # type: ignore[misc]
        by_ctl = [(one.at_s, lambda one=one: self._cancel_by_ctl(one)) for one in plan.cancels if one.by == "ctl"]  # type: ignore[misc]
        self._threads = [threading.Thread(target=self._play, args=(part,), name="client") for part in (steps, by_ctl)]
        self._connection: psycopg.Connection[Any] | None = None

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def done(self) -> bool:
        """Everything was asked for."""
        return not any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Safe to repeat."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _play(self, steps: list[tuple[float, Callable[[], None]]]) -> None:
        try:
            for at_s, step in sorted(steps, key=lambda one: one[0]):
                if self._stop.wait(max(0.0, self._start_s + at_s - time.monotonic())):
                    return
                step()
        except InterruptedError:
            return
        except Exception as error:  # a thread's end is nobody's return value: the verdict tells of it
            self.troubles.append(f"the client failed: {error!r}")

    def _insert(self, task: TaskPlan) -> None:
        params = json.dumps(placed(task.params, str(self._stage.litter / task.id), self._stage.clip.url))
        if task.queue_call:
            after = json.dumps(list(task.after))
            self._insist(ENQUEUE, task.task_type, params, task.priority, task.max_attempts, after, task.id)
        else:
            after = task.after[0] if task.after else None
            self._insist(INSERT, task.id, task.task_type, params, task.priority, task.max_attempts, after)
        self.inserted.append(Inserted(task.id, time.time()))

    def _cancel(self, cancel: CancelPlan) -> None:
        """After a lost answer the row itself tells; nobody else cancels it."""
        found = self._insist(CANCEL, cancel.task_id)
        if not found:
            found = self._insist("SELECT id FROM tasks WHERE id = %s AND status = 'Cancelled'", cancel.task_id)
        self.cancelled.append(Cancelled(cancel.task_id, time.time(), bool(found)))

    def _cancel_by_ctl(self, cancel: CancelPlan) -> None:
        actor = self._stage.actors[cancel.worker]
        command = [sys.executable, "-m", "wan2gp.ctl", "--data-dir", str(actor.data_dir), "cancel", cancel.task_id]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, env=actor.environ, **quiet) as process:  # type: ignore[call-overload]
            self._stage.errands.add(process.pid)
            try:
                accepted = process.wait(CTL_S) == 0
            except subprocess.TimeoutExpired:  # its supervisor stands still
                process.kill()
                accepted = False
        self.cancelled.append(Cancelled(cancel.task_id, time.time(), accepted))

    def _insist(self, statement: str, *values: Any) -> list[Any]:
        """The rows; again and again while there is no answer. Every statement is safe to repeat."""
        while not self._stop.is_set():
            try:
                if self._connection is None:
                    self._connection = psycopg.connect(
                        self._stage.url, autocommit=True, connect_timeout=CONNECT_S, tcp_user_timeout=ANSWER_S * 1000
                    )
                cursor = self._connection.execute(statement.encode(), values or None)
                return cursor.fetchall() if cursor.description else []
            except (psycopg.OperationalError, psycopg.InterfaceError):
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
                self._stop.wait(AGAIN_S)
        raise InterruptedError("the run is over")
