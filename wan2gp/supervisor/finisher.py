"""Telling the database how a task ended, however long it is away, and what follows from its answer."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from wan2gp.errors import error_message
from wan2gp.logs import Facts
from wan2gp.supervisor.emptying import discard
from wan2gp.supervisor.publish import Staged, Store, outcome_of
from wan2gp.supervisor.queue import (
    AccessDenied,
    FinishReply,
    QueueError,
    QueueRefused,
    Settlement,
    TaskQueue,
    Verb,
    fact_of,
)
from wan2gp.supervisor.spool import Ending, Spool
from wan2gp.tasks import TaskStatus

UNSPEAKABLE = (RecursionError, ValueError, TypeError)
"""What an outcome that is no JSON raises on its way to the database."""
RETRY_FIRST_S = 0.25
RETRY_MAX_S = 10.0


@dataclass
class Work:
    """An ending on its way, with what has been done about it."""

    ending: Ending
    origin: Ending = field(init=False)
    """As it was at first, with its files."""
    staged: list[Staged] = field(default_factory=list)
    """Its files in the spool; those with a ``url`` are uploaded."""
    sent: bool = False
    """All of them are."""
    left: list[Staged] = field(default_factory=list)
    """What was uploaded for an outcome that is no more."""
    unspooled: bool = False
    """The ending has changed, and the spool does not know."""
    withholding: str | None = None
    """Why it is to be withheld, once the database knows (``code: sentence``)."""
    reply: FinishReply | None = None
    given_up: bool = False
    tries: int = 0
    failing_since: float | None = None
    """When the host that the task named was first not to be had, monotonic seconds."""
    error: str | None = None
    """Why it is not published yet (``code: sentence``)."""

    def __post_init__(self) -> None:
        self.origin = self.ending

    def settlement(self) -> Settlement:
        """What the database is told."""
        return self.ending.settlement(**outcome_of(self.ending, self.staged))

    def uploaded(self, item: Staged) -> None:
        """One of its files is up."""
        self.staged = [item if one.path == item.path else one for one in self.staged]

    def becomes(self, verb: Verb, message: str) -> None:
        """It ends otherwise, without files."""
        self.left, self.staged = [*self.left, *self.staged], []
        self.ending = msgspec.structs.replace(self.ending, verb=verb, error_message=message, artifacts=())
        self.unspooled = True


class Finisher:
    """Safe from several threads; each work is in one thread's hands at a time."""

    def __init__(
        self,
        queue: TaskQueue,
        spool: Spool,
        store: Store,
        facts: Facts,
        settled: Callable[[Ending], None],
        stopping: threading.Event,
        aside: Path | None = None,
    ) -> None:
        """``aside``: where directories go that are too large to be removed in passing."""
        self._queue = queue
        self._spool = spool
        self._store = store
        self._facts = facts
        self._settled = settled
        self._stopping = stopping
        self._aside = aside

    def tell(self, batch: Sequence[Work]) -> tuple[FinishReply, ...]:
        """Tell the database of several. Fewer replies when the worker stops first."""
        if len(batch) > 1:
            # What is wrong with one, or with their size together, must not hold up all of them for ever.
            with contextlib.suppress(QueueError, *UNSPEAKABLE):
                return self._queue.finish_many([work.settlement() for work in batch])
        replies = []
        for work in batch:
            reply = self.tell_one(work)
            if reply is None:
                break
            replies.append(reply)
        return tuple(replies)

    def tell_one(self, work: Work) -> FinishReply | None:
        """None when the worker stops first. Raises :class:`~wan2gp.supervisor.publish.PublishFailed` where completing
        means more than our own table."""
        pause, since = RETRY_FIRST_S, time.monotonic()
        while True:
            try:
                (reply,) = self._queue.finish_many([work.settlement()])
                if pause > RETRY_FIRST_S:
                    self._facts("queue.back", seconds=time.monotonic() - since)
                return reply
            except (QueueError, *UNSPEAKABLE) as error:
                if _hopeless(error) and not work.given_up:
                    self._give_up_on(work, error)
                elif pause == RETRY_FIRST_S and isinstance(error, QueueError):
                    self._facts(fact_of(error), error=error)
            if self._stopping.wait(pause):
                return None
            pause = min(RETRY_MAX_S, pause * 2)

    def _give_up_on(self, work: Work, error: Exception) -> None:
        """The database will not have this outcome, ever: the task fails, with that reason and nothing else of it."""
        work.given_up = True
        self._facts("queue.refused", error=error)
        sentence = f"the outcome cannot be stored: {type(error).__name__}: {error}"
        work.becomes(Verb.FAIL, error_message("queue.refused", sentence))
        work.ending = msgspec.structs.replace(work.ending, result_data={}, cause=None)

    def conclude(self, work: Work, reply: FinishReply) -> None:
        """The database has spoken: show the files, or say that they were refused, and forget the ending unless
        something must be deleted yet. Raises :class:`OSError`; safe to repeat."""
        ending = work.ending
        facts = self._facts.bind(task=ending.task_id)
        if reply.accepted or reply.kept:
            self._store.commit(ending, work.staged)
            for item in work.staged:
                facts("task.saved", path=item.place.partition("?")[0])  # a signed URL's query opens the file
            self._say(ending, reply, facts)
        else:
            work.left, work.staged = [*work.left, *work.staged], []
            if ending.verb is Verb.COMPLETE or reply.status is not None:
                facts("task.refused", task_id=ending.task_id, status=reply.status or "gone")
        if work.left:
            refused = msgspec.structs.replace(work.origin, refused=True)
            self._spool.add([refused])  # another life must not send it once more to find out
            work.ending = refused
        else:
            self._spool.remove(ending)
        clear(Path(ending.work_dir), self._aside)
        self._settled(ending)

    def sweep(self, work: Work) -> None:
        """Delete what was uploaded and refused, then forget the ending. Raises
        :class:`~wan2gp.supervisor.publish.PublishFailed`; safe to repeat."""
        self._store.withdraw(work.ending, work.left)
        self._spool.remove(work.ending)

    def unwelcome(self, ending: Ending) -> FinishReply | None:
        """Of a result that was withheld: the refusal, when its row can be seen to wait for it no more. Spares sending a
        large file for nothing."""
        with contextlib.suppress(QueueError):
            row = self._queue.task(ending.task_id)
            status = None if row is None else str(row.get("status"))
            if status not in _WAITS:
                return FinishReply(False, status)
        return None

    def withhold(self, work: Work, message: str) -> bool:
        """The row fails for now, and the files wait in the spool for a person. False when the worker stops first, or
        when nobody waits for them: the lease is somebody else's. Raises :class:`OSError`; safe to repeat."""
        ending = work.ending
        told = Work(msgspec.structs.replace(ending, verb=Verb.WITHHOLD, error_message=message, artifacts=()))
        reply = self.tell_one(told)
        if reply is None:
            return False
        if not reply.accepted:
            work.reply = reply
            return False
        work.ending = msgspec.structs.replace(ending, withheld=message)
        self._spool.add([work.ending])
        clear(Path(ending.work_dir), self._aside)
        self._facts.bind(task=ending.task_id)("publish.withheld", task_id=ending.task_id, error=message)
        self._settled(told.ending)
        return True

    def _say(self, ending: Ending, reply: FinishReply, facts: Facts) -> None:
        name = "task.completed" if reply.kept else _SAID[ending.verb]
        if reply.kept and reply.status != TaskStatus.COMPLETE.value:
            facts("task.kept", task_id=ending.task_id, status=reply.status)
            return
        if reply.status == "Failed":
            name = "task.failed"
        facts(name, task_id=ending.task_id, error=ending.error_message or "the worker stops")


_WAITS = ("Failed", "In Progress")
"""What the row of a withheld result is: In Progress only while it is being completed by another hand than ours."""
_SAID = {
    Verb.COMPLETE: "task.completed",
    Verb.FAIL: "task.failed",
    Verb.WITHHOLD: "task.failed",
    Verb.RETRY: "task.retried",
    Verb.LOSS: "task.retried",
    Verb.RELEASE: "task.released",
    Verb.CANCEL: "task.cancelled",
}


def clear(work_dir: Path, aside: Path | None = None) -> None:
    """Remove the attempt's directory, and the task's when it was the last. See :func:`~wan2gp.supervisor.emptying.
    discard`; ``aside`` None: beside the task's directory."""
    if not work_dir.parent.exists():  # many tasks need none
        return
    discard(work_dir, aside or work_dir.parent.parent)
    with contextlib.suppress(OSError):
        work_dir.parent.rmdir()


def _hopeless(error: Exception) -> bool:
    """Whether this outcome will never be stored. A key that is refused is mended some day, and then the work counts."""
    return not isinstance(error, QueueError) or (
        isinstance(error, QueueRefused) and not isinstance(error, AccessDenied)
    )
