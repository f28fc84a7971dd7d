"""Histories made by hand: a queue that writes events and rows as the database does, moved by who tells the tale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.history import Artifact, Cancelled, Deed, Event, History, Inserted, Life, Row

LEASE_S, POLL_S = 3.0, 0.5
BEGAN = 1_000_000.0
DIED = {"kind": "lost", "code": "handler.died", "message": "killed by SIGKILL", "signal": 9}
FAILED = {"kind": "failed", "code": "task.failed", "message": "boom"}
VERBS = {
    "retried": "retry",
    "failed": "fail",
    "released": "release",
    "withheld": "withhold",
    "stopped": "cancel",
    "refused": "complete",
}


@dataclass
class Task:
    """One row as it comes about."""

    id: str
    status: str = "Queued"
    attempts: int = 0
    counts: dict[str, int] = field(default_factory=lambda: {"failures": 0, "losses": 0, "interruptions": 0})
    holder: str | None = None
    attempt: int = 0
    past: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    makes: int | None = None
    max_attempts: int = 3

    def row(self) -> Row:
        return Row(
            self.id,
            "t",
            self.status,
            self.attempts,
            self.max_attempts,
            **self.counts,
            result_data=self.result,
            makes=self.makes,
        )


@dataclass
class Tale:
    """Time stands still but for :meth:`wait`; each event is a millisecond after the one before."""

    now: float = BEGAN
    tasks: dict[str, Task] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    inserted: list[Inserted] = field(default_factory=list)
    cancels: list[Cancelled] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    deeds: list[Deed] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)

    def wait(self, seconds: float) -> Tale:
        self.now += seconds
        return self

    def note(self, task: str, name: str, worker: str | None = None, attempt: int | None = None, **detail: Any) -> Event:
        """Write an event, whatever it says."""
        self.now += 0.001
        event = Event(task, self.now, name, worker, attempt, detail, len(self.events) + 1)
        self.events.append(event)
        return event

    def insert(self, task: str, **fields: Any) -> Task:
        self.tasks[task] = Task(task, **fields)
        self.inserted.append(Inserted(task, self.note(task, "queued").at))
        return self.tasks[task]

    def claim(self, task: str, worker: str = "w1") -> Tale:
        one = self.tasks[task]
        one.attempts += 1
        one.status, one.holder, one.attempt = "In Progress", worker, one.attempts
        self.note(task, "claimed", worker, one.attempt)
        return self

    def beat(self, task: str, progress: float = 0.5, phase: str = "step") -> Tale:
        self.note(task, "progress", self.tasks[task].holder, phase=phase, progress=progress)
        return self

    def end(
        self, task: str, name: str, status: str, cause: Mapping[str, Any] | None = None, retry_in_s: float | None = None
    ) -> Tale:
        """A lease ends as its worker says (or as whoever takes it from that worker says)."""
        one = self.tasks[task]
        detail: dict[str, Any] = {} if cause is None else {"cause": dict(cause)}
        if retry_in_s is not None:
            detail["retry_in_s"] = retry_in_s
        self.note(task, name, one.holder, one.attempt, **detail)
        if name in VERBS:
            verb = "loss" if cause and cause["kind"] not in ("failed", "released") else VERBS[name]
            entry = {"attempt": one.attempt, "verb": verb, "worker": one.holder, "exit_code": None, **(cause or {})}
            one.past.append(entry)
        one.status, one.holder = status, None
        return self

    def finish(self, task: str, *files: str) -> Tale:
        """Complete, with a published file of each of these contents."""
        one = self.tasks[task]
        worker = str(one.holder)
        self.end(task, "completed", "Complete")
        self.publish(task, worker, *files)
        return self

    def publish(self, task: str, worker: str, *files: str) -> None:
        one = self.tasks[task]
        for number, sha in enumerate(files):
            self.artifacts.append(Artifact(task, worker, f"outputs/{task}_{one.attempt}_{number}.txt", sha, True))
        told = [{"name": f"{number}.txt", "kind": "text", "sha256": sha} for number, sha in enumerate(files)]
        one.result = self._result(one, {"artifacts": told} if told else {})

    def fail(self, task: str) -> Tale:
        self.tasks[task].counts["failures"] += 1
        self.end(task, "failed", "Failed", FAILED)
        self.tasks[task].result = self._result(self.tasks[task], {})
        return self

    def retry(self, task: str, pause_s: float = 2.0) -> Tale:
        self.tasks[task].counts["failures"] += 1
        return self.end(task, "retried", "Queued", FAILED, pause_s)

    def lose(self, task: str, kind: str = "lost", **cause: Any) -> Tale:
        """The first time it goes back, the second time it is failed."""
        one = self.tasks[task]
        one.counts["losses"] += 1
        poisoned = one.counts["losses"] >= 2
        told = {**(DIED if kind == "lost" else {"kind": kind}), **cause}
        self.end(task, "failed" if poisoned else "retried", "Failed" if poisoned else "Queued", told)
        if poisoned:
            one.result = self._result(one, {})
        return self

    def release(self, task: str) -> Tale:
        one = self.tasks[task]
        one.counts["interruptions"] += 1
        self.end(task, "released", "Queued", {"kind": "released", "code": "worker.stopping", "message": "stops"})
        one.attempts -= 1
        return self

    def cancel(self, task: str) -> Tale:
        one = self.tasks[task]
        accepted = one.status in ("Queued", "In Progress")
        if accepted:
            self.note(task, "cancelled", **{"from": one.status})
            one.status = "Cancelled"
        self.cancels.append(Cancelled(task, self.now, accepted))
        return self

    def stop(self, task: str) -> Tale:
        """The worker of a cancelled task says that it has stopped."""
        return self.end(task, "stopped", "Cancelled")

    def again(self, task: str) -> Tale:
        """Somebody queues a task that has ended."""
        one = self.tasks[task]
        self.note(task, "requeued", **{"from": one.status})
        one.status, one.holder = "Queued", None
        one.counts.update(failures=0, losses=0, interruptions=0)
        return self

    def _result(self, one: Task, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, **({"attempts": list(one.past)} if one.past else {})}

    def history(self, **more: Any) -> History:
        fields: dict[str, Any] = {
            "rows": tuple(task.row() for task in self.tasks.values()),
            "events": tuple(self.events),
            "inserted": tuple(self.inserted),
            "cancels": tuple(self.cancels),
            "artifacts": tuple(self.artifacts),
            "lives": tuple(self.lives),
            "deeds": tuple(self.deeds),
            "outages": tuple(self.outages),
            "lease_s": LEASE_S,
            "poll_s": POLL_S,
            "ended_at": self.now,
        }
        return History(**{**fields, **more})


def lives(tale: Tale, *workers: str) -> Tale:
    """Workers that were there long before and still are: w1 and w2, when none is named."""
    tale.lives += [Life(name, BEGAN - 100) for name in workers or ("w1", "w2")]
    return tale
