"""Installing the database contract: the SQL files of ``wan2gp/supervisor/sql``, in their order and in two transactions.

Every file is idempotent and only adds. All but the first are one transaction: workers call the functions all the while,
and between a function's definition and its rights they would be refused. Two that migrate at once take turns, by an
advisory lock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources

import psycopg

from wan2gp.supervisor.contract_queue import CONTRACT_VERSION

LOCK_TIMEOUT_S = 5.0
"""Longest wait for a lock: whoever comes after us waits behind us."""
TRIES = 10
PAUSE_S = 1.0
_NEWER = "W2002"
# Whoever waited here has stale ideas of which tables exist, until it locks a relation anew: so it looks at one.
_LOCK = "DO $lock$ BEGIN PERFORM pg_advisory_xact_lock(727102, 1); PERFORM FROM pg_class LIMIT 1; END $lock$;"
_GUARD = f"""DO $guard$
DECLARE
    v_there int;
BEGIN
    -- Read and not called: whose function it is has not been looked at yet.
    SELECT substring(p.prosrc FROM '[0-9]+')::int INTO v_there
      FROM pg_proc p WHERE p.oid = to_regprocedure('public.wan2gp_version()');
    IF v_there > {CONTRACT_VERSION} THEN
        RAISE EXCEPTION 'this program is older than the database''s functions (% '
            'there, {CONTRACT_VERSION} here): update it', v_there USING ERRCODE = '{_NEWER}';
    END IF;
END
$guard$;"""


class MigrationFailed(Exception):
    """The contract could not be installed; the message says which step failed and why, without secrets."""


@dataclass(frozen=True)
class Step:
    """One file."""

    name: str
    sql: str


def steps() -> tuple[Step, ...]:
    """The files in the order in which they are applied."""
    folder = resources.files("wan2gp.supervisor").joinpath("sql")
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".sql")), key=lambda item: item.name)
    return tuple(Step(item.name, item.read_text(encoding="utf-8")) for item in files)


def transactions() -> tuple[tuple[Step, ...], ...]:
    """The steps that are applied together or not at all. The first one adds enum values, which may be used only after
    its commit."""
    known = steps()
    return known[:1], known[1:]


def sql_text() -> str:
    """The whole contract as one script, to be pasted into an SQL editor or piped into ``psql``."""
    head = "-- The wan2gp database contract. Safe to run again: it only adds what is missing.\n\n"
    return head + "\n".join(map(_script, transactions()))


def migrate(
    url: str,
    *,
    connect_timeout_s: int = 10,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    tries: int = TRIES,
    warn: Callable[[str], None] | None = None,
) -> None:
    """Installs the contract in the database behind ``url`` (libpq). Raises :class:`MigrationFailed`.

    ``warn`` is told what the database leaves open and only its owner can close, a sentence at a time.
    """
    try:
        connection = psycopg.connect(url, autocommit=True, connect_timeout=connect_timeout_s)
    except psycopg.ProgrammingError:  # its text repeats the URL, and with it the password
        raise MigrationFailed(
            "cannot read the database URL: it is not postgresql://user:password@host:port/name"
        ) from None
    except psycopg.Error as error:
        raise MigrationFailed(f"cannot connect to the database: {_first_line(error)}") from None
    with connection:
        if warn is not None:
            connection.add_notice_handler(partial(_tell, warn))
        if connection.info.server_version < 130000:
            raise MigrationFailed("cannot migrate: the contract needs Postgres 13 or newer")
        for together in transactions():
            _apply_patiently(connection, together, lock_timeout_s, tries)


def _tell(warn: Callable[[str], None], notice: psycopg.errors.Diagnostic) -> None:
    if notice.message_primary:
        warn(notice.message_primary)


def _script(together: Sequence[Step]) -> str:
    files = "\n".join(f"-- {step.name}\n{step.sql}" for step in together)
    return f"BEGIN;\n{_settings(LOCK_TIMEOUT_S)}\n{_LOCK}\n{_GUARD}\n\n{files}\nCOMMIT;\n"


def _settings(lock_timeout_s: float) -> str:
    # The path, because somebody's functions may lie where the migrating role would look for an operator.
    patience = f"SET LOCAL lock_timeout = '{round(lock_timeout_s * 1000)}ms';"
    return f"SET LOCAL client_min_messages = warning; SET LOCAL search_path = pg_catalog, pg_temp; {patience}"


def _apply_patiently(
    connection: psycopg.Connection[tuple[object, ...]], together: Sequence[Step], lock_timeout_s: float, tries: int
) -> None:
    """Between the tries those who waited behind us go on."""
    for tries_left in reversed(range(tries)):
        try:
            return _apply(connection, together, lock_timeout_s)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if not tries_left:
                raise MigrationFailed(
                    f"cannot migrate now: somebody holds a lock for too long ({_first_line(error)}). Nothing was "
                    "changed; try again"
                ) from error
        time.sleep(PAUSE_S * random.uniform(0.8, 1.2))


def _apply(connection: psycopg.Connection[tuple[object, ...]], together: Sequence[Step], lock_timeout_s: float) -> None:
    name = together[0].name
    try:
        with connection.transaction():
            connection.execute(f"{_settings(lock_timeout_s)} {_LOCK} {_GUARD}".encode())
            for step in together:
                name = step.name
                connection.execute(step.sql.encode())
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
        raise
    except psycopg.Error as error:
        what = "migrate" if error.sqlstate == _NEWER else f"apply {name}"
        raise MigrationFailed(f"cannot {what}: {_first_line(error)}") from error


def _first_line(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error).strip().partition("\n")[0]) or type(error).__name__
