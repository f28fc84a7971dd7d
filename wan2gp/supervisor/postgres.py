"""The task queue on a Postgres that is reached directly: the contract's functions, called through psycopg."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Mapping
from typing import Any

import psycopg

from wan2gp.supervisor.contract_queue import ContractQueue, Json, UnreadableReply, shaped
from wan2gp.supervisor.postgres_errors import (
    DeadlinePassed,
    explain,
    parse_url,
    pooler_lost_statement,
    refuses_connections,
    session_lost,
    too_late,
    try_again_at_once,
)
from wan2gp.supervisor.postgres_json import clean, to_json
from wan2gp.supervisor.postgres_listen import Listener
from wan2gp.supervisor.postgres_sessions import Session, Sessions
from wan2gp.supervisor.queue import QueueError

_ROUNDS = 6
"""How often one call is tried at most, when each failure is of a kind that a fresh try at once may cure."""


class PostgresQueue(ContractQueue):
    """A :class:`~wan2gp.supervisor.queue.TaskQueue` on a libpq URL. Opens no connection before the first call."""

    name = "postgres"

    def __init__(
        self,
        url: str,
        *,
        application_name: str = "wan2gp",
        connect_timeout_s: float = 5.0,
        call_timeout_s: float = 15.0,
        probe_interval_s: float = 5.0,
    ) -> None:
        """``call_timeout_s``: after so long without an answer the session is given up. ``probe_interval_s``: how
        often the idle LISTEN session is asked whether it still lives."""
        self._parts = parse_url(url)
        self.call_s = call_timeout_s
        self._sessions = Sessions(
            url,
            application_name=application_name,
            connect_timeout_s=connect_timeout_s,
            call_timeout_s=call_timeout_s,
        )
        self._listener = Listener(
            self._sessions, probe_interval_s=probe_interval_s, probe_deadline_s=min(4.0, call_timeout_s)
        )

    @property
    def listening(self) -> bool:
        """Whether notifications really arrive; False means that only polling finds new tasks."""
        return self._listener.listening

    @property
    def swallowed(self) -> bool:
        """Whether a LISTEN was accepted but does not deliver: the URL leads through a transaction pooler."""
        return self._listener.swallowed

    def wait(self, timeout_s: float) -> bool:
        return self._listener.wait(timeout_s)

    def interrupt(self) -> None:
        self._listener.interrupt()

    def close(self) -> None:
        self._listener.close()
        self._sessions.close()

    def _call(self, verb: str, arguments: Mapping[str, Any], shape: Any) -> Any:
        """A session that broke is replaced here."""
        query = _query(verb, tuple(arguments))
        sent = {name: _sendable(value) for name, value in arguments.items()}
        for left in reversed(range(_ROUNDS)):
            session = None
            try:
                with self._sessions.lend() as session:
                    row = _only_row(session, query, sent)
                return shaped(verb, None if row is None else row[0], shape)
            except psycopg.Error as error:
                if not (left and self._curable(error, session)):
                    raise self._explain(error, called=session is not None) from None
        raise AssertionError("the last round either returns or raises")

    def _curable(self, error: psycopg.Error, session: Session | None) -> bool:
        """Whether to call again at once. A session that was used before may have gone stale; one that is new and fails
        tells of an outage."""
        if pooler_lost_statement(error):
            self._sessions.forget_statements()
            return True
        if session_lost(error):
            self._sessions.drop_idle()
            return session is not None and session.used_at > 0 and not isinstance(error, DeadlinePassed)
        if try_again_at_once(error):
            time.sleep(random.uniform(0.0, 0.03))  # the two that met must not meet again in step
            return True
        return False

    def _explain(self, error: psycopg.Error, *, called: bool) -> QueueError:
        down = session_lost(error) and refuses_connections(self._parts)
        return explain(error, server_down=down, late=called and too_late(error))


@functools.cache
def _query(verb: str, names: tuple[str, ...]) -> bytes:
    """The call of one function with named parameters; the same bytes each time, so that it is prepared once."""
    arguments = ", ".join(f"{name} := %({name})s" for name in names)
    return f"SELECT public.wan2gp_{verb}({arguments})".encode()


def _sendable(value: Any) -> Any:
    if isinstance(value, Json):
        return to_json(value.value)
    return clean(value) if isinstance(value, str) else value


def _only_row(session: Session, query: bytes, arguments: Mapping[str, Any]) -> tuple[Any, ...] | None:
    try:
        return session.execute(query, arguments).fetchone()
    except (ValueError, RecursionError) as error:
        raise UnreadableReply(str(error)) from None
