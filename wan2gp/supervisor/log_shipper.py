"""The worker's own log lines, sent in batches to the database's `system_logs`, where its people look for them.

Nobody waits for it: a line that finds no room pushes the oldest out, and a later line says how many went that way. What
is sent is what `worker.log` gets, secrets masked; what handlers print is not among it.
"""

from __future__ import annotations

import collections
import datetime
import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wan2gp.logs import Facts
from wan2gp.supervisor.queue import AccessDenied, FunctionsMissing, QueueError, QueueUnavailable, TaskQueue

FLUSH_S = 5.0
"""How long a line waits for others at most, seconds."""
EAGER = 50
"""So many lines wait for nothing."""
BATCH = 200
"""Most lines in one call."""
KEEP = 2000
"""Most lines kept while the database is away; with :data:`MESSAGE_MAX` that bounds the memory."""
MESSAGE_MAX = 4000
"""Longest line, characters; the database cuts there too."""
RETRY_FIRST_S = 5.0
RETRY_MAX_S = 60.0
REFUSALS = 3
"""So many refusals in a row, and nothing is sent any more."""
STOP_S = 1.0
"""How long a stop waits for the last lines, seconds."""


@dataclass(frozen=True)
class _Line:
    level: str
    message: str
    task_id: str | None
    at: float

    def row(self) -> dict[str, Any]:
        """As the queue takes it. The id makes it safe to send again."""
        when = datetime.datetime.fromtimestamp(self.at, datetime.timezone.utc)
        return {
            "id": str(uuid.uuid4()),
            "at": when.isoformat(),
            "level": self.level,
            "message": self.message,
            "task_id": self.task_id,
            "metadata": {},
        }


class LogShipper:
    """:meth:`offer` is for :meth:`wan2gp.logs.Log.listen`. What it states itself (``logs.…``) a log gives to no
    listener."""

    def __init__(
        self,
        queue: TaskQueue,
        worker_id: str,
        facts: Facts,
        failed: Callable[[BaseException], None],
        *,
        flush_s: float = FLUSH_S,
        keep: int = KEEP,
        retry_first_s: float = RETRY_FIRST_S,
    ) -> None:
        """``failed`` hears of an error that is neither the database's nor the network's."""
        self._queue = queue
        self._worker_id = worker_id
        self._facts = facts
        self._failed = failed
        self._flush_s = flush_s
        self._keep = keep
        self._retry_first_s = retry_first_s
        self._change = threading.Condition()
        self._lines: collections.deque[_Line] = collections.deque()
        self._batch: list[dict[str, Any]] = []
        """On its way; sent again as it is when the answer was lost."""
        self._dropped = 0
        self._refusals = 0
        self._taken = False
        """Whether a batch was ever taken: what is missing or forbidden after that comes back."""
        self._unstored = False
        """Whether it was said that the table has none of a batch."""
        self._pause_s = 0.0
        """Before the next try; 0 while the database takes lines."""
        self._wanted: bool | None = None
        """Whether the database keeps logs; None until it was asked."""
        self._stop_at: float | None = None
        self._thread = threading.Thread(target=self._guarded, name="log-shipper", daemon=True)

    @property
    def shipping(self) -> bool:
        """False for good once it is known that the database keeps no logs, or will not have ours."""
        return self._wanted is not False

    def start(self) -> None:
        """Lines that were offered before are sent too."""
        self._thread.start()

    def offer(self, level: str, line: str, task_id: str | None, at: float) -> None:
        """Take over a line; returns at once. ``at`` is in seconds since the epoch."""
        if self._wanted is False:
            return
        with self._change:
            if len(self._lines) >= self._keep:
                self._lines.popleft()
                self._dropped += 1
            self._lines.append(_Line(level, line[:MESSAGE_MAX], task_id, at))
            if len(self._lines) == EAGER:
                self._change.notify()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Send what there is, if that takes no longer than ``timeout_s`` and the database is there; end the thread."""
        with self._change:
            self._stop_at = time.monotonic() + timeout_s
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _guarded(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # a fault of our own: the worker must not limp on without its log
            self._failed(error)

    def _serve(self) -> None:
        while self._wait():
            while self._take() and self._send():
                """Until nothing is left, or the database is away."""
            if self._wanted is False:
                with self._change:
                    self._lines.clear()
                return

    def _wait(self) -> bool:
        """True when it is time to send. At the end once more, unless the database is away."""
        with self._change:
            if self._stop_at is None and self._pause_s:
                self._change.wait_for(lambda: self._stop_at is not None, self._pause_s * random.uniform(0.8, 1.2))
            elif self._stop_at is None:
                self._change.wait_for(lambda: self._stop_at is not None or len(self._lines) >= EAGER, self._flush_s)
            if self._stop_at is None:
                return True
            return bool(self._lines) and not self._pause_s and time.monotonic() < self._stop_at

    def _take(self) -> bool:
        """Whether there is a batch to send."""
        with self._change:
            if self._batch or not self._lines:
                return bool(self._batch)
            if self._stop_at is not None and time.monotonic() >= self._stop_at:
                return False
            if self._dropped:
                said = f"{self._dropped} log lines that came before this were dropped"
                self._batch.append(_Line("WARNING", said, None, self._lines[0].at).row())
                self._dropped = 0
            while self._lines and len(self._batch) < BATCH:
                self._batch.append(self._lines.popleft().row())
            return True

    def _send(self) -> bool:
        """Whether to go on at once."""
        try:
            if self._wanted is None:
                self._wanted = bool(self._queue.facts().get("system_logs"))
            if self._wanted:
                self._sent(self._queue.log(self._worker_id, self._batch))
        except QueueError as error:
            if self._passes(error):
                self._unreachable(error)
                return False
            return self._refused(error)
        self._batch, self._refusals = [], 0
        if self._pause_s:
            self._pause_s = 0.0
            self._facts("logs.back")
        return self._wanted

    def _sent(self, stored: int) -> None:
        """A call that succeeds may have stored nothing, when the table will have no line of ours."""
        self._taken = True
        if not stored and not self._unstored:
            self._unstored = True
            self._facts("logs.unstored")

    def _passes(self, error: QueueError) -> bool:
        """A key that is refused is mended some day; functions that were there are so again after a migration."""
        return isinstance(error, QueueUnavailable | AccessDenied) or (
            self._taken and isinstance(error, FunctionsMissing)
        )

    def _unreachable(self, error: QueueError) -> None:
        if not self._pause_s:
            self._facts("logs.away", error=error)
        self._pause_s = min(RETRY_MAX_S, self._pause_s * 2 or self._retry_first_s)

    def _refused(self, error: QueueError) -> bool:
        """This batch is lost; a database that refuses one after the other, or has no such function, is let alone."""
        with self._change:
            self._dropped += len(self._batch)
            self._batch = []
        self._refusals += 1
        if self._refusals >= REFUSALS or isinstance(error, FunctionsMissing):
            self._wanted = False
            self._facts("logs.refused", error=error)
        return self._wanted is not False
