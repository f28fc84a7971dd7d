"""What an error of PostgREST, or of the gateway before it, means to a worker. Sets of codes decide, never texts.

PostgREST answers with its own codes (``PGRST…``) or with Postgres's; a gateway with a status alone, and a body that may
be a page of HTML. Codes of one meaning differ between versions, hence the sets.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import httpx

from wan2gp.supervisor.queue import AccessDenied, FunctionsMissing, QueueError, QueueRefused, QueueUnavailable
from wan2gp.supervisor.sqlstates import (
    CANCELED,
    GOING_DOWN,
    NO_FUNCTION,
    NO_PERMISSION,
    READ_ONLY,
    STARTING,
    TRY_AGAIN,
    is_unavailable,
)

UNKNOWN_FUNCTION = "PGRST202"
"""Not in PostgREST's picture of the schema, which may be older than the last migration."""
_MISSING = frozenset({UNKNOWN_FUNCTION, "PGRST205"}) | NO_FUNCTION
_SCHEMA_HIDDEN = "PGRST106"
_KEY = frozenset({"PGRST300", "PGRST301", "PGRST302", "PGRST303"})
_NO_DATABASE = frozenset({"PGRST000", "PGRST001"})
_UNREADY = frozenset({"PGRST002", "PGRST003"}) | _NO_DATABASE
"""PostgREST has no connection, no picture of the schema yet, or none of its connections free."""
_PAUSED = 540
_DOWN_FOR_ALL = frozenset({502, 503, 504, *range(520, 525), 530, _PAUSED})
"""The gateway is there and says that nothing is behind it, whoever asks."""
_TIMED_OUT = frozenset({504, 524})
"""What is behind the gateway did not answer it in time."""
_FOR_LATER = frozenset({408, 425, 429})
TEXT_MAX = 300


class Again(enum.Enum):
    """When the same call may be made again."""

    NEVER = "never"
    AT_ONCE = "at once"
    """What failed is over, as a deadlock is."""
    AFRESH = "afresh"
    """On another connection: this one may have been stale."""
    SOON = "soon"
    RELOADED = "reloaded"
    """Shortly: a cache is being renewed."""


@dataclass(frozen=True)
class Verdict:
    """What to tell the caller, unless another try succeeds."""

    error: QueueError
    again: Again


def judge_answer(host: str, code: object, message: object, status: int, location: str | None) -> Verdict:
    """An answer that is an error. ``code`` and ``message`` are those of its JSON; ``location`` that of a redirect."""
    code = code if isinstance(code, str) and _is_code(code) else ""
    text = _one_line(message if isinstance(message, str) else "") or f"status {status}"
    if code in _MISSING:
        error = FunctionsMissing(f"the database lacks the queue's functions ({text}): run `wan2gp-ctl db migrate`")
        return Verdict(error, Again.RELOADED if code == UNKNOWN_FUNCTION else Again.NEVER)
    if code in _KEY or (not code and status in (401, 403)):
        return Verdict(_refused_key(host, code, status), Again.NEVER)
    if code == _SCHEMA_HIDDEN:
        sentence = f"the project at {host} does not expose the schema public: add it under Data API, Exposed schemas"
        return Verdict(AccessDenied(sentence, code=code), Again.NEVER)
    if code in _UNREADY or (len(code) == 5 and is_unavailable(code)):
        return Verdict(_unavailable(host, code, text), _when(code))
    if code == NO_PERMISSION:
        return Verdict(_not_granted(text), Again.NEVER)
    if len(code) == 5 or (code and status < 500):
        return Verdict(QueueRefused(f"the database refused: {text}", code=code), Again.NEVER)
    return Verdict(*_judge_status(host, status, text, location))


def judge_transport(host: str, error: Exception) -> Verdict:
    """No whole answer came."""
    reason = _one_line(str(error)) or type(error).__name__
    # A connection that rested may have been closed under us; one more try shows whether there is more to it.
    broken = isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError)
    sentence = f"cannot reach the Supabase project at {host}: {reason}"
    late = isinstance(error, httpx.ReadTimeout)
    unavailable = QueueUnavailable(sentence, server_down=_is_refused(error), late=late)
    return Verdict(unavailable, Again.AFRESH if broken else Again.SOON)


def _is_refused(error: BaseException) -> bool:
    """Whether the host is there and nobody listens on it. Silence, no route and a name that is not found may be our own
    trouble: others may reach the project then, and take what we hold. A proxy that refuses is ours, too."""
    found: BaseException | None = None if isinstance(error, httpx.ProxyError) else error
    while found is not None and not isinstance(found, ConnectionRefusedError):
        found = found.__cause__ or found.__context__
    return found is not None


def not_ours(host: str, status: int, why: str) -> Verdict:
    """An answer that claims success and is nothing of PostgREST's."""
    sentence = (
        f"{host} answered {status} with something that is not the queue's ({why}): is SUPABASE_URL right, and is there "
        "a proxy or a login page in between?"
    )
    return Verdict(QueueUnavailable(sentence), Again.SOON)


def _judge_status(host: str, status: int, text: str, location: str | None) -> tuple[QueueError, Again]:
    if status == _PAUSED:
        sentence = f"the Supabase project at {host} is paused: resume it in its dashboard"
        return QueueUnavailable(sentence, server_down=True), Again.SOON
    if status >= 500 or status in _FOR_LATER:
        sentence = f"the Supabase project at {host} cannot answer now: {text}"
        down, late = status in _DOWN_FOR_ALL, status in _TIMED_OUT
        return QueueUnavailable(sentence, server_down=down, late=late), Again.SOON
    if 300 <= status < 400:
        sentence = f"{host} sends its callers elsewhere ({status}, to {location}): give that address as SUPABASE_URL"
        return AccessDenied(sentence, code=str(status)), Again.NEVER
    if status in (404, 405):
        sentence = f"no Supabase project answers at {host} (status {status}): mend SUPABASE_URL"
        return AccessDenied(sentence, code=str(status)), Again.NEVER
    return QueueRefused(f"{host} refused the call: {text}", code=str(status)), Again.NEVER


def _refused_key(host: str, code: str, status: int) -> AccessDenied:
    return AccessDenied(
        f"the Supabase project at {host} refuses the key ({code or status}): give the project's own service_role or "
        "sb_secret_… key as SUPABASE_SERVICE_ROLE_KEY. A personal access token is not one, nor is a key of another "
        "project",
        code=code or str(status),
    )


def _unavailable(host: str, code: str, text: str) -> QueueUnavailable:
    if code == READ_ONLY:
        return QueueUnavailable(f"cannot use the database: it is read-only now ({text})")
    # Only these say that nobody else has a database either.
    down = code in _NO_DATABASE or code == STARTING
    sentence = f"cannot reach the database behind {host}: {text} ({code})"
    return QueueUnavailable(sentence, server_down=down, late=code == CANCELED)


def _when(code: str) -> Again:
    if code in TRY_AGAIN:
        return Again.AT_ONCE
    return Again.AFRESH if code in GOING_DOWN - {STARTING} else Again.SOON


def _not_granted(text: str) -> AccessDenied:
    """The verb itself is refused, for what happens inside one is told otherwise: a grant mends it."""
    return AccessDenied(
        f"the database refused: {text}; the key must be the service_role one, not the anon one; if it is, let "
        "`wan2gp-ctl db migrate` grant the functions to service_role",
        code=NO_PERMISSION,
    )


def _is_code(code: str) -> bool:
    """Where the body is no JSON, postgrest puts the status in the code's place, in older versions as a number."""
    return code.isalnum() and (code.startswith("PGRST") or len(code) == 5)


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:TEXT_MAX] if lines else ""
