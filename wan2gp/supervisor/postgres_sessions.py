"""Database sessions: each answers within a deadline, idle ones are kept for the next caller.

A stack of our own and not psycopg_pool's pool: a worker needs the reason of a failed connect at once and a fresh
session at the first call after an outage, where that pool retries in the background with growing pauses.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.types.json import set_json_loads
from psycopg.waiting import Ready, Wait

from wan2gp.supervisor.postgres_errors import DeadlinePassed, option_unknown, startup_options_refused
from wan2gp.supervisor.postgres_json import from_json

_RV = TypeVar("_RV")
TRANSACTION_TIMEOUT = "transaction_timeout"
"""The setting of PostgreSQL 17 and later that bounds a transaction, also one that waits for its client."""


class Session(psycopg.Connection[tuple[Any, ...]]):
    """An autocommit connection on which a silent server is noticed: a half-open link never ends by itself."""

    deadline_s: float = 15.0
    """Seconds within which each answer must come."""
    used_at: float = 0.0
    """When it was last put back, monotonic."""

    def wait(self, gen: Generator[Any, Any, _RV], interval: float | None = None, timeout: float | None = None) -> _RV:
        """Drives one exchange with the server; :class:`DeadlinePassed` when it takes longer than the deadline."""
        allowed = self.deadline_s if timeout is None else timeout
        ends = time.monotonic() + allowed
        poller = select.poll()
        try:
            want = next(gen)
            while True:
                poller.register(self.pgconn.socket, _MASKS[want])
                events = poller.poll(max(0.0, ends - time.monotonic()) * 1000)
                if not events and timeout is not None:
                    raise psycopg.errors._WaitTimeout
                if not events:
                    raise DeadlinePassed(f"no answer within {allowed:g} s")
                want = gen.send(_ready(events[0][1], want))
        except StopIteration as done:
            value: _RV = done.value
            return value


# A table, since arithmetic with enum members costs as much as the call that it is for.
_MASKS = {
    want: (select.POLLIN if want & Wait.R else 0) | (select.POLLOUT if want & Wait.W else 0)
    for want in (Wait.R, Wait.W, Wait.RW)
}
_READY = {
    event: Ready((Ready.R if event & select.POLLIN else 0) | (Ready.W if event & select.POLLOUT else 0))
    for event in (select.POLLIN, select.POLLOUT, select.POLLIN | select.POLLOUT)
}


def _ready(event: int, want: Wait) -> Ready:
    known = _READY.get(event)
    return Ready(int(want)) if known is None else known  # an error or the end: whoever waits shall meet it


class Sessions:
    """Sessions for several threads: at most ``most`` at once, the most recently used first."""

    def __init__(
        self, url: str, *, application_name: str, connect_timeout_s: float, call_timeout_s: float, most: int = 12
    ) -> None:
        self._url = url
        self._application_name = application_name
        self._connect_timeout_s = connect_timeout_s
        self._call_timeout_s = call_timeout_s
        self._idle: list[Session] = []
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(most)
        self._closed = False
        self._prepare: int | None = 0
        self._startup_options = self._bound_transactions = True
        self.idle_limit_s = 60.0

    @contextmanager
    def lend(self) -> Iterator[Session]:
        """A session for one call. It is closed, and not kept, when the call left it in any doubt."""
        if not self._slots.acquire(timeout=self._call_timeout_s):
            raise DeadlinePassed("all database sessions are busy")
        session = None
        try:
            session = self._take() or self.connect()
            yield session
        finally:
            if session is not None:
                self._put(session)
            self._slots.release()

    def connect(self, **more: Any) -> Session:
        """A new session that is not one of the stack's."""
        while True:
            try:
                return self._connect(**more)
            except psycopg.Error as error:
                if not self._asks_less(error):
                    raise

    def _asks_less(self, error: psycopg.Error) -> bool:
        """Whether a connect that failed may succeed when it asks for less, which the next one does."""
        if self._startup_options and self._bound_transactions and option_unknown(error, TRANSACTION_TIMEOUT):
            self._bound_transactions = False
            return True
        if self._startup_options and startup_options_refused(error):
            self._startup_options = False
            return True
        return False

    def forget_statements(self) -> None:
        """Prepared statements do not work through this URL's pooler: never prepare again."""
        self._prepare = None
        self.drop_idle()

    def drop_idle(self) -> None:
        """Closes the idle sessions: what broke one has broken the others."""
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def close(self) -> None:
        """Closes the idle sessions now and each lent one when it comes back."""
        self._closed = True
        self.drop_idle()

    def _connect(self, **more: Any) -> Session:
        settings: dict[str, Any] = {
            "application_name": self._application_name,
            "connect_timeout": max(2, round(self._connect_timeout_s)),
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 2,
            "tcp_user_timeout": round(self._call_timeout_s * 1000),
        }
        if self._startup_options:
            # The server gives up a little earlier than we do, so that it is idle when we come again.
            # And the functions lock first and look afterwards, which needs a snapshot per statement.
            settings["options"] = (
                f"-c statement_timeout={round(self._call_timeout_s * 900)}"
                # That ends no transaction whose last message was lost with the link, and which keeps rows locked: for
                # a peer that is gone the server has two hours of patience of its own.
                " -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=2"
                " -c default_transaction_isolation=read\\ committed"
            )
            if self._bound_transactions:
                settings["options"] += f" -c {TRANSACTION_TIMEOUT}={round(self._call_timeout_s * 1000)}"
        session = Session.connect(self._url, autocommit=True, prepare_threshold=self._prepare, **settings | more)
        session.deadline_s = self._call_timeout_s
        set_json_loads(from_json, session)
        return session

    def _take(self) -> Session | None:
        """The freshest idle session; those that rested too long may be half-open and are closed unseen."""
        with self._lock:
            session = self._idle.pop() if self._idle else None
        if session is not None and time.monotonic() - session.used_at > self.idle_limit_s:
            session.close()
            self.drop_idle()  # the others rested even longer
            return None
        return session

    def _put(self, session: Session) -> None:
        keep = not self._closed and session.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        if keep and session.prepare_threshold == self._prepare:
            session.used_at = time.monotonic()
            with self._lock:
                self._idle.append(session)
        else:
            session.close()
