"""What a row says at the end, held against the events of its task and against the files that were published for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tests.chaos.records import FINAL, Artifact, Event, Row, Rule, Violation
from tests.chaos.story import ENDS, Story, kind_of

VERBS = {
    "retried": {"retry", "loss"},
    "failed": {"fail", "retry", "loss"},
    "released": {"release"},
    "withheld": {"withhold"},
    "stopped": {"cancel"},
    "completed": {"complete"},
}
"""How an event's ending is called in ``result_data.attempts``; one that is not named here may be called anything."""
HISTORY_MAX = 20
"""So many attempts a row tells of."""
POSTER = "poster"


def judge(row: Row, story: Story, artifacts: Sequence[Artifact]) -> list[Violation]:
    """All that is wrong with one row."""
    found = [*_end(row, story), *_counters(row, story), *_causes(row, story), *_files(row, story, artifacts)]
    return [Violation(row.id, rule.value, sentence) for rule, sentence in found]


Wrong = Iterator[tuple[Rule, str]]


def _end(row: Row, story: Story) -> Wrong:
    if row.status not in FINAL:
        yield Rule.FINAL, f"it is {row.status} after {row.attempts} attempt(s)"
    elif story.ended is None:
        yield Rule.ONE_END, f"it is {row.status}, and no event tells how it came to that"
    elif ENDS[story.ended.name] != row.status:
        yield Rule.ONE_END, f"it is {row.status}, and was {story.ended.name} at {story.ended.at:.3f}"


# -- counters and causes ---------------------------------------------------------------------------------------------


def _counters(row: Row, story: Story) -> Wrong:
    for name in ("attempts", "failures", "losses", "interruptions"):
        on_row, told = getattr(row, name), getattr(story, name)
        if on_row is not None and on_row != told:
            yield Rule.COUNTERS, f"{name} is {on_row} on the row and {told} by its events"
    if story.losses > 2 or story.failures > row.max_attempts:
        yield Rule.COUNTERS, f"{story.failures} failures of {row.max_attempts}, {story.losses} losses of 2 were allowed"


def _causes(row: Row, story: Story) -> Wrong:
    for event in story.closings:
        if event.name in ("retried", "failed") and not kind_of(event) and not _refused_by_database(event):
            yield Rule.CAUSES, f"attempt {event.attempt} was {event.name} at {event.at:.3f} without a cause"
    if story.ended is None or story.ended.attempt is None or story.by_app or row.status not in FINAL:
        return  # the row was ended by others: it tells what it told before
    told = row.result_data.get("attempts", [])
    if len(story.closings) > HISTORY_MAX:
        return
    if len(told) != len(story.closings):
        events = ", ".join(f"{event.attempt} {event.name}" for event in story.closings) or "none"
        yield Rule.CAUSES, f"the row tells of {len(told)} attempt(s), the events of {len(story.closings)}: {events}"
        return
    for entry, event in zip(told, story.closings, strict=True):
        wrong = _differs(entry, event)
        if wrong:
            yield Rule.CAUSES, f"attempt {event.attempt}, {event.name} at {event.at:.3f}: {wrong}"


def _refused_by_database(event: Event) -> bool:
    """An outcome that could not be stored at all fails its task with that sentence alone."""
    return str(event.detail.get("error_message", "")).startswith("queue.refused:")


def _differs(entry: Mapping[str, Any], event: Event) -> str | None:
    """How an entry of ``result_data.attempts`` differs from the event of the same ending."""
    if (entry.get("attempt"), entry.get("worker")) != (event.attempt, event.worker_id):
        return f"the row says attempt {entry.get('attempt')} of {entry.get('worker')}, not of {event.worker_id}"
    if event.name in VERBS and entry.get("verb") not in VERBS[event.name]:
        return f"the row calls it {entry.get('verb')}"
    cause = event.detail.get("cause")
    if cause and not _within(cause, entry):
        return f"the row gives another cause than the event: {dict(entry)} and {cause}"
    return None


def _within(small: Any, large: Any) -> bool:
    """Whether all that ``small`` says, ``large`` says too; the events leave nulls out."""
    if isinstance(small, Mapping):
        return isinstance(large, Mapping) and all(
            key in large and _within(value, large[key]) for key, value in small.items()
        )
    return bool(small == large)


# -- files -----------------------------------------------------------------------------------------------------------


def _files(row: Row, story: Story, artifacts: Sequence[Artifact]) -> Wrong:
    for file in artifacts:
        if not file.decodable:
            yield Rule.DECODABLE, f"{file.path} cannot be decoded"
        if file.expected is not None and file.sha256 != file.expected:
            yield Rule.CONTENT, f"{file.path} holds something else than was asked for"
    if row.status == "Complete" and story.ended is not None and story.ended.attempt is not None:
        yield from _published(row, story, artifacts)
    elif artifacts and not story.completions:
        names = ", ".join(file.path for file in artifacts)
        yield Rule.UNPUBLISHED, f"it is {row.status}, and published: {names}"


def _published(row: Row, story: Story, artifacts: Sequence[Artifact]) -> Wrong:
    told = [one for one in row.result_data.get("artifacts", []) if isinstance(one, Mapping)]
    made = sum(1 for one in told if one.get("kind") != POSTER)
    if row.makes is not None and made != row.makes:
        yield Rule.PUBLISHED, f"it makes {row.makes} file(s), and its row tells of {made}"
    # Done again by hand, it may have left what it published before.
    if not len(told) <= len(artifacts) <= len(told) * max(story.completions, 1):
        names = ", ".join(file.path for file in artifacts) or "none"
        yield Rule.PUBLISHED, f"its row tells of {len(told)} file(s), and {len(artifacts)} are published: {names}"
    missing = Counter(_sums(told)) - Counter(file.sha256 for file in artifacts)
    if missing:
        yield Rule.CONTENT, f"no published file has the sha256 {', '.join(sorted(missing))} that its row tells of"
    strange = {file.sha256 for file in artifacts} - set(_sums(told))
    if strange and story.completions < 2:
        yield Rule.CONTENT, f"a published file has a sha256 that its row does not tell of: {', '.join(sorted(strange))}"


def _sums(told: Iterable[Mapping[str, Any]]) -> list[str]:
    return [str(one.get("sha256")) for one in told]
