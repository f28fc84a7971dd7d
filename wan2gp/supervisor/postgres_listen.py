"""Being woken by ``NOTIFY wan2gp_tasks``, and knowing whether that works.

A transaction pooler accepts LISTEN and delivers nothing, without an error; a half-open TCP link is as silent. So each
new session is tested with a notification from another session, and asked at intervals whether it lives and listens.
The thread of this module owns the session; the queue's user only waits for its flag.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import threading
import time
import uuid
import weakref

import psycopg
from psycopg import sql

from wan2gp.supervisor.postgres_sessions import Session, Sessions

CHANNEL = "wan2gp_tasks"
_CHANNEL_NAME = CHANNEL.encode()

_TEST_S = 2.0
"""How long the test's notification may take before it counts as swallowed."""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0
_SWALLOWED_PAUSE_S = 60.0
"""Before a session that swallows notifications is tried again: its pooler will hardly change."""

_CLOSE_S = 0.4
"""How long a close waits for the thread, which ends in no time where the server answers."""


class Swallowed(Exception):
    """Notifications do not arrive on this session."""


class Listener:
    """Turns notifications into the end of a wait. Its thread starts with the first wait."""

    def __init__(self, sessions: Sessions, *, probe_interval_s: float, probe_deadline_s: float) -> None:
        """A link that went silent is found within the sum of the two, in seconds."""
        self._sessions = sessions
        self._probe_interval_s = probe_interval_s
        self._probe_deadline_s = probe_deadline_s
        self._state = threading.Lock()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._bell)  # not at close: a late interrupt must not ring somebody else's
        self._ear: int | None = None
        """Descriptor of the session while it listens."""
        self._woken = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._session: Session | None = None
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.listening = False
        self.swallowed = False

    def wait(self, timeout_s: float) -> bool:
        """True as soon as something may be claimable: also when that was said since the last wait."""
        self._start()
        if self._closed:  # another wait may have heard the ring that said so
            return False
        poller = select.poll()
        poller.register(self._bell, select.POLLIN)
        ear = self._ear
        if ear is not None:
            # Looked at beside the listener's own thread, which reads it: one change of threads less on the way of every
            # task. Whoever wakes by it may be woken for the same notification once more.
            poller.register(ear, select.POLLIN)
        rung = [descriptor for descriptor, _ in poller.poll(timeout_s * 1000)]
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        with self._state:
            woken, self._woken = self._woken or ear in rung, False
            return woken and not self._closed

    def interrupt(self) -> None:
        """Ends the wait that is going on, or the next one, at once."""
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Ends wait and thread; returns when the session is closed, or soon where the server is silent."""
        with self._state:
            first, self._closed = not self._closed, True
        self.interrupt()
        if not first:
            return
        os.write(self._stop_write, b".")
        thread = self._thread
        if thread is not None:
            session = self._session
            if session is not None:
                session.deadline_s = 0.2  # of an exchange that begins now; one that has begun ends with its own
            thread.join(_CLOSE_S)
            if thread.is_alive():  # within an exchange or a connect that hangs; it needs the pipe, and ends by itself
                return
        os.close(self._stop_read)
        os.close(self._stop_write)

    def _start(self) -> None:
        with self._state:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="queue-listen", daemon=True)
                self._thread.start()

    def _wake(self) -> None:
        with self._state:
            self._woken = True
        os.eventfd_write(self._bell, 1)

    def _run(self) -> None:
        """Listens until closed; each loss of the session is followed by a new one, after a growing pause."""
        pause = _FIRST_PAUSE_S
        while not self._closed:
            was_good = False
            try:
                self._listen()
            except Swallowed:
                self.swallowed = True
            except psycopg.Error:
                was_good = self.listening
            finally:
                self.listening = False
            pause = _FIRST_PAUSE_S if was_good else min(pause * 2, _LONGEST_PAUSE_S)
            self._stopped(random.uniform(0.7, 1.0) * (_SWALLOWED_PAUSE_S if self.swallowed else pause))

    def _stopped(self, timeout_s: float, session: Session | None = None) -> bool:
        """Sleeps until the session has something to read, the time is up (False) or the listener is closed (True)."""
        poller = select.poll()
        poller.register(self._stop_read, select.POLLIN)
        if session is not None:
            poller.register(session.fileno(), select.POLLIN)
        return any(fd == self._stop_read for fd, _event in poller.poll(timeout_s * 1000))

    def _listen(self) -> None:
        """One session, from its connect to its loss or our close."""
        session = self._sessions.connect()
        try:
            self._session = session
            session.deadline_s = self._probe_deadline_s
            session.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
            self._test(session)
            self.listening, self.swallowed = True, False
            self._ear = session.fileno()
            self._wake()  # what was said while nobody listened; and the wait that goes on has no ear yet
            self._follow(session)
        finally:
            self._ear = None
            self._session = None
            session.close()

    def _test(self, session: Session) -> None:
        """Sends a notification through another session. Through our own a pooler might deliver even though it loses
        all that come from others."""
        name = f"wan2gp_test_{uuid.uuid4().hex}"
        session.execute(sql.SQL("LISTEN {}").format(sql.Identifier(name)))
        with self._sessions.lend() as other:
            other.execute("SELECT pg_notify(%s, '')", (name,))
        ends = time.monotonic() + _TEST_S
        while (left := ends - time.monotonic()) > 0 and not self._stopped(left, session):
            if name in {notice.channel for notice in session.notifies(timeout=0)}:
                session.execute(sql.SQL("UNLISTEN {}").format(sql.Identifier(name)))
                return
        raise Swallowed

    def _follow(self, session: Session) -> None:
        probed = time.monotonic()
        while not self._stopped(max(0.0, probed + self._probe_interval_s - time.monotonic()), session):
            if self._heard(session):
                self._wake()
            if time.monotonic() - probed >= self._probe_interval_s:
                self._probe(session)
                probed = time.monotonic()

    @staticmethod
    def _heard(session: Session) -> bool:
        """Whether our channel was notified. Straight from libpq: this is on the way of every task to its worker."""
        connection, heard = session.pgconn, False
        connection.consume_input()
        while (notice := connection.notifies()) is not None:
            heard |= notice.relname == _CHANNEL_NAME
        return heard

    @staticmethod
    def _probe(session: Session) -> None:
        """Asks the server whether this session still listens; an exchange with a deadline."""
        query = "SELECT count(*) FROM pg_listening_channels() AS c(name) WHERE c.name = %s"
        row = session.execute(query, (CHANNEL,), prepare=False).fetchone()
        if row is None or row[0] == 0:
            raise Swallowed
