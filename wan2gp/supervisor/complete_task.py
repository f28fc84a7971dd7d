"""Completing tasks of the predecessor's app by its own function, which alone makes what the app shows and bills.

The Edge Function ``complete_task`` is not safe to repeat, and its answer proves nothing: it says 200 also when no row
changed, and fails after the work was done. So it is called under a lease that the database marks for it, and the
database is asked before every call, and after it, what there is already. A call that got no answer may go on for as
long as its platform lets it: until then it is looked after and not repeated.
"""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import httpx

from wan2gp.logs import Facts
from wan2gp.supervisor.publish import PublishFailed
from wan2gp.supervisor.queue import FinishReply, Settlement, TaskQueue, Verb
from wan2gp.supervisor.storage_answers import RETRY, Answer
from wan2gp.supervisor.supabase_project import CONNECT_S, SupabaseProject, retry_after_s

CALL_S = 60.0
"""Longest wait for the function, seconds: it copies no file, but makes rows and asks for the bill."""
LEASE_S = 120.0
"""What a lease is renewed for before a call: longer than the call and what follows, seconds."""
LOOK_S = 5.0
"""Longest wait for the answer whether the function exists, seconds."""
RUNS_S = 160.0
"""How long the function may go on after a call began that got no answer: its platform ends it after 150 s, seconds."""
LOOK_AGAIN_S = 10.0
"""Between looks while it may still run, seconds."""
QUICK_S = 10.0
"""A gateway's refusal that takes longer may come after the function began, seconds."""
REMEMBERED = 1000
CALLS = 3
"""How often one task's function is called at most before the others of the worker get their turn."""
PAUSES_S = (1.0, 2.0, 4.0)
"""Between a call that failed and the next; after each the database is asked whether the call did its work after all."""
RETRY_AFTER_MAX_S = 10.0
ANSWER_MAX = 4000
_NOW_ONLY = frozenset({408, 425, 429})
_ENDED = frozenset({500, 546})
"""The function's own end, or its platform's word that it was ended: it goes on no more."""
_GAVE_UP = frozenset({504, 522, 524})
"""A gateway waited for the function, which goes on."""
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
_CANNOT = "cannot complete the task by the function complete_task"
_MEANINGS = {
    400: "the task's row lacks what the function needs (a user, say)",
    401: "the function does not accept the worker's key",
    403: "the function does not accept the worker's key, or the file's path is not what it expects",
    404: "the function does not know the task",
}


@dataclass(frozen=True)
class _Failure:
    """What to raise when nothing comes of the call, and whether the function may still be at work."""

    error: PublishFailed
    unanswered: bool = False


class CompletingQueue:
    """A :class:`~wan2gp.supervisor.queue.TaskQueue` whose COMPLETE goes by the function, where the result lies in the
    project's bucket and the task belongs to a project; all else is ``inner``'s.

    :meth:`finish` and :meth:`finish_many` raise :class:`~wan2gp.supervisor.publish.PublishFailed` too:
    ``publish.complete_task`` for what only a person can mend, ``publish.unavailable`` for what passes. Nothing of the
    batch is settled then; the call may be repeated. It never waits for a function that gives no answer: a repeat looks
    what has become of it.
    """

    def __init__(
        self,
        inner: TaskQueue,
        project: SupabaseProject,
        facts: Facts | None = None,
        *,
        call_s: float = CALL_S,
        pauses_s: Sequence[float] = PAUSES_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``call_s`` must be shorter than :data:`LEASE_S` less the sum of ``pauses_s``."""
        self.name = inner.name
        self._inner = inner
        self._project = project
        self._facts = facts
        self._call_s = call_s
        self._pauses_s = tuple(pauses_s)
        self._clock = clock
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._running: OrderedDict[tuple[str, str], float] = OrderedDict()
        """By task and token: until when the function, whose call got no answer, may run."""
        self.check, self.wait, self.interrupt = inner.check, inner.wait, inner.interrupt
        self.claim, self.heartbeat, self.spawn = inner.claim, inner.heartbeat, inner.spawn
        self.enqueue, self.cancel, self.retry = inner.enqueue, inner.cancel, inner.retry
        self.reclaim_own, self.rescue, self.completing = inner.reclaim_own, inner.rescue, inner.completing
        self.task, self.tasks, self.stats = inner.task, inner.tasks, inner.stats
        self.facts, self.log, self.event = inner.facts, inner.log, inner.event

    def __getattr__(self, name: str) -> Any:
        """What the way to this database has beyond the contract (whether it listens, say)."""
        return getattr(self._inner, name)

    def close(self) -> None:
        self._closing.set()
        self._inner.close()

    def finish(self, settlement: Settlement) -> FinishReply:
        self._complete(settlement)
        return self._judged(settlement, self._inner.finish(settlement))

    def finish_many(self, settlements: Sequence[Settlement]) -> tuple[FinishReply, ...]:
        for settlement in settlements:
            self._complete(settlement)
        replies = self._inner.finish_many(settlements)
        return tuple(map(self._judged, settlements, replies))

    def _judged(self, one: Settlement, reply: FinishReply) -> FinishReply:
        """The function knows no lease: called just before ours was taken (we were frozen, say), it completes the row of
        whoever has the task now, with our file. That file is the result then, and must not be deleted as refused."""
        if reply.accepted or reply.status != "Complete" or not _by_function(one):
            return reply
        row = self._inner.task(one.task_id) or {}
        shown = unquote(str(row.get("output_location") or ""))
        return FinishReply(True, reply.status, repeated=True) if str(one.storage_path) in shown else reply

    def _complete(self, one: Settlement) -> None:
        """Returns once our own finish says the rest; raises :class:`PublishFailed` while the function is owed."""
        if not _by_function(one) or self._over(one):
            return
        if (left_s := self._runs_yet_s(one)) > 0:
            raise _for_now("it gave no answer and may be at work yet", min(left_s, LOOK_AGAIN_S))
        for calls_left in reversed(range(CALLS)):
            failure = self._call(one)
            if self._over(one):  # whatever it said
                return
            if failure is not None and (failure.error.permanent or not calls_left):
                raise failure.error
            if calls_left and self._over_soon(one, failure):
                return
            if failure is not None and failure.unanswered:
                raise failure.error
        # It says yes and does nothing, so there is nothing to wait for: the row must not stay In Progress for ever.
        if self._facts is not None:
            self._facts.bind(task=one.task_id)("publish.no_effect", task_id=one.task_id)

    def _over(self, one: Settlement) -> bool:
        """Whether calling the function would be wrong: it has done its work, or the task is ours no longer (which our
        own finish is told then)."""
        found = self._inner.completing(one.task_id, one.token, LEASE_S)
        over = not found.held or found.status == "Complete" or found.made
        if over:
            with self._lock:
                self._running.pop((one.task_id, one.token), None)
        return over

    def _runs_yet_s(self, one: Settlement) -> float:
        """For how long it must not be called again, seconds."""
        with self._lock:
            return self._running.get((one.task_id, one.token), float("-inf")) - self._clock()

    def _may_run(self, one: Settlement, until: float) -> None:
        with self._lock:
            self._running[one.task_id, one.token] = until
            while len(self._running) > REMEMBERED:
                self._running.popitem(last=False)

    def _over_soon(self, one: Settlement, failure: _Failure | None) -> bool:
        """Whether the call, which may go on behind a broken connection, does its work while we wait for the next."""
        asked = min(failure.error.retry_after_s or 0.0, RETRY_AFTER_MAX_S) if failure is not None else 0.0
        for pause in self._pauses_s:
            if self._closing.wait(max(asked, pause * random.uniform(0.8, 1.2))):
                raise _for_now("the worker stops")
            if self._over(one):
                return True
            asked = 0.0
        return False

    def _call(self, one: Settlement) -> _Failure | None:
        """One call; what it says proves nothing, but tells what to do next."""
        began = self._clock()
        failure = self._called(one, began)
        if failure is not None and failure.unanswered:
            self._may_run(one, began + RUNS_S)
        return failure

    def _called(self, one: Settlement, began: float) -> _Failure | None:
        body = {"task_id": one.task_id, "storage_path": one.storage_path}
        if one.thumbnail_path:
            body["thumbnail_storage_path"] = one.thumbnail_path
        try:
            with self._project.watch(time.monotonic() + self._call_s, silence_s=self._call_s):
                response = self._project.http.post(
                    _address(self._project),
                    json=body,
                    headers=self._project.headers(),
                    timeout=httpx.Timeout(self._call_s, connect=CONNECT_S),
                )
        except httpx.HTTPError as error:
            return _Failure(_for_now(f"no answer ({type(error).__name__})"), not isinstance(error, _NOT_SENT))
        if response.is_success:
            return None
        return self._failure(response, slow=self._clock() - began > QUICK_S)

    def _failure(self, response: httpx.Response, slow: bool) -> _Failure:
        secrets = (self._project.headers()["apikey"],)
        said = Answer(response.status_code, response.headers, response.text[:ANSWER_MAX], secrets).said
        status = response.status_code
        if status in _NOW_ONLY or status >= 500:
            error = _for_now(f"HTTP {status}: {said}", retry_after_s(response.headers.get("Retry-After")))
            return _Failure(error, status in _GAVE_UP or slow and status not in _ENDED)
        meaning = _MEANINGS.get(status, "the function refuses it")
        sentence = f"{_CANNOT}: {meaning} (HTTP {status}: {said}): mend that, {RETRY}"
        return _Failure(PublishFailed("publish.complete_task", sentence, permanent=True))


def available(project: SupabaseProject) -> bool | None:
    """Whether the project has the function; None when that cannot be told now. Calls it with a method that it refuses,
    so that nothing is done."""
    try:
        with project.watch(time.monotonic() + LOOK_S):
            response = project.http.get(
                _address(project), headers=project.headers(), timeout=httpx.Timeout(LOOK_S, connect=CONNECT_S)
            )
    except httpx.HTTPError:
        return None
    if response.status_code in _NOW_ONLY or response.status_code >= 500 or response.is_redirect:
        return None
    return response.status_code != 404


def _by_function(one: Settlement) -> bool:
    return one.verb is Verb.COMPLETE and bool(one.storage_path and one.project_id)


def _address(project: SupabaseProject) -> str:
    return f"{project.functions_url}/complete_task"


def _for_now(why: str, retry_after: float | None = None) -> PublishFailed:
    return PublishFailed("publish.unavailable", f"{_CANNOT}: {why}", permanent=False, retry_after_s=retry_after)
