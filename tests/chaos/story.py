"""The events of one task, walked in order: who held it when, what was accepted, and what of that should not have been.

The database writes an event in the transaction that it tells of, under the lock of the task's row, so the numbers of
a task's events are the order in which things happened to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.chaos.records import SLACK_S, Event, Rule, Violation

ENDS = {"completed": "Complete", "failed": "Failed", "withheld": "Failed", "cancelled": "Cancelled"}
"""Events that end a row, and the status that they leave it in."""
LOSS_KINDS = frozenset({"lost", "lease_expired", "worker_died"})
"""Causes that count as a loss and not as a failure of the task's own."""
CLOSINGS = frozenset({"completed", "failed", "retried", "released", "withheld", "stopped", "refused"})
"""Events by which a lease ends, when they name an attempt."""
ACCEPTED = CLOSINGS - {"refused", "stopped"} | {"claimed", "spawned", "cancelled"}
"""Events that change what becomes of the task."""


@dataclass
class Hold:
    """One attempt's lease. ``seen``: its last sign of life that the events show; ``moved``: the first that shows a
    handler at work on it; ``end`` is None while it lasts."""

    worker: str | None
    attempt: int
    begun: float
    seen: float
    moved: float | None = None
    ended: float | None = None
    end: Event | None = None

    def __str__(self) -> str:
        return f"attempt {self.attempt} of {self.worker}"


def kind_of(event: Event) -> str | None:
    """The kind of the event's cause."""
    cause = event.detail.get("cause")
    return cause.get("kind") if isinstance(cause, dict) else None


def overlaps(spans: Iterable[tuple[float, float]], begin: float, end: float) -> bool:
    """Whether one of ``spans`` has a moment in common with ``begin`` … ``end``."""
    return any(start <= end and stop >= begin for start, stop in spans)


@dataclass
class Story:
    """Build it with :func:`tell`. The counters are those of the life since the last retry by hand."""

    task_id: str
    lease_s: float
    outages: Sequence[tuple[float, float]] = ()
    holds: list[Hold] = field(default_factory=list)
    closings: list[Event] = field(default_factory=list)
    """Every end of a lease, in all lives, that leaves an entry in ``result_data.attempts``."""
    wrong: list[Violation] = field(default_factory=list)
    ended: Event | None = None
    attempts: int = 0
    completions: int = 0
    failures: int = 0
    losses: int = 0
    interruptions: int = 0
    by_app: bool = False
    """The predecessor's function completed it: what the row tells of its attempts is then not ours."""
    _holder: Hold | None = None
    _released: Hold | None = None
    _due: Event | None = None
    _parked: bool = False

    def walk(self, event: Event) -> None:
        """The next event."""
        if self.ended is not None and event.name in ACCEPTED and not self._late_completion(event):
            self._after_the_end(event)
        step = {"claimed": self._claimed, "progress": self._progress, "spawned": self._spawned}.get(event.name)
        if step is not None:
            step(event)
        elif event.name in ("requeued", "resumed"):
            self._again(event)
        elif event.name in CLOSINGS and event.attempt is not None:
            self._close(event)
        elif event.name == "completed" and not self._parked:
            self._blame(Rule.STALE, f"it was completed by nobody's attempt at {event.at:.3f}")
        elif event.name == "completing":
            self.by_app = True
        if event.name in ENDS:
            self._end(event)

    def _blame(self, rule: Rule, sentence: str) -> None:
        self.wrong.append(Violation(self.task_id, rule.value, sentence))

    def _late_completion(self, event: Event) -> bool:
        """A result that was withheld is published after all: the second half of one end."""
        return event.name == "completed" and self.ended is not None and self.ended.name == "withheld"

    def _after_the_end(self, event: Event) -> None:
        assert self.ended is not None
        rule = Rule.CANCELLED if self.ended.name == "cancelled" else Rule.ONE_END
        if event.name == "completed" and self.ended.name == "completed":
            rule = Rule.COMPLETED_ONCE
        by = f" by attempt {event.attempt} of {event.worker_id}" if event.attempt is not None else ""
        self._blame(rule, f"{event.name}{by} at {event.at:.3f}, after it was {self.ended.name} at {self.ended.at:.3f}")

    # -- a lease begins ----------------------------------------------------------------------------------------------

    def _claimed(self, event: Event) -> None:
        number = event.attempt or 0
        if self._holder is not None:
            held = f"{self._holder} has held it since {self._holder.begun:.3f}: no end, no expiry"
            self._blame(Rule.ALONE, f"{event.worker_id} claimed it at {event.at:.3f} while {held}")
        if number != self.attempts + 1:
            self._blame(Rule.RISING, f"{event.worker_id} claimed attempt {number}, not {self.attempts + 1}")
        self._keep_pause(event)
        self.attempts = number
        self._parked = False
        self._holder = Hold(event.worker_id, number, event.at, event.at)
        self.holds.append(self._holder)

    def _keep_pause(self, event: Event) -> None:
        before, self._due = self._due, None
        if before is None:
            return
        due = before.at + float(before.detail["retry_in_s"])
        if event.at < due - SLACK_S and not overlaps(self.outages, before.at - SLACK_S, before.at):
            asked = f"{before.detail['retry_in_s']} s of pause from {before.at:.3f} on"
            self._blame(Rule.BACK_OFF, f"{event.worker_id} claimed it {due - event.at:.3f} s early: {asked}")

    def _progress(self, event: Event) -> None:
        if self._holder is None or self._holder.worker != event.worker_id:
            holder = self._holder or "nobody"
            self._blame(Rule.STALE, f"progress of {event.worker_id} at {event.at:.3f}, when {holder} held it")
        else:
            self._holder.seen = event.at
            if self._holder.moved is None and event.detail.get("phase", "start") != "start":
                self._holder.moved = event.at

    # -- a lease ends ------------------------------------------------------------------------------------------------

    def _close(self, event: Event) -> None:
        holder = self._holder
        if self._late_completion(event):
            holder = self._released
        if holder is None or (holder.worker, holder.attempt) != (event.worker_id, event.attempt):
            if event.name != "refused":
                said = f"{event.name} by attempt {event.attempt} of {event.worker_id} at {event.at:.3f}"
                self._blame(Rule.STALE, f"{said}, when {holder or 'nobody'} held it")
            return
        if event.name == "stopped" and (self.ended is None or self.ended.name != "cancelled"):
            self._blame(Rule.STALE, f"{holder} stopped for a cancellation that there is not, at {event.at:.3f}")
        if kind_of(event) == "lease_expired":
            self._expired(holder, event)
        self._part(holder, event)
        self._count(event)

    def _expired(self, holder: Hold, event: Event) -> None:
        early = holder.seen + self.lease_s - event.at
        if early > min(SLACK_S, self.lease_s / 4) and not overlaps(self.outages, holder.seen - SLACK_S, event.at):
            self._blame(Rule.ROBBED, f"the lease of {holder} was taken {early:.3f} s before it could expire")

    def _part(self, holder: Hold, event: Event) -> None:
        holder.ended, holder.end = event.at, event
        self._released, self._holder = holder, None
        if event.name != "completed" or event.detail.get("cause") and not event.detail.get("from"):
            self.closings.append(event)

    def _count(self, event: Event) -> None:
        if event.name == "released":
            self.interruptions += 1
            self.attempts = max(self.attempts - 1, 0)  # it cost nothing: the next one has the same number
        elif event.name in ("retried", "failed"):
            lost = kind_of(event) in LOSS_KINDS
            self.losses += lost
            self.failures += not lost
        if event.name in ("retried", "released") and event.detail.get("retry_in_s"):
            self._due = event

    def _spawned(self, event: Event) -> None:
        holder = self._holder
        if holder is None or (holder.worker, holder.attempt) != (event.worker_id, event.attempt):
            said = f"children by attempt {event.attempt} of {event.worker_id} at {event.at:.3f}"
            self._blame(Rule.STALE, f"{said}, when {holder or 'nobody'} held it")
            return
        holder.ended, holder.end, self._holder, self._parked = event.at, event, None, True

    # -- the row ends, or begins again -------------------------------------------------------------------------------

    def _end(self, event: Event) -> None:
        if event.detail.get("from") == "Queued" and self._holder is not None:
            said = f"the row was Queued when it was {event.name} at {event.at:.3f}"
            self._blame(Rule.ALONE, f"{said}, though {self._holder} still held it")
        self.completions += event.name == "completed"
        self.ended = event

    def _again(self, event: Event) -> None:
        if self._holder is not None:
            self._holder.ended, self._holder.end = event.at, event
        self._holder, self._due, self._parked = None, None, False
        before = event.detail.get("from")
        if before in ENDS.values():
            if self.ended is None or ENDS[self.ended.name] != before:
                ended = "no end" if self.ended is None else self.ended.name
                self._blame(Rule.ONE_END, f"it was {before} when it was {event.name}, by its events: {ended}")
            self.ended = None
            self.failures = self.losses = self.interruptions = 0


def tell(task_id: str, events: Iterable[Event], lease_s: float, outages: Sequence[tuple[float, float]]) -> Story:
    """The story of one task, from all of its events in any order."""
    story = Story(task_id, lease_s, outages)
    for event in sorted(events, key=lambda event: (event.id, event.at)):
        story.walk(event)
    return story
