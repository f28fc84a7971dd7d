"""What a database error means to a worker: try again later, install the functions, or give up."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from wan2gp.supervisor.queue import AccessDenied, FunctionsMissing, QueueError, QueueRefused, QueueUnavailable
from wan2gp.supervisor.sqlstates import (
    CANCELED,
    GOING_DOWN,
    NO_FUNCTION,
    NO_PERMISSION,
    OVERDUE,
    READ_ONLY,
    TRY_AGAIN,
    is_unavailable,
)

_PREPARED = frozenset({"26000", "42P05"})
"""The prepared statement is unknown or exists: a pooler hands our session from one server session to another."""
_NO_STARTUP_OPTIONS = "08P01"
# A refused connect carries no SQLSTATE, only words. They decide nothing but this: whether waiting can help. In another
# language each is taken for an outage.
_CONNECT_WORDS = (
    ("authentication failed", "28P01"),
    ("no password supplied", "28P01"),
    ("no pg_hba.conf entry", "28000"),
    ("is not permitted to log in", "28000"),
    ("does not exist", "3D000"),
)
_COMES_OR_GOES = "the database system is"


class DeadlinePassed(psycopg.OperationalError):
    """The server did not answer within the call's deadline; the session is of no further use."""


def try_again_at_once(error: psycopg.Error) -> bool:
    """Whether the database undid the call and says that a second try may succeed."""
    return error.sqlstate in TRY_AGAIN


def pooler_lost_statement(error: psycopg.Error) -> bool:
    """Whether prepared statements do not work through this connection; the call was not executed."""
    return error.sqlstate in _PREPARED


def startup_options_refused(error: psycopg.Error) -> bool:
    """Whether a pooler refused our connection for its ``options``."""
    return error.sqlstate == _NO_STARTUP_OPTIONS or "startup parameter" in str(error)


def option_unknown(error: psycopg.Error, name: str) -> bool:
    """Whether a server, or a pooler before it, refused our connection for this one of its ``options``. In whatever
    language, it names it."""
    return name in str(error)


def session_lost(error: psycopg.Error) -> bool:
    """Whether the connection itself is gone."""
    state = error.sqlstate or ""
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and (
        not state or state in GOING_DOWN or state.startswith("08")
    )


def too_late(error: psycopg.Error) -> bool:
    """Whether an answer was not there in time, by our clock or by the server's, which ends a little earlier."""
    return isinstance(error, DeadlinePassed) or error.sqlstate in (CANCELED, *OVERDUE)


def explain(error: psycopg.Error, *, server_down: bool = False, late: bool = False) -> QueueError:
    """The queue's own error for ``error``; its text carries no password."""
    state = error.sqlstate or ""
    text = first_line(error)
    if state in NO_FUNCTION:
        return FunctionsMissing(f"the database lacks the queue's functions ({text}): run `wan2gp-ctl db migrate`")
    if state == READ_ONLY:
        return QueueUnavailable(f"cannot use the database: it is read-only now ({text})")
    words = [code for word, code in _CONNECT_WORDS if not state and "FATAL" in str(error) and word in str(error)]
    if words:
        return AccessDenied(f"the database refused the connection: {text}", code=words[0])
    if is_unavailable(state) or session_lost(error):
        down = server_down or state in GOING_DOWN or _COMES_OR_GOES in str(error)
        return QueueUnavailable(f"cannot reach the database: {text}", server_down=down, late=late)
    if state == NO_PERMISSION:  # of the verb itself, for what happens inside one is told otherwise: a grant mends it
        sentence = f"the database refused: {text}; let a superuser grant it EXECUTE on the wan2gp functions"
        return AccessDenied(sentence, code=state)
    return QueueRefused(f"the database refused: {text}", code=state)


def first_line(error: psycopg.Error) -> str:
    """The error in one line."""
    lines = [line.strip() for line in str(error.diag.message_primary or error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def parse_url(url: str) -> dict[str, Any]:
    """The parts of a libpq URL. Raises :class:`QueueRefused` without repeating it, for it holds a password."""
    try:
        parts = conninfo_to_dict(url)
        _ = [int(port or 0) for port in str(parts.get("port") or "").split(",")]
    except (psycopg.Error, ValueError):
        raise QueueRefused(
            "cannot read the database URL: it is not postgresql://user:password@host:port/name"
        ) from None
    return parts


def refuses_connections(parts: Mapping[str, Any], timeout_s: float = 1.0) -> bool:
    """Whether every address of the server refuses connections by itself, so that nobody can reach it.

    libpq reports this in words of the system's language only; so it is asked once more, by a bare connect.
    """
    hosts = str(parts.get("hostaddr") or parts.get("host") or "localhost").split(",")
    ports = str(parts.get("port") or 5432).split(",")
    pairs = zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=False)
    return all(_refuses(host, int(port or 5432), timeout_s) for host, port in pairs)


def _refuses(host: str, port: int, timeout_s: float) -> bool:
    local = host.startswith(("/", "@"))
    try:
        if local:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(timeout_s)
                peer.connect(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else f"\0{host[1:]}/.s.PGSQL.{port}")
        else:
            socket.create_connection((host, port), timeout_s).close()
    except ConnectionRefusedError:
        return True
    except FileNotFoundError:
        return local
    except OSError:
        return False
    return False
