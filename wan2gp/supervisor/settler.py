"""The threads that end tasks for good: spool, check, tell the database, show the files. In that order, always.

One spools and another does the rest, so that what ends during an outage is on the disk at once, not behind it. Whatever
fails on the way (database, disk) is tried again with a growing pause; the handlers go on meanwhile. Settling is safe to
repeat from any point, so a crash between two steps costs nothing.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from wan2gp.errors import error_message
from wan2gp.logs import Facts
from wan2gp.supervisor.publish import LocalStore, Refused, Staged, describe, primary
from wan2gp.supervisor.queue import FinishReply, QueueError, QueueRefused, Settlement, TaskQueue, Verb, fact_of
from wan2gp.supervisor.spool import Ending, Spool

_Inbox = queue.SimpleQueue[Ending | Path | None]

UNSPEAKABLE = (RecursionError, ValueError, TypeError)
"""What an outcome that is no JSON raises on its way to the database."""
BATCH = 32
RETRY_FIRST_S = 0.25
RETRY_MAX_S = 10.0
JOIN_S = 1.5
"""How long a stop waits for a call that hangs; the spool keeps what it was about, seconds."""


@dataclass
class _Work:
    """An ending on its way, with what has been checked of it."""

    ending: Ending
    staged: Sequence[Staged] = ()


class Settler:
    """Give it endings with :meth:`submit`; it calls ``settled(ending)`` from its own thread for each."""

    def __init__(
        self,
        queue_: TaskQueue,
        spool: Spool,
        store: LocalStore,
        facts: Facts,
        settled: Callable[[Ending], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._queue = queue_
        self._spool = spool
        self._store = store
        self._facts = facts
        self._settled = settled
        self._failed = failed
        self._todo: _Inbox = queue.SimpleQueue()
        self._spooled: _Inbox = queue.SimpleQueue()
        self._stopping = threading.Event()
        self.error: BaseException | None = None
        """What ended one of the threads, if that has happened: nothing is settled any more."""
        self._pending = 0
        self._pending_lock = threading.Lock()
        self._idle = threading.Condition(self._pending_lock)
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._keep,), name="spooler", daemon=True),
            threading.Thread(target=self._guarded, args=(self._serve,), name="settler", daemon=True),
        ]

    def start(self) -> None:
        """Begin with what the spool still holds; returns the threads' start, not their end."""
        for ending in self._spool.leftovers():
            self._count(+1)
            self._spooled.put(ending)
        for thread in self._threads:
            thread.start()

    def submit(self, ending: Ending) -> None:
        """Take over an ending; returns at once."""
        self._count(+1)
        self._todo.put(ending)

    def discard(self, work_dir: Path) -> None:
        """Remove the directory of a task that is not ours any more; returns at once."""
        self._todo.put(work_dir)

    @property
    def depth(self) -> int:
        """Endings that are not settled yet."""
        return self._pending

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is settled. False when ``timeout_s`` seconds did not suffice: the spool keeps the rest."""
        with self._idle:
            self._idle.wait_for(lambda: self._pending == 0 or self.error is not None, timeout_s)
            return self._pending == 0

    def stop(self) -> None:
        """End the threads; what is not settled stays in the spool for the next life."""
        self._stopping.set()
        self._todo.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(JOIN_S)

    def _count(self, change: int) -> None:
        with self._idle:
            self._pending += change
            if self._pending == 0:
                self._idle.notify_all()

    def _guarded(self, serve: Callable[[], None]) -> None:
        try:
            serve()
        except BaseException as error:  # the worker must stop rather than limp without its settler
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
            endings = [_Work(found) for found in batch if isinstance(found, Ending)]
            self._settle([work for work in endings if not work.ending.artifacts])
            for work in endings:  # one by one: hashing a large file must not hold up the end of another task
                if work.ending.artifacts:
                    self._settle([work])
            for found in batch:
                if isinstance(found, Path):
                    clear(found)

    def _settle(self, batch: list[_Work]) -> None:
        for work in batch:
            if work.ending.artifacts and not self._insist(lambda work=work: self._stage(work)):  # type: ignore[misc]
                return
        replies = self._finish(batch)
        for work, reply in zip(batch, replies, strict=False):
            if not self._insist(lambda work=work, reply=reply: self._conclude(work, reply)):  # type: ignore[misc]
                return

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

    def _stage(self, work: _Work) -> None:
        try:
            work.staged = self._store.stage(work.ending, self._spool.folder(work.ending))
        except Refused as refusal:
            message = error_message("output.refused", f"cannot publish the result: {refusal}")
            work.ending = msgspec.structs.replace(work.ending, verb=Verb.FAIL, error_message=message, artifacts=())
            self._spool.add([work.ending])

    def _finish(self, batch: list[_Work]) -> tuple[FinishReply, ...]:
        """Tell the database, however long it is away. Fewer replies when the worker stops first."""
        if len(batch) > 1:
            # What is wrong with one, or with their size together, must not hold up all of them for ever.
            with contextlib.suppress(QueueError, *UNSPEAKABLE):
                return self._queue.finish_many([_settlement(work) for work in batch])
        replies = []
        for work in batch:
            reply = self._finish_one(work)
            if reply is None:
                break
            replies.append(reply)
        return tuple(replies)

    def _finish_one(self, work: _Work) -> FinishReply | None:
        pause, since = RETRY_FIRST_S, time.monotonic()
        while True:
            try:
                (reply,) = self._queue.finish_many([_settlement(work)])
                if pause > RETRY_FIRST_S:
                    self._facts("queue.back", seconds=time.monotonic() - since)
                return reply
            except (QueueRefused, *UNSPEAKABLE) as error:
                self._give_up_on(work, error)
            except QueueError as error:
                if pause == RETRY_FIRST_S:
                    self._facts(fact_of(error), error=error)
            if self._stopping.wait(pause):
                return None
            pause = min(RETRY_MAX_S, pause * 2)

    def _give_up_on(self, work: _Work, error: Exception) -> None:
        """The database will not have this outcome, ever: the task fails, with that reason and nothing else of it."""
        self._facts("queue.refused", error=error)
        sentence = f"the outcome cannot be stored: {type(error).__name__}: {error}"
        message = error_message("queue.refused", sentence)
        work.staged = ()
        work.ending = msgspec.structs.replace(
            work.ending, verb=Verb.FAIL, error_message=message, artifacts=(), result_data={}, cause=None
        )

    def _conclude(self, work: _Work, reply: FinishReply) -> None:
        ending = work.ending
        facts = self._facts.bind(task=ending.task_id)
        if reply.accepted:
            for path in self._store.commit(work.staged):
                facts("task.saved", path=path)
            self._say(ending, reply, facts)
        elif ending.verb is Verb.COMPLETE or reply.status is not None:
            facts("task.refused", task_id=ending.task_id, status=reply.status)
        self._spool.remove(ending)
        clear(Path(ending.work_dir))
        self._settled(ending)
        self._count(-1)

    def _say(self, ending: Ending, reply: FinishReply, facts: Facts) -> None:
        name = _SAID[ending.verb]
        if reply.status == "Failed":
            name = "task.failed"
        facts(name, task_id=ending.task_id, error=ending.error_message or "the worker stops")


_SAID = {
    Verb.COMPLETE: "task.completed",
    Verb.FAIL: "task.failed",
    Verb.RETRY: "task.retried",
    Verb.LOSS: "task.retried",
    Verb.RELEASE: "task.released",
    Verb.CANCEL: "task.cancelled",
}


def _settlement(work: _Work) -> Settlement:
    location = primary(work.staged)
    data = {**work.ending.result_data}
    if work.staged:
        data["artifacts"] = describe(work.staged)
    return work.ending.settlement(None if location is None else str(location), data or None)


def _batch(inbox: _Inbox) -> tuple[list[Ending | Path], bool]:
    """At least one, and whatever else is waiting; and whether that was the last."""
    taken: list[Ending | Path] = []
    found = inbox.get()
    with contextlib.suppress(queue.Empty):
        while found is not None and len(taken) < BATCH:
            taken.append(found)
            found = inbox.get_nowait() if len(taken) < BATCH else found
    return taken, found is None


def clear(work_dir: Path) -> None:
    """Remove the attempt's directory, and the task's when it was the last."""
    if not work_dir.parent.exists():  # many tasks need none
        return
    shutil.rmtree(work_dir, ignore_errors=True)
    with contextlib.suppress(OSError):
        work_dir.parent.rmdir()
