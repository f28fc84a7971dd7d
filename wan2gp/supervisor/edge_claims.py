"""Claiming by an Edge Function that gives whatever is oldest, to whoever asks, once.

Types cannot be chosen, so a row that nobody here takes is put back, after a look past it at the next few: else one such
row would hide all behind it. A claim whose answer was lost has left a row In Progress; where the table is open it is
found by the worker's name and taken up.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wan2gp.logs import Facts
from wan2gp.supervisor.edge_book import FAILURES_MAX, Book
from wan2gp.supervisor.edge_calls import CLAIM, Doubtful, EdgeCalls, NotDone, Said
from wan2gp.supervisor.edge_counts import EdgeCounts, Queued
from wan2gp.supervisor.edge_debts import EdgeDebts
from wan2gp.supervisor.edge_rows import EdgeRows
from wan2gp.supervisor.queue import ClaimedTask, ClaimReply, QueueError, QueueUnavailable

LOOK_PAST = 3
"""How many rows that are not for us are set aside to see what is behind them."""
SHY_FIRST_S = 5.0
SHY_MAX_S = 60.0
"""After finding only such rows: no claim for so long, doubled each time, seconds."""
RACES = 3
"""How often a claim that should have found something is tried before others get their turn."""
RACE_PAUSE_S = 0.3
RACES_SOON = 3
"""After how many such claims in a row the usual pace is good enough."""
DOUBT_S = 90.0
"""How long a claim without an answer may still come true, seconds."""
_TASK_ID = re.compile(rb'"task_id"\s*:\s*"([0-9a-fA-F-]{36})"')
_TASK_TYPE = re.compile(rb'"task_type"\s*:\s*"([^"\\]*)"')


@dataclass(frozen=True)
class Given:
    """A row as a claim gives it. ``unreadable``: why its params cannot be had."""

    task_id: str
    task_type: str
    params: Any
    project_id: str | None = None
    user_id: str | None = None
    unreadable: str | None = None


class EdgeClaims:
    """One thread claims; :meth:`parked` may be called before."""

    def __init__(
        self,
        calls: EdgeCalls,
        counts: EdgeCounts,
        book: Book,
        debts: EdgeDebts,
        rows: Callable[[], EdgeRows | None],
        stopped: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``rows()``: the table, if it is open. ``stopped(s)`` waits; True when it was cut short."""
        self._calls = calls
        self._counts = counts
        self._book = book
        self._debts = debts
        self._rows = rows
        self._stopped = stopped
        self._clock = clock
        self._parked: set[str] = set()
        self._doubt_until = float("-inf")
        self._shy_until, self._shy_s = float("-inf"), 0.0
        self._foreign: set[str] = set()
        self._said: set[str] = set()
        self._lost_races = 0
        self.facts: Facts | None = None

    def parked(self, ids: set[str]) -> None:
        """Rows under our name that are not for us to take up: parents that wait for their children."""
        self._parked = set(ids)

    def claim(self, worker_id: str, types: Sequence[str]) -> ClaimReply:
        """At most one task, of one of these types."""
        self._debts.pay()  # rows that are owed to the queue go back before anything more is taken
        adopted = self._adopt(worker_id, types)
        if adopted is not None:
            return ClaimReply((adopted,))
        if self._clock() < self._shy_until and self._foreign.isdisjoint(types):
            return ClaimReply(())
        expected = self._counts.before_claim(types)
        if expected is Queued.NOTHING:
            self._lost_races = 0
            return ClaimReply(())
        return self._look(worker_id, types, expected)

    def _look(self, worker_id: str, types: Sequence[str], expected: Queued) -> ClaimReply:
        aside: list[Given] = []
        try:
            while len(aside) <= LOOK_PAST:
                given = self._claim(worker_id, races=RACES if expected is Queued.EXPECTED and not aside else 1)
                if given is None:
                    break
                if given.task_type in types:
                    self._shy_until, self._shy_s, self._lost_races = float("-inf"), 0.0, 0
                    return ClaimReply((self._begin(given),))
                aside.append(given)
        finally:
            for given in aside:
                self._debts.owe(given.task_id)
            with contextlib.suppress(QueueError):  # the next claim meets it again
                self._debts.pay()
        if aside:
            self._grow_shy(aside)
            return ClaimReply(())
        return ClaimReply((), self._soon(expected))

    def _soon(self, expected: Queued) -> float | None:
        """When to come back after losing races, seconds."""
        self._lost_races = self._lost_races + 1 if expected is Queued.EXPECTED else 0
        return random.uniform(0.5, 2.0) if 0 < self._lost_races <= RACES_SOON else None

    def _claim(self, worker_id: str, races: int) -> Given | None:
        for left in reversed(range(races)):
            given = self._claim_once(worker_id)
            if given is not None or not left or self._stopped(RACE_PAUSE_S * random.uniform(0.3, 1.7)):
                return given
        return None

    def _claim_once(self, worker_id: str) -> Given | None:
        try:
            said = self._calls.once(CLAIM, {"worker_id": worker_id, "run_type": "gpu"}, self._stopped)
            given = None if said.status == 204 else _given(said)
        except Doubtful:
            self._doubt_until = self._clock() + DOUBT_S
            raise
        if given is None and said.status != 204:
            self._doubt_until = self._clock() + DOUBT_S
            raise QueueUnavailable(
                f"the Edge Function {CLAIM} answered {said.status} with something that is no task ({said.words})",
                server_down=True,
            )
        return given

    def _begin(self, given: Given) -> ClaimedTask:
        self._debts.forget(given.task_id)
        held, past = self._book.begin(given.task_id, nameless=self._rows() is None)
        return ClaimedTask(
            id=given.task_id,
            task_type=given.task_type,
            params=given.params,
            attempt=past.starts,
            max_attempts=FAILURES_MAX,
            token=held.token,
            lease_id=held.lease_id,
            user_id=given.user_id,
            project_id=given.project_id,
            failures=past.failures,
            losses=past.losses,
            unreadable=given.unreadable,
        )

    # -- what is not for us ------------------------------------------------------------------------------------------

    def _grow_shy(self, aside: Sequence[Given]) -> None:
        self._shy_s = min(SHY_MAX_S, self._shy_s * 2.0 or SHY_FIRST_S)
        self._shy_until = self._clock() + self._shy_s * random.uniform(0.8, 1.2)
        self._foreign = {given.task_type for given in aside}
        for task_type in sorted(self._foreign - self._said):
            self._said.add(task_type)
            if self.facts is not None:
                self.facts("edge.foreign", task_type=task_type)

    # -- claims whose answers were lost ------------------------------------------------------------------------------

    def _adopt(self, worker_id: str, types: Sequence[str]) -> ClaimedTask | None:
        rows = self._rows()
        if rows is None or self._clock() > self._doubt_until:
            return None
        known = self._book.ours() | self._debts.ids() | self._parked
        adopted = None
        for row in rows.running(worker_id):
            if str(row["id"]) in known:
                continue
            if adopted is None and row["task_type"] in types:
                adopted = self._take_up(rows, row)
            else:
                rows.put_back(str(row["id"]), worker_id)
        return adopted

    def _take_up(self, rows: EdgeRows, row: dict[str, Any]) -> ClaimedTask:
        task_id = str(row["id"])
        params, unreadable = _readable(rows.params(task_id))
        params = params.get("params") if isinstance(params, dict) else None
        if self.facts is not None:
            self.facts.bind(task=task_id)("edge.adopted", task_id=task_id)
        names = row.get("project_id"), row.get("user_id")
        return self._begin(Given(task_id, row["task_type"], _unwrapped(params), *names, unreadable))


def _given(said: Said) -> Given | None:
    """None when the answer is no row."""
    if not said.ok:
        raise NotDone(f"the Edge Function {CLAIM} refused: {said.words} (HTTP {said.status})")
    body, unreadable = _readable(said.content)
    if unreadable is not None:
        # Only its params can be so; the row must not stay behind nameless.
        found, kinds = _TASK_ID.search(said.content), _TASK_TYPE.findall(said.content)
        if found is None or not kinds:
            return None
        return Given(found[1].decode(), kinds[-1].decode("utf-8", "replace"), None, unreadable=unreadable)
    if not isinstance(body, dict):
        return None
    task_id, task_type, project = body.get("task_id"), body.get("task_type"), body.get("project_id")
    if not isinstance(task_id, str) or not isinstance(task_type, str) or "params" not in body:
        return None
    return Given(task_id, task_type, _unwrapped(body["params"]), project if isinstance(project, str) else None)


def _readable(text: bytes) -> tuple[Any, str | None]:
    """The value, or why there is none although it is JSON."""
    try:
        return json.loads(text), None
    except RecursionError as error:
        return None, str(error)
    except json.JSONDecodeError:
        return None, None
    except ValueError as error:  # a number of too many digits
        return None, str(error)


def _unwrapped(params: Any) -> Any:
    """Params that came as a JSON string are what is in it."""
    if not isinstance(params, str):
        return params
    try:
        return json.loads(params)
    except (ValueError, RecursionError):
        return params
