"""Completing a result in the bucket by ``complete_task``, which makes the app's own record of it, once."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from urllib.parse import unquote

from wan2gp.logs import Facts
from wan2gp.supervisor.edge_calls import COMPLETE, Doubtful, EdgeCalls, NotDone, Said
from wan2gp.supervisor.edge_ends import COMPLETE as DONE
from wan2gp.supervisor.edge_ends import EdgeEnds, Sight
from wan2gp.supervisor.edge_rows import EdgeRows
from wan2gp.supervisor.publish import PublishFailed
from wan2gp.supervisor.queue import AccessDenied, FinishReply, FunctionsMissing, QueueUnavailable, Settlement
from wan2gp.supervisor.storage_answers import RETRY

LOOKS_S = (0.5, 1.5, 4.0)
"""Pauses before each look at what an unanswered call did: it may go on behind a broken connection, seconds."""
RUNS_S = 160.0
"""How long the function may go on after its call began, whatever came of that: its platform ends it then, seconds."""
LOOK_AGAIN_S = 10.0
"""Between looks while it may still run, seconds."""
REMEMBERED = 1000
_ANSWERED = frozenset({500, 546})
"""The function's own end, or its platform's word that it was ended; any other failure may be the gateway's alone."""
_CANNOT = "cannot complete the task by the function complete_task"


class EdgeCompletion:
    """:meth:`complete` may be repeated. Safe to use from several threads, except for two on one task."""

    def __init__(
        self,
        ends: EdgeEnds,
        calls: EdgeCalls,
        rows: Callable[[], EdgeRows | None],
        looks_s: Sequence[float] = LOOKS_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ends = ends
        self._calls = calls
        self._rows = rows
        self._looks_s = tuple(looks_s)
        self._closed = threading.Event()
        self._clock = clock
        self._called: OrderedDict[str, float] = OrderedDict()
        """By token of a lease: until when the function, which was called for it, may run; nothing is known yet."""
        self._lock = threading.Lock()
        self.facts: Facts | None = None

    def close(self) -> None:
        """Ends waits."""
        self._closed.set()

    def complete(self, one: Settlement) -> FinishReply:
        """Raises :class:`PublishFailed`: permanent for what only a person can mend."""
        try:
            reply = self._complete(one)
        except QueueUnavailable as error:
            raise _for_now(str(error)) from None
        self._uncalled(one)
        return reply

    def _complete(self, one: Settlement) -> FinishReply:
        sight = self._ends.look(one)
        over = self._over(one, sight)
        if over is not None:
            return dataclasses.replace(over, repeated=over.accepted)
        if one.token in self._called:
            return self._looked(one)
        if sight.row is not None and self._made(one):
            return self._find_out(one)
        if self._ends.revivable(one, sight):
            self._ends.revive(one)
        return self._call(one)

    def _over(self, one: Settlement, sight: Sight) -> FinishReply | None:
        """The answer when there is nothing to do any more."""
        if sight.status == DONE:
            return FinishReply(self._is_ours(one, sight), DONE)
        if sight.running is False and not self._ends.revivable(one, sight):
            if self._rows() is None and one.token in self._called:
                return FinishReply(True, DONE)  # it was active before the call, and is no more
            return FinishReply(False, sight.status)
        return None

    def _call(self, one: Settlement) -> FinishReply:
        self._runs(one, RUNS_S)
        body = {"task_id": one.task_id, "storage_path": one.storage_path}
        if one.thumbnail_path:
            body["thumbnail_storage_path"] = one.thumbnail_path
        try:
            said = self._calls.once(COMPLETE, body)
        except Doubtful as doubt:
            if doubt.status in _ANSWERED:
                self._runs(one, 0.0)
            return self._find_out(one)
        except NotDone as error:
            self._uncalled(one)
            raise _for_now(str(error), error.retry_after_s) from None
        except (AccessDenied, FunctionsMissing) as error:
            self._uncalled(one)
            raise PublishFailed("publish.complete_task", f"{_CANNOT}: {error}; {RETRY}", permanent=True) from None
        self._runs(one, 0.0)
        return self._verified(one) if said.ok else self._refused(one, said)

    def _runs(self, one: Settlement, for_s: float) -> None:
        with self._lock:
            self._called[one.token] = self._clock() + for_s
            while len(self._called) > REMEMBERED:
                self._called.popitem(last=False)

    def _uncalled(self, one: Settlement) -> None:
        with self._lock:
            self._called.pop(one.token, None)

    def _verified(self, one: Settlement) -> FinishReply:
        """Its success is not believed where it can be looked after."""
        sight = self._ends.look(one)
        over = self._over(one, sight)
        if over is None and sight.running is None:
            # Nothing of an earlier life tells whether its row had failed, which the function does not complete.
            over = FinishReply(True, DONE) if self._ends.is_of_this_life(one) else self._by_hand(one, None)
        return over or self._later(one) or self._by_hand(one, "publish.no_effect")

    def _later(self, one: Settlement) -> FinishReply | None:
        """What a few more looks show."""
        for pause in self._looks_s:
            if self._closed.wait(pause):
                raise _for_now("the worker stops")
            over = self._over(one, self._ends.look(one))
            if over is not None:
                return over
        return None

    def _find_out(self, one: Settlement) -> FinishReply:
        """It may have run. Looks for a while whether the row is over."""
        return self._later(one) or self._looked(one)

    def _looked(self, one: Settlement) -> FinishReply:
        """The row is not over: what to do about it. Waits for nothing, for others want to publish too."""
        made = self._made(one)
        left = self._called.get(one.token, float("-inf")) - self._clock()
        if not made and left > 0:
            raise _for_now("it gave no answer and may be at work yet", min(left, LOOK_AGAIN_S))
        if self._rows() is not None and not made:
            self._uncalled(one)  # neither its record nor the row: surely not done
            raise _for_now("it failed before it did anything")
        # A second call could make a second record of the result; the row can be completed without it.
        return self._by_hand(one, None if self._rows() is not None else "publish.unsure")

    def _made(self, one: Settlement) -> bool:
        rows = self._rows()
        return rows is not None and one.storage_path is not None and rows.has_generation(one.storage_path)

    def _is_ours(self, one: Settlement, sight: Sight) -> bool:
        """Nobody else's result has our path: it names the lease. An app may show another place for what we gave it."""
        if one.storage_path is not None and one.storage_path in unquote(sight.output):
            return True
        ours = sight.row is not None and self._ends.is_ours(one, sight.row)
        return ours and one.token in self._called

    def _by_hand(self, one: Settlement, fact: str | None) -> FinishReply:
        reply = self._ends.write(one, DONE, one.output_location)
        if reply.accepted and fact is not None and self.facts is not None:
            self.facts.bind(task=one.task_id)(fact, task_id=one.task_id)
        return reply

    def _refused(self, one: Settlement, said: Said) -> FinishReply:
        self._uncalled(one)
        if said.status == 404:
            return FinishReply(False, None)
        meaning = {
            400: "the task's row lacks what the function needs (a user, say)",
            403: "the function does not accept the worker's key, or the file's path is not what it expects",
        }.get(said.status, "the function refuses it")
        raise PublishFailed(
            "publish.complete_task",
            f"{_CANNOT}: {meaning} (HTTP {said.status}: {said.words}): mend that, {RETRY}",
            permanent=True,
        )


def _for_now(why: str, retry_after_s: float | None = None) -> PublishFailed:
    return PublishFailed("publish.unavailable", f"{_CANNOT}: {why}", permanent=False, retry_after_s=retry_after_s)
