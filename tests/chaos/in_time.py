"""Whether what lost its holder was taken up in time: by another worker after the lease, or by its own next life.

A lease may be taken only by a worker that has had a whole lease's contact with a database that was up as long. So a
deadline counts only from the moment at which somebody is able to keep it, and only if it stays able until then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.chaos.records import History, Life, Rule, Violation
from tests.chaos.story import LOSS_KINDS, Hold, Story, kind_of, overlaps

STARTING_S = 4.0
"""What a supervisor may take from its birth to its first claim, when nothing tells."""
LATE_S = 3.0
"""How late a busy machine may be in keeping a promise of seconds, and the books still call it kept."""
LONGEST_PAUSE_S = 12.0
"""A claimer that found the database away asks again after its pause, which grows as long as the outage, up to this."""


@dataclass(frozen=True)
class Stretch:
    """A time in which a worker could claim without a break; ``first``: it begins with the worker's start."""

    worker: str
    begun: float
    ended: float
    first: bool


def stretches(life: Life, history: History) -> Iterator[Stretch]:
    """What pauses and outages leave of a life."""
    begun, first = life.begun + STARTING_S if life.able is None else life.able, True
    last = history.ended_at if life.ended is None else life.ended
    for start, stop in sorted([*life.pauses, *history.outages]):
        if stop <= begun or start >= last:
            continue
        if start > begun:
            yield Stretch(life.worker, begun, start, first)
        asleep_s = min(LONGEST_PAUSE_S, 1.5 * (stop - start) + 0.5)
        begun, first = max(begun, stop + asleep_s), first and start <= begun
    if begun < last:
        yield Stretch(life.worker, begun, last, first)


class Deadlines:
    """When a task must have been taken up."""

    def __init__(self, history: History) -> None:
        self._lease_s = history.lease_s
        # A worker keeps house with a claim, once in an eighth of a lease.
        self._look_s = max(2 * history.poll_s, history.poll_s + history.lease_s / 8) + LATE_S
        self._able = [stretch for life in history.lives for stretch in stretches(life, history)]

    def after(self, lost_at: float, worker: str | None) -> float | None:
        """For work that ``worker`` lost hold of; None when nobody was able to take it up."""
        due = [self._by(stretch, lost_at, worker) for stretch in self._able]
        return min((at for at in due if at is not None), default=None)

    def _by(self, stretch: Stretch, lost_at: float, worker: str | None) -> float | None:
        if stretch.worker == worker and stretch.first and stretch.begun > lost_at:
            due = stretch.begun + self._look_s  # it takes back what its last life left
        elif stretch.worker == worker and stretch.begun <= lost_at:
            return None
        else:
            due = max(lost_at, stretch.begun) + self._lease_s + self._look_s
        return due if due <= stretch.ended else None


@dataclass(frozen=True)
class Loss:
    """An attempt whose worker or process went away, and by when it had to be over."""

    task_id: str
    hold: Hold
    at: float
    due: float
    how: str


def late(history: History, stories: Iterable[Story]) -> list[Violation]:
    """Attempts that outlived the loss of their worker or of their process by too long."""
    deadlines = Deadlines(history)
    holds = [(story.task_id, hold) for story in stories for hold in story.holds]
    losses = [*_lives_ended(history, deadlines, holds), *_stood_still(history, deadlines, holds)]
    found = []
    for loss in [*losses, *_killed(history, holds)]:
        ended = _end(loss.hold, history)
        if ended > loss.due:
            late_s = f"held until {ended:.3f}, {ended - loss.due:.3f} s too long"
            said = f"{loss.hold} was gone at {loss.at:.3f} ({loss.how}), and yet it was {late_s}"
            found.append(Violation(loss.task_id, Rule.RESCUED.value, said))
    return found


Holds = Sequence[tuple[str, Hold]]


def _lives_ended(history: History, deadlines: Deadlines, holds: Holds) -> Iterator[Loss]:
    """Its supervisor ended. Of several ends, only the last: a life between may have kept it, to tell its result."""
    for task_id, hold in holds:
        ends = [life.ended for life in history.lives if life.worker == hold.worker and life.ended is not None]
        at = max((end for end in ends if _held(hold, end)), default=None)
        due = None if at is None else deadlines.after(at, hold.worker)
        if at is not None and due is not None and not _told_later(hold):
            yield Loss(task_id, hold, at, due, "its worker ended")


def _stood_still(history: History, deadlines: Deadlines, holds: Holds) -> Iterator[Loss]:
    """Its supervisor was stopped or cut off, for so long that somebody else had to take its work."""
    for life in history.lives:
        for start, stop in life.pauses:
            due = deadlines.after(start, life.worker)
            if due is None or due > stop:
                continue
            for task_id, hold in holds:
                if hold.worker == life.worker and _held(hold, start):
                    yield Loss(task_id, hold, start, due, "its worker stood still")


def _killed(history: History, holds: Holds) -> Iterator[Loss]:
    """Its process was killed under a supervisor that went on, and had to say so long before the lease ended."""
    due_s = history.lease_s + 2 * history.poll_s + LATE_S
    for deed in history.deeds:
        if deed.victim not in ("handler", "shim") or not deed.name.startswith("kill"):
            continue
        for task_id, hold in holds:
            ours = task_id == deed.task_id and hold.worker == deed.worker and _held(hold, deed.at)
            at_work = hold.moved is not None and hold.moved <= deed.at  # else it goes to the next process, as it is
            if ours and at_work and not _told_later(hold) and _goes_on(history, hold, deed.at, deed.at + due_s):
                yield Loss(task_id, hold, deed.at, deed.at + due_s, f"its {deed.victim} was killed")


def _told_later(hold: Hold) -> bool:
    """Its work was done before, and its worker told of it later, from the spool: then nothing was lost."""
    end = hold.end
    return end is not None and end.worker_id == hold.worker and kind_of(end) not in LOSS_KINDS


def _held(hold: Hold, at: float) -> bool:
    return hold.begun <= at and (hold.ended is None or hold.ended > at)


def _end(hold: Hold, history: History) -> float:
    return history.ended_at if hold.ended is None else hold.ended


def _goes_on(history: History, hold: Hold, at: float, until: float) -> bool:
    """Whether its supervisor works on undisturbed until then: else another rule judges."""
    if overlaps(history.outages, at, until):
        return False
    lives = [life for life in history.lives if life.worker == hold.worker and life.begun <= at]
    ends = [(life, history.ended_at if life.ended is None else life.ended) for life in lives]
    return any(end >= until and not overlaps(life.pauses, at, until) for life, end in ends)
