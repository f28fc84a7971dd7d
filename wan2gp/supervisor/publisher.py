"""The threads that publish files: each takes one ending from the spool to its user, step by step.

A step that fails for now (a disk, a storage, a host) puts its ending aside for a while, so that it holds up no other;
one that only a person can mend is withheld: its row fails with the reason, its files stay in the spool, and
`wan2gp-ctl publish retry`, or the next start of the worker, tries again.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from wan2gp.errors import error_message
from wan2gp.logs import Facts
from wan2gp.supervisor.finisher import RETRY_FIRST_S, Finisher, Work
from wan2gp.supervisor.publish import PublishFailed, Store
from wan2gp.supervisor.queue import FinishReply, Verb
from wan2gp.supervisor.spool import Ending, Spool
from wan2gp.supervisor.staging import Refused

RETRY_MAX_S = 30.0
"""The longest pause between two tries to publish one ending, seconds."""
DIRECT_PATIENCE_S = 900.0
"""How long a host that a task named itself may be unreachable before its file is withheld, seconds."""
ASKED_MAX_S = 300.0
"""The longest pause that the other side may ask for, seconds."""
PUT_UNAVAILABLE = "publish.put_unavailable"
SWEEP_MAX_S = 300.0
SWEEPS = 300
"""How often the deletion of refused files is tried, with at most so long a pause: for about a day."""


@dataclass(order=True)
class _Due:
    at: float
    number: int
    work: Work = field(compare=False)


class Publisher:
    """Give it spooled endings with :meth:`put`; ``done`` is called for each one that is settled, or withheld."""

    def __init__(
        self,
        spool: Spool,
        store: Store,
        finisher: Finisher,
        facts: Facts,
        *,
        threads: int,
        stopping: threading.Event,
        done: Callable[[], None],
        failed: Callable[[BaseException], None],
        progressed: Callable[[Ending, str], None] = lambda ending, detail: None,
        retried: Callable[[Ending], None] = lambda ending: None,
    ) -> None:
        """``progressed(ending, detail)``: what is being done about an ending that still holds its lease. ``retried``:
        one that was withheld is tried again, and may get its lease back."""
        self._spool = spool
        self._store = store
        self._finisher = finisher
        self._facts = facts
        self._stopping = stopping
        self._done = done
        self._failed = failed
        self._progressed = progressed
        self._retried = retried
        self._numbers = itertools.count()
        self._change = threading.Condition(threading.RLock())
        self._waiting: list[_Due] = []
        self._busy: list[Work] = []
        self._withheld: dict[str, Work] = {}
        self._threads = [
            threading.Thread(target=self._guarded, name=f"publisher-{number}", daemon=True) for number in range(threads)
        ]

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def put(self, ending: Ending) -> None:
        """Publish this one as soon as a thread is free."""
        self._later(Work(ending), 0.0)

    def retry(self, task_id: str | None, before: Callable[[int], None]) -> int:
        """Try again now what is withheld, or waits: of one task, or all. Returns how many endings that are.

        ``before`` is called with the number of those that had counted as settled.
        """
        with self._change:
            chosen = [key for key, work in self._withheld.items() if task_id in (None, work.ending.task_id)]
            before(len(chosen))
            for key in chosen:
                self._retried(self._withheld[key].ending)
            waiting = [due for due in self._waiting if due.work.tries and task_id in (None, due.work.ending.task_id)]
            for due in waiting:
                due.at = 0.0
            self._waiting += [_Due(0.0, next(self._numbers), self._withheld.pop(key)) for key in chosen]
            heapq.heapify(self._waiting)
            self._change.notify_all()
        return len(chosen) + len(waiting)

    def unpublished(self) -> list[Ending]:
        """Endings that are not settled."""
        with self._change:
            works = [due.work for due in self._waiting] + self._busy
            return [work.ending for work in works if not work.ending.refused]

    def describe(self) -> list[dict[str, str | int | None]]:
        """What is not published yet, for `status`."""
        with self._change:
            known = [("withheld", work) for work in self._withheld.values()]
            known += [("waiting" if due.work.tries else "queued", due.work) for due in self._waiting]
            known += [("uploading", work) for work in self._busy]
            known = [("deleting" if work.ending.refused else state, work) for state, work in known]
        return [
            {
                "task_id": work.ending.task_id,
                "state": state,
                "bytes": sum(made.bytes for made in work.ending.artifacts),
                "tries": work.tries,
                "error": work.error or work.ending.withheld,
            }
            for state, work in known
        ]

    def wake(self) -> None:
        """``stopping`` was set: the threads end, and the spool keeps what they were about."""
        with self._change:
            self._change.notify_all()

    @property
    def threads(self) -> list[threading.Thread]:
        """To be waited for."""
        return self._threads

    # -- the threads -------------------------------------------------------------------------------------------------

    def _guarded(self) -> None:
        try:
            while (work := self._next()) is not None:
                self._work(work)
        except BaseException as error:  # the worker must stop rather than limp without its publishers
            self._failed(error)

    def _next(self) -> Work | None:
        with self._change:
            while not self._stopping.is_set():
                now = time.monotonic()
                if self._waiting and self._waiting[0].at <= now:
                    work = heapq.heappop(self._waiting).work
                    self._busy.append(work)
                    return work
                self._change.wait(self._waiting[0].at - now if self._waiting else None)
        return None

    def _later(self, work: Work, delay_s: float) -> None:
        with self._change:
            heapq.heappush(self._waiting, _Due(time.monotonic() + delay_s, next(self._numbers), work))
            self._change.notify()

    def _work(self, work: Work) -> None:
        delay_s = self._advance(work)
        with self._change:
            self._busy.remove(work)
            if delay_s is not None:
                self._later(work, delay_s)

    def _advance(self, work: Work) -> float | None:
        """Take an ending as far as it goes. Returns the pause before the next try, None when there is none to come."""
        try:
            return self._steps(work)
        except PublishFailed as failure:
            return self._publish_failed(work, failure)
        except OSError as error:
            self._facts("worker.warning", text=f"Cannot write under the data directory: {error}. Trying again")
            return self._pause(work)

    def _steps(self, work: Work) -> float | None:
        """From where it stands; each step is noted on the work, so that a repeat begins with the one that failed."""
        if work.ending.refused:
            return self._sweep(work)
        if work.ending.withheld and work.tries == 0 and work.withholding is None:
            work.reply = work.reply or self._finisher.unwelcome(work.ending)
        if work.reply is None and work.withholding is None:
            self._send(work)
            if work.unspooled:
                self._spool.add([work.ending])
                work.unspooled = False
            work.reply = self._finisher.tell_one(work)
        elif work.reply is None and work.withholding is not None and self._finisher.withhold(work, work.withholding):
            self._set_aside(work)
            return None
        if work.reply is None:
            return None  # the worker stops
        return self._conclude(work, work.reply)

    def _send(self, work: Work) -> None:
        ending = work.ending
        if not ending.artifacts or work.sent:
            return
        try:
            work.staged = work.staged or self._store.stage(ending, self._spool.folder(ending))
        except Refused as refusal:
            # The work's own fault: told by the same way, without files.
            work.becomes(Verb.FAIL, error_message("output.refused", f"cannot publish the result: {refusal}"))
            return
        self._progressed(ending, _sending(work))
        work.staged = self._store.upload(ending, work.staged, self._stopping, work.uploaded)
        work.sent = True

    def _conclude(self, work: Work, reply: FinishReply) -> float | None:
        if work.ending.artifacts and not (work.staged or reply.accepted or reply.kept):
            with contextlib.suppress(Refused):  # it was withheld: some of it may have been sent before
                work.staged = self._store.stage(work.ending, self._spool.folder(work.ending))
        self._finisher.conclude(work, reply)
        work.tries = 0
        try:
            if work.left:
                self._finisher.sweep(work)
        except PublishFailed as failure:
            return self._publish_failed(work, failure)
        finally:
            self._done()
        return None

    def _sweep(self, work: Work) -> float | None:
        """Nobody waits for it any more; only files that nobody will name are still where they were sent."""
        if not work.left:  # an earlier life had begun with it
            with contextlib.suppress(Refused):
                work.left = self._store.stage(work.ending, self._spool.folder(work.ending))
        self._finisher.sweep(work)
        return None

    def _publish_failed(self, work: Work, failure: PublishFailed) -> float | None:
        if self._stopping.is_set():
            return None
        work.error = error_message(failure.code, failure.message)
        if work.ending.refused:
            return self._not_swept(work)
        if failure.permanent or self._unreachable(work, failure):
            work.withholding = work.error
            return 0.0
        if work.tries == 0:
            self._facts.bind(task=work.ending.task_id)("publish.waiting", task_id=work.ending.task_id, error=work.error)
        self._progressed(work.ending, f"waits to publish: {failure.message}")
        return max(self._pause(work), min(failure.retry_after_s or 0.0, ASKED_MAX_S))

    def _unreachable(self, work: Work, failure: PublishFailed) -> bool:
        """Whether the host that the task named has been away for too long: nobody but its owner can mend that."""
        if failure.code != PUT_UNAVAILABLE:
            return False
        now = time.monotonic()
        work.failing_since = work.failing_since or now
        return now - work.failing_since > DIRECT_PATIENCE_S

    def _not_swept(self, work: Work) -> float | None:
        if work.tries < SWEEPS:
            return self._pause(work, SWEEP_MAX_S)
        places = ", ".join(item.storage_path or item.path.name for item in work.left)
        self._facts("publish.left", task_id=work.ending.task_id, places=places, error=work.error)
        self._spool.remove(work.ending)
        return None

    def _set_aside(self, work: Work) -> None:
        work.tries, work.failing_since, work.withholding = 0, None, None
        with self._change:
            self._withheld[work.ending.key] = work
        self._done()

    def _pause(self, work: Work, longest_s: float = RETRY_MAX_S) -> float:
        work.tries += 1
        return float(min(longest_s, RETRY_FIRST_S * 2.0 ** min(work.tries - 1, 10)) * random.uniform(0.8, 1.2))


def _sending(work: Work) -> str:
    count = len(work.staged)
    return f"publishing {count} file{'s' if count > 1 else ''}"
