"""Rows that are to be queued again and are In Progress still: set aside, or failed a moment ago and tried later.

Nobody else can take such a row, and no lease runs out: what is owed is never forgotten, and tried once more at the end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from wan2gp.supervisor.edge_calls import UPDATE, EdgeCalls, refused
from wan2gp.supervisor.edge_rows import QUEUED, EdgeRows
from wan2gp.supervisor.queue import AccessDenied, FunctionsMissing, QueueError, QueueRefused, QueueUnavailable

REFUSED_S = 60.0
"""After a refusal of one row, before it is tried again, seconds."""
REFUSED_MAX = 4
"""So many refused rows, and no more is claimed that would have to be put back too."""
LAST_S = 5.0
"""How long the end of the worker waits for what is owed, seconds."""


@dataclass
class _Debt:
    task_id: str
    due: float
    nameless: bool
    refusal: QueueRefused | None = None


class EdgeDebts:
    """Safe to use from several threads."""

    def __init__(
        self,
        worker_id: str,
        calls: EdgeCalls,
        rows: Callable[[], EdgeRows | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker_id = worker_id
        self._calls = calls
        self._rows = rows
        self._clock = clock
        self._paying = threading.Lock()
        self._lock = threading.Lock()
        self._owed: dict[str, _Debt] = {}
        self._closed = False

    def owe(self, task_id: str, in_s: float = 0.0, *, nameless: bool = False) -> None:
        """``in_s``: not before, seconds. ``nameless``: it was claimed by a key whose claims leave no worker's name."""
        with self._lock:
            self._owed[task_id] = _Debt(task_id, self._clock() + in_s, nameless)

    def forget(self, task_id: str) -> None:
        """It was given to us again."""
        with self._lock:
            self._owed.pop(task_id, None)

    def ids(self) -> set[str]:
        with self._lock:
            return set(self._owed)

    def pay(self, deadline: float | None = None) -> None:
        """Put back what is due. Raises what keeps all of it from being put back, or too many rows.

        ``deadline``: monotonic, by which it is over; nothing is done then while another thread pays.
        """
        if self._paying.acquire(blocking=deadline is None):
            try:
                for debt in self._due(self._clock()):
                    self._pay(debt, deadline)
            finally:
                self._paying.release()
        with self._lock:
            refusals = [debt.refusal for debt in self._owed.values() if debt.refusal is not None]
        if len(refusals) >= REFUSED_MAX:
            raise refusals[-1]

    def close(self) -> None:
        """One try for all that is owed, due or not, for at most :data:`LAST_S`."""
        if self._closed or not self.ids():
            return
        # A call may take longer than there is time, and cannot be called off.
        last = threading.Thread(target=self._pay_last, name="edge-debts", daemon=True)
        last.start()
        last.join(LAST_S)
        self._closed = True

    def _due(self, now: float) -> list[_Debt]:
        with self._lock:
            return [debt for debt in self._owed.values() if debt.due <= now]

    def _pay(self, debt: _Debt, deadline: float | None = None) -> None:
        try:
            self._put_back(debt, deadline)
        except (QueueUnavailable, AccessDenied, FunctionsMissing):
            raise
        except QueueRefused as refusal:
            debt.refusal, debt.due = refusal, self._clock() + REFUSED_S
        else:
            self._paid(debt)

    def _paid(self, debt: _Debt) -> None:
        with self._lock:
            if self._owed.get(debt.task_id) is debt:
                del self._owed[debt.task_id]

    def _pay_last(self) -> None:
        for debt in self._due(float("inf")):
            if self._closed:
                return
            try:
                self._pay(debt)
            except QueueError:
                return  # the next start of this worker, or the pod scaler, finds it

    def _put_back(self, debt: _Debt, deadline: float | None) -> None:
        rows = self._rows()
        if rows is not None:
            rows.put_back(debt.task_id, self._worker_id, nameless=debt.nameless, deadline=deadline)
            return
        said = self._calls.repeat(UPDATE, {"task_id": debt.task_id, "status": QUEUED})
        if not said.ok and said.status != 404:
            raise refused(UPDATE, said)
