"""Installing the database contract: the SQL files of ``wan2gp/supervisor/sql`` in their order, each in a transaction.

Every file is idempotent and only adds. Two that migrate at once take turns, by an advisory lock per file.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import psycopg

# Whoever waited here has stale ideas of which tables exist, until it locks a relation anew: so it looks at one.
_LOCK = "DO $lock$ BEGIN PERFORM pg_advisory_xact_lock(727102, 1); PERFORM FROM pg_class LIMIT 1; END $lock$;"


class MigrationFailed(Exception):
    """The contract could not be installed; the message says which step failed and why, without secrets."""


@dataclass(frozen=True)
class Step:
    """One file: applied as a whole or not at all."""

    name: str
    sql: str

    @property
    def transaction(self) -> str:
        """The file as a script of its own, under the lock that keeps two migrations apart."""
        return f"BEGIN;\n{_LOCK}\n{self.sql}\nCOMMIT;\n"


def steps() -> tuple[Step, ...]:
    """The files in the order in which they are applied."""
    folder = resources.files("wan2gp.supervisor").joinpath("sql")
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".sql")), key=lambda item: item.name)
    return tuple(Step(item.name, item.read_text(encoding="utf-8")) for item in files)


def sql_text() -> str:
    """The whole contract as one script, to be pasted into an SQL editor or piped into ``psql``."""
    head = (
        "-- The wan2gp database contract. Safe to run again: it only adds what is missing.\n"
        "SET client_min_messages = warning;\n\n"
    )
    return head + "\n".join(f"-- {step.name}\n{step.transaction}" for step in steps())


def migrate(url: str, *, connect_timeout_s: int = 10, lock_timeout_s: int = 60) -> None:
    """Installs the contract in the database behind ``url`` (libpq). Raises :class:`MigrationFailed`."""
    try:
        connection = psycopg.connect(url, autocommit=True, connect_timeout=connect_timeout_s)
    except psycopg.ProgrammingError:  # its text repeats the URL, and with it the password
        raise MigrationFailed(
            "cannot read the database URL: it is not postgresql://user:password@host:port/name"
        ) from None
    except psycopg.Error as error:
        raise MigrationFailed(f"cannot connect to the database: {_first_line(error)}") from None
    with connection:
        if connection.info.server_version < 130000:
            raise MigrationFailed("cannot migrate: the contract needs Postgres 13 or newer")
        connection.execute(f"SET lock_timeout = '{lock_timeout_s}s'; SET client_min_messages = warning")
        for step in steps():
            _apply(connection, step)


def _apply(connection: psycopg.Connection[tuple[object, ...]], step: Step) -> None:
    try:
        with connection.transaction():
            connection.execute(_LOCK)
            connection.execute(step.sql.encode())
    except psycopg.Error as error:
        raise MigrationFailed(f"cannot apply {step.name}: {_first_line(error)}") from error


def _first_line(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error).strip().partition("\n")[0]) or type(error).__name__
