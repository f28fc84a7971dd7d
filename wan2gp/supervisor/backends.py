"""Which queue the configuration means, and the database behind it where that is ours to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wan2gp.config import Config, ConfigError
from wan2gp.supervisor.embedded import EmbeddedPostgres, EmbeddedUnavailable
from wan2gp.supervisor.queue import TaskQueue

REVIVE_S = 5.0
"""How long the loop may wait for the embedded server to start again, seconds."""


@dataclass
class Backend:
    """The queue, and the embedded server under it, if that is what runs it."""

    queue: TaskQueue
    kind: str
    """embedded or postgres."""
    embedded: EmbeddedPostgres | None = None
    _ended: str | None = None
    """How the embedded server ended, until it runs again."""

    def revive(self) -> str | None:
        """Start the embedded server again when it has ended by itself; returns what there is to say. Main thread only.

        When it cannot start (a full disk, say) the next call tries again: to the rest of the worker that is an outage.
        """
        if self.embedded is None:
            return None
        if self._ended is None:
            code = self.embedded.poll()
            if code is None:
                return None
            self._ended = f"exit status {code}" if code >= 0 else f"signal {-code}"
            self.embedded.stop()
        try:
            self.embedded.start(REVIVE_S)
        except EmbeddedUnavailable as error:
            return f"The embedded Postgres ended ({self._ended}) and cannot start: {error}"
        how, self._ended = self._ended, None
        return f"The embedded Postgres ended ({how}) and was started again"

    def close(self) -> None:
        """In reverse order of opening."""
        self.queue.close()
        if self.embedded is not None:
            self.embedded.stop()


def chosen_kind(config: Config) -> str:
    """``queue = auto`` made definite. Raises :class:`ConfigError` for what this version cannot do."""
    kind = config.queue
    if kind == "auto":
        kind = "postgres" if config.database_url else "supabase" if config.supabase_url else "embedded"
    if kind == "postgres" and not config.database_url:
        raise ConfigError(["queue = postgres needs DATABASE_URL or --database-url"])
    if kind == "postgres":
        _read_url(config)
    if kind in ("supabase", "edge"):
        raise ConfigError(
            [
                f"queue = {kind} is not in this version: give its Postgres URL (--database-url, DATABASE_URL) "
                "after `wan2gp-ctl db migrate`"
            ]
        )
    return kind


def _read_url(config: Config) -> None:
    from wan2gp.supervisor.postgres_errors import parse_url
    from wan2gp.supervisor.queue import QueueRefused

    try:
        parse_url(config.database_url.reveal())
    except QueueRefused as error:
        raise ConfigError([f"DATABASE_URL = *** cannot be used: {error}"]) from error


def open_backend(config: Config, kind: str, run_dir: Path) -> Backend:
    """Connect, or start the embedded server, bring its functions up to date and connect.

    Must be called from the main thread. Raises ``EmbeddedUnavailable``, ``QueueUnavailable`` or ``FunctionsMissing``,
    and leaves nothing open then.
    """
    from wan2gp.supervisor.postgres import PostgresQueue

    if kind == "postgres":
        return _checked(Backend(PostgresQueue(config.database_url.reveal()), kind))
    from wan2gp.supervisor.migrate import migrate

    embedded = EmbeddedPostgres(config.data_dir, run_dir)
    embedded.start()
    try:
        url = embedded.url.reveal()
        migrate(url)
        return _checked(Backend(PostgresQueue(url), kind, embedded))
    except BaseException:
        embedded.stop()
        raise


def _checked(backend: Backend) -> Backend:
    try:
        backend.queue.check()
    except BaseException:
        backend.queue.close()
        raise
    return backend
