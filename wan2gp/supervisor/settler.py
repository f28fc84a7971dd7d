"""The threads that end tasks for good: spool, publish, tell the database, show the files. In that order, always.

One thread spools, so that what ends during an outage is on the disk at once, not behind it. Endings without files are
told in batches by a second; those with files go to the :mod:`publishers <wan2gp.supervisor.publisher>`. Whatever fails
on the way (database, disk, storage) is tried again with a growing pause; the handlers go on meanwhile. Settling is safe
to repeat from any point, so a crash between two steps costs nothing.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wan2gp.logs import Facts
from wan2gp.supervisor.finisher import RETRY_FIRST_S, RETRY_MAX_S, Finisher, Work, clear
from wan2gp.supervisor.publish import Store
from wan2gp.supervisor.publisher import Publisher
from wan2gp.supervisor.queue import TaskQueue
from wan2gp.supervisor.spool import Ending, Spool

_Inbox = queue.SimpleQueue[Ending | Path | None]

BATCH = 32
JOIN_S = 1.5
"""How long a stop waits for a call that hangs; the spool keeps what it was about, seconds."""


class Settler:
    """Give it endings with :meth:`submit`; it calls ``settled(ending)`` from a thread of its own for each."""

    def __init__(
        self,
        queue_: TaskQueue,
        spool: Spool,
        store: Store,
        facts: Facts,
        settled: Callable[[Ending], None],
        failed: Callable[[BaseException], None],
        *,
        uploads: int = 3,
        progressed: Callable[[Ending, str], None] = lambda ending, detail: None,
        retried: Callable[[Ending], None] = lambda ending: None,
        aside: Path | None = None,
    ) -> None:
        """``uploads``: endings published at once. ``aside``: where directories go that are too large to be removed in
        passing."""
        self._spool = spool
        self._facts = facts
        self._failed = failed
        self._todo: _Inbox = queue.SimpleQueue()
        self._spooled: _Inbox = queue.SimpleQueue()
        self._stopping = threading.Event()
        self.error: BaseException | None = None
        """What ended one of the threads, if that has happened: nothing is settled any more."""
        self._pending = 0
        self._pending_lock = threading.Lock()
        self._idle = threading.Condition(self._pending_lock)
        self._finisher = Finisher(queue_, spool, store, facts, settled, self._stopping, aside)
        self._aside = aside
        self._publisher = Publisher(
            spool,
            store,
            self._finisher,
            facts,
            threads=uploads,
            stopping=self._stopping,
            done=lambda: self._count(-1),
            failed=self._fail,
            progressed=progressed,
            retried=retried,
        )
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._keep,), name="spooler", daemon=True),
            threading.Thread(target=self._guarded, args=(self._serve,), name="settler", daemon=True),
        ]

    def start(self) -> None:
        """Begin with what the spool still holds; returns the threads' start, not their end."""
        for ending in self._spool.leftovers():
            self._count(0 if ending.refused else +1)
            self._spooled.put(ending)
        self._publisher.start()
        for thread in self._threads:
            thread.start()

    def submit(self, ending: Ending) -> None:
        """Take over an ending; returns at once."""
        self._count(+1)
        self._todo.put(ending)

    def discard(self, work_dir: Path) -> None:
        """Remove the directory of a task that is not ours any more; returns at once."""
        self._todo.put(work_dir)

    def retry_publishing(self, task_id: str | None = None) -> int:
        """Send what is withheld, or waits, now: of one task, or all. Returns how many results that are."""
        return self._publisher.retry(task_id, before=lambda count: self._count(count))

    def publishing(self) -> list[Mapping[str, Any]]:
        """Results that are not published yet, for `status`."""
        return list(self._publisher.describe())

    def unpublished(self) -> list[Ending]:
        """Results that wait for a storage, or are being sent: their leases must be held."""
        return self._publisher.unpublished()

    @property
    def depth(self) -> int:
        """Endings that are not settled yet; those that wait for a person do not count."""
        return self._pending

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is settled. False when ``timeout_s`` seconds did not suffice: the spool keeps the rest."""
        with self._idle:
            self._idle.wait_for(lambda: self._pending == 0 or self.error is not None, timeout_s)
            return self._pending == 0

    def stop(self, timeout_s: float = JOIN_S) -> None:
        """End the threads, within ``timeout_s`` all together; what is not settled stays in the spool for the next
        life."""
        self._stopping.set()
        self._todo.put(None)
        self._publisher.wake()
        deadline = time.monotonic() + timeout_s
        for thread in (*self._threads, *self._publisher.threads):
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _count(self, change: int) -> None:
        with self._idle:
            self._pending += change
            if self._pending == 0:
                self._idle.notify_all()

    def _guarded(self, serve: Callable[[], None]) -> None:
        try:
            serve()
        except BaseException as error:  # the worker must stop rather than limp without its settler
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._idle:
            self.error = error
            self._idle.notify_all()
        self._failed(error)

    def _keep(self) -> None:
        """Spool what comes, then pass it on; at the end also what has come till then."""
        last = False
        while not last:
            batch, last = _batch(self._todo)
            endings = [found for found in batch if isinstance(found, Ending)]
            if endings and not self._insist(lambda endings=endings: self._spool.add(endings)):  # type: ignore[misc]
                break
            for found in batch:
                self._spooled.put(found)
        self._spooled.put(None)

    def _serve(self) -> None:
        last = False
        while not last and not self._stopping.is_set():
            batch, last = _batch(self._spooled)
            plain: list[Work] = []
            for found in batch:
                if isinstance(found, Path):
                    clear(found, self._aside)
                elif (
                    found.artifacts or found.refused
                ):  # hashing and sending a file must not hold up the end of another task
                    self._publisher.put(found)
                else:
                    plain.append(Work(found))
            self._settle(plain)

    def _settle(self, batch: list[Work]) -> None:
        replies = self._finisher.tell(batch) if batch else ()
        for work, reply in zip(batch, replies, strict=False):
            if not self._insist(lambda work=work, reply=reply: self._finisher.conclude(work, reply)):  # type: ignore[misc]
                return
            self._count(-1)

    def _insist(self, action: Callable[[], None]) -> bool:
        """Do it until the disk lets it be done. False when the worker stops first."""
        pause = RETRY_FIRST_S
        while True:
            try:
                action()
                return True
            except OSError as error:
                self._facts("worker.warning", text=f"Cannot write under the data directory: {error}. Trying again")
            if self._stopping.wait(pause):
                return False
            pause = min(RETRY_MAX_S, pause * 2)


def _batch(inbox: _Inbox) -> tuple[list[Ending | Path], bool]:
    """At least one, and whatever else is waiting; and whether that was the last."""
    taken: list[Ending | Path] = []
    found = inbox.get()
    with contextlib.suppress(queue.Empty):
        while found is not None and len(taken) < BATCH:
            taken.append(found)
            found = inbox.get_nowait() if len(taken) < BATCH else found
    return taken, found is None
