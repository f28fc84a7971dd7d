"""The threads that publish files: each takes one ending from the spool to its user, step by step.

A step that fails for now (a disk, a storage, a host) puts its ending aside for a while, so that it holds up no other;
one that only a person can mend is withheld: its row fails with the reason, its files stay in the spool, and
`wan2gp-ctl publish retry`, or the next start of the worker, tries again.
"""

from __future__ import annotations

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
from wan2gp.supervisor.queue import Verb
from wan2gp.supervisor.spool import Ending, Spool
from wan2gp.supervisor.staging import Refused

RETRY_MAX_S = 30.0
"""The longest pause between two tries to publish one ending, seconds."""
DIRECT_PATIENCE_S = 900.0
"""How long a host that a task named itself may be unreachable before its file is withheld, seconds."""
WITHDRAW_TRIES = 8
"""How often the deletion of refused files is tried."""
JOIN_S = 1.5


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
    ) -> None:
        """``progressed(ending, detail)``: what is being done about an ending that still holds its lease."""
        self._spool = spool
        self._store = store
        self._finisher = finisher
        self._facts = facts
        self._stopping = stopping
        self._done = done
        self._failed = failed
        self._progressed = progressed
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
            waiting = [due for due in self._waiting if due.work.tries and task_id in (None, due.work.ending.task_id)]
            for due in waiting:
                due.at = 0.0
            self._waiting += [_Due(0.0, next(self._numbers), self._withheld.pop(key)) for key in chosen]
            heapq.heapify(self._waiting)
            self._change.notify_all()
        return len(chosen) + len(waiting)

    def unpublished(self, *, failing: bool = False) -> list[Ending]:
        """Endings that are not settled; with ``failing`` only those whose publishing has failed at least once."""
        with self._change:
            works = [due.work for due in self._waiting] + self._busy
            return [work.ending for work in works if not failing or work.tries]

    def describe(self) -> list[dict[str, str | int | None]]:
        """What is not published yet, for `status`."""
        with self._change:
            known = [("withheld", work) for work in self._withheld.values()]
            known += [("waiting" if due.work.tries else "queued", due.work) for due in self._waiting]
            known += [("uploading", work) for work in self._busy]
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

    def stop(self) -> None:
        """After ``stopping`` was set: end the threads; the spool keeps what they were about."""
        with self._change:
            self._change.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(JOIN_S)

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
        except Refused as refusal:
            # The work's own fault: told at once, by the same way, without files.
            work.becomes(Verb.FAIL, error_message("output.refused", f"cannot publish the result: {refusal}"))
            self._spool.add([work.ending])
            return 0.0
        except PublishFailed as failure:
            return self._publish_failed(work, failure)
        except OSError as error:
            self._facts("worker.warning", text=f"Cannot write under the data directory: {error}. Trying again")
            return self._pause(work)

    def _steps(self, work: Work) -> float | None:
        ending = work.ending
        if work.reply is None:
            if ending.artifacts and not work.sent:
                work.staged = self._store.stage(ending, self._spool.folder(ending))
                self._progressed(ending, _sending(work))
                work.staged = self._store.upload(ending, work.staged, self._stopping)
                work.sent = True
            work.reply = self._finisher.tell_one(work)
        if work.reply is not None:  # else the worker stops
            self._finisher.conclude(work, work.reply)
            self._done()
        return None

    def _publish_failed(self, work: Work, failure: PublishFailed) -> float | None:
        if self._stopping.is_set():
            return None
        work.error = error_message(failure.code, failure.message)
        if work.reply is not None:
            return self._not_withdrawn(work)
        now = time.monotonic()
        work.failing_since = work.failing_since or now
        direct = work.ending.put_url is not None and now - work.failing_since > DIRECT_PATIENCE_S
        if failure.permanent or direct:
            return self._withhold(work, work.error)
        if work.tries == 0:
            self._facts.bind(task=work.ending.task_id)("publish.waiting", task_id=work.ending.task_id, error=work.error)
        self._progressed(work.ending, f"waits to publish: {failure.message}")
        return max(self._pause(work), min(failure.retry_after_s or 0.0, RETRY_MAX_S))

    def _not_withdrawn(self, work: Work) -> float:
        """The database has spoken; only files that nobody will name are still where they were sent."""
        if work.tries < WITHDRAW_TRIES:
            return self._pause(work)
        places = ", ".join(item.place.partition("?")[0] for item in [*work.staged, *work.left])
        self._facts("publish.left", task_id=work.ending.task_id, places=places, error=work.error)
        work.left = ()
        if work.reply is not None and not work.reply.accepted:
            work.staged = ()
        return 0.0

    def _withhold(self, work: Work, message: str) -> float | None:
        if not self._finisher.withhold(work, message):
            return 0.0 if work.reply is not None else None
        work.sent, work.tries, work.failing_since = False, 0, None
        with self._change:
            self._withheld[work.ending.key] = work
        self._done()
        return None

    def _pause(self, work: Work) -> float:
        work.tries += 1
        return float(min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(work.tries - 1, 10)) * random.uniform(0.8, 1.2))


def _sending(work: Work) -> str:
    count = len(work.staged)
    return f"publishing {count} file{'s' if count > 1 else ''}"
