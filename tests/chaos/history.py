"""The books: what a run left behind, held against what is promised. Pure: a history in, violations out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.chaos.in_time import late
from tests.chaos.memory import swollen
from tests.chaos.records import (
    FINAL,
    Artifact,
    Cancelled,
    Deed,
    Event,
    History,
    Inserted,
    Life,
    Row,
    Rule,
    Sample,
    Violation,
)
from tests.chaos.rows import judge
from tests.chaos.story import Story, tell

__all__ = [
    "FINAL",
    "Artifact",
    "Cancelled",
    "Deed",
    "Event",
    "History",
    "Inserted",
    "Life",
    "Row",
    "Rule",
    "Sample",
    "Violation",
    "check",
    "stories_of",
]


def check(history: History) -> list[Violation]:
    """Everything that is wrong, task by task and then the run as a whole; the same sentence once."""
    stories = stories_of(history)
    files: dict[str, list[Artifact]] = defaultdict(list)
    for file in history.artifacts:
        files[file.task_id].append(file)
    found = [*_acknowledged(history), *_cancelled(history, stories), *_nobodys(history)]
    for row in history.rows:
        story = stories[row.id]
        found += [*story.wrong, *judge(row, story, files[row.id])]
    found += [*late(history, stories.values()), *_left(history), *swollen(history)]
    return list(dict.fromkeys(found))


def stories_of(history: History) -> dict[str, Story]:
    """The story of every task that has a row or an event."""
    events: dict[str, list[Event]] = {row.id: [] for row in history.rows}
    for event in history.events:
        events.setdefault(event.task_id, []).append(event)
    return {task_id: tell(task_id, some, history.lease_s, history.outages) for task_id, some in events.items()}


def _acknowledged(history: History) -> Iterator[Violation]:
    there = {row.id for row in history.rows}
    for insert in history.inserted:
        if insert.task_id not in there:
            yield Violation(
                insert.task_id, Rule.ACKNOWLEDGED.value, f"inserted at {insert.at:.3f}, and there is no such row"
            )


def _cancelled(history: History, stories: dict[str, Story]) -> Iterator[Violation]:
    """What a client was told. What the events say of cancelled tasks is judged with them."""
    rows = {row.id: row for row in history.rows}
    again = {event.task_id for event in history.events if event.name in ("requeued", "resumed")}
    for cancel in history.cancels:
        row = rows.get(cancel.task_id)
        if cancel.accepted and row is not None and row.status != "Cancelled" and row.id not in again:
            ended = stories[row.id].ended
            after = "" if ended is None else f", {ended.name} at {ended.at:.3f}"
            yield Violation(row.id, Rule.CANCELLED.value, f"cancelled at {cancel.at:.3f}, it is {row.status}{after}")


def _nobodys(history: History) -> Iterator[Violation]:
    there = {row.id for row in history.rows}
    for file in history.artifacts:
        if file.task_id not in there:
            yield Violation(
                file.task_id, Rule.UNPUBLISHED.value, f"{file.path} is published for a task that is not there"
            )


def _left(history: History) -> Iterator[Violation]:
    left: Sequence[tuple[Rule, tuple[str, ...]]] = (
        (Rule.LEASE_LEFT, history.leases_left),
        (Rule.SPOOL_LEFT, history.spools),
        (Rule.ORPHAN, history.orphans),
        (Rule.PORT_LEFT, history.open_ports),
        (Rule.FILE_LEFT, history.leftover_files),
    )
    for rule, names in left:
        for name in names:
            yield Violation(None, rule.value, name)
