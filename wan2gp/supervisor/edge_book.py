"""What one life of a worker remembers of its tasks where no database of ours does: leases, tries and their causes."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from wan2gp.supervisor.queue import FinishReply, LeaseBeat, Settlement, Verb

FAILURES_MAX, LOSSES_MAX = 3, 2
"""So many failures of its own, or losses of its process, and a task is given up."""
REMEMBERED = 5000
"""Tasks, and ends of leases, that are remembered."""
NAMELESS = "n"
"""How the secret part of a token begins whose claim leaves no name: no hexadecimal digit."""


@dataclass
class Past:
    """Of one task."""

    starts: int = 0
    failures: int = 0
    losses: int = 0
    causes: list[str] = field(default_factory=list)


@dataclass
class Held:
    """A task that is ours. ``token`` names the task, so that one of an earlier life tells whose it is, and whether the
    claim left our name in its row."""

    task_id: str
    token: str = field(repr=False)
    lease_id: str
    seen: bool = False
    """The counts have listed it as active since we have it."""
    missed: int = 0
    """How often in a row they did not list it any more."""
    beat: LeaseBeat | None = None
    """What it does."""


class Book:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._past: OrderedDict[str, Past] = OrderedDict()
        self._held: dict[str, Held] = {}
        self._ended: OrderedDict[tuple[str, Verb], FinishReply] = OrderedDict()
        self._verdicts: OrderedDict[str, tuple[bool, str]] = OrderedDict()
        self._kept: set[str] = set()
        self._withheld: OrderedDict[str, None] = OrderedDict()

    def begin(self, task_id: str, *, nameless: bool = False) -> tuple[Held, Past]:
        """A new lease, and the task's past with this start counted. ``nameless``: its row may bear no worker's name."""
        with self._lock:
            past = self._past.setdefault(task_id, Past())
            self._past.move_to_end(task_id)
            past.starts += 1
            held = Held(task_id, f"{task_id}.{NAMELESS if nameless else ''}{uuid.uuid4().hex}", uuid.uuid4().hex)
            self._held[task_id] = held
            _bound(self._past)
            return held, Past(past.starts, past.failures, past.losses, list(past.causes))

    def held(self, task_id: str) -> Held | None:
        with self._lock:
            return self._held.get(task_id)

    def ours(self) -> set[str]:
        """The tasks that we hold, or that wait in the spool of an earlier life."""
        with self._lock:
            return {*self._held, *self._kept}

    def keep(self, tokens: Iterable[str]) -> set[str]:
        """Leases of an earlier life that are to stay; returns their tasks."""
        with self._lock:
            self._kept |= {token.rpartition(".")[0] for token in tokens}
            return set(self._kept)

    def note(self, beat: LeaseBeat) -> Held | None:
        """What a task of ours does. None when its lease is not of this life."""
        with self._lock:
            held = self._held.get(beat.task_id)
            if held is None or held.token != beat.token:
                return None
            held.beat = beat
            return held

    def ended(self, settlement: Settlement) -> FinishReply | None:
        """The answer to this very settlement, if it was given."""
        with self._lock:
            return self._ended.get((settlement.token, settlement.verb))

    def end(self, settlement: Settlement, reply: FinishReply) -> None:
        """The lease is over."""
        with self._lock:
            self._ended[settlement.token, settlement.verb] = reply
            _bound(self._ended)
            held = self._held.get(settlement.task_id)
            if held is not None and held.token == settlement.token:
                del self._held[settlement.task_id]
            self._kept.discard(settlement.task_id)
            if settlement.verb is Verb.WITHHOLD and reply.accepted:
                self._withheld[settlement.token] = None
                _bound(self._withheld)

    def withheld(self, settlement: Settlement) -> bool:
        """Whether we ourselves failed its row because it could not be published."""
        with self._lock:
            return settlement.token in self._withheld

    def hold_again(self, settlement: Settlement) -> None:
        """A withheld task is about to be under way again, until its next end: nobody may take it for a lost claim."""
        with self._lock:
            if settlement.task_id not in self._held:
                self._held[settlement.task_id] = Held(settlement.task_id, settlement.token, "")
            self._ended.pop((settlement.token, Verb.WITHHOLD), None)

    def revived(self, settlement: Settlement) -> None:
        """It is under way again: its row is not failed by us any more."""
        with self._lock:
            self._withheld.pop(settlement.token, None)

    def verdict(self, settlement: Settlement) -> tuple[bool, str]:
        """Whether a RETRY, LOSS or RELEASE queues its task again, and all that has gone wrong with it.

        Counted once for each lease, however often it is asked.
        """
        with self._lock:
            known = self._verdicts.get(settlement.token)
            if known is None:
                known = self._count(settlement)
                self._verdicts[settlement.token] = known
                _bound(self._verdicts)
            return known

    def _count(self, settlement: Settlement) -> tuple[bool, str]:
        past = self._past.setdefault(settlement.task_id, Past())
        if settlement.verb is Verb.RELEASE:
            past.starts = max(0, past.starts - 1)
            return True, ""
        past.failures += settlement.verb is Verb.RETRY
        past.losses += settlement.verb is Verb.LOSS
        past.causes.append(settlement.error_message or settlement.verb.value)
        again = past.failures < FAILURES_MAX and past.losses < LOSSES_MAX
        return again, _all_of(past.causes)


def nameless(token: str) -> bool:
    """Whether the row of this lease may bear no worker's name: a personal access token claims so."""
    return token.rpartition(".")[2].startswith(NAMELESS)


def _all_of(causes: list[str]) -> str:
    """The last cause, whose code leads, and those before it."""
    if len(causes) == 1:
        return causes[0]
    earlier = "; ".join(f"try {number}: {cause}" for number, cause in enumerate(causes[:-1], 1))
    return f"{causes[-1]} (after {earlier})"


def _bound(remembered: OrderedDict[Any, Any]) -> None:
    while len(remembered) > REMEMBERED:
        remembered.popitem(last=False)
