"""Which queue the configuration means, and the database behind it where that is ours to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wan2gp.config import Config, ConfigError
from wan2gp.logs import Facts
from wan2gp.supervisor.embedded import EmbeddedPostgres, EmbeddedUnavailable
from wan2gp.supervisor.queue import (
    AccessDenied,
    ContractTooOld,
    FunctionsMissing,
    QueueError,
    QueueRefused,
    TaskQueue,
)

if TYPE_CHECKING:
    from wan2gp.supervisor.supabase_project import SupabaseProject  # it loads an HTTP client

UNKNOWN_KEY = frozenset({"401", "PGRST301", "PGRST302", "PGRST303"})
"""What the gateway and PostgREST say of a key that is none of the project's."""
REVIVE_S = 5.0
"""How long the loop may wait for the embedded server to start again, seconds."""

PLAIN_ORDER = (
    "The database's functions are of an earlier version: tasks of the model that is loaded are not preferred. "
    "`wan2gp-ctl db migrate`, then a restart of this worker, lets them be"
)


@dataclass
class Backend:
    """The queue, and the embedded server under it, if that is what runs it."""

    queue: TaskQueue
    kind: str
    """embedded, postgres, supabase or edge."""
    embedded: EmbeddedPostgres | None = None
    project: SupabaseProject | None = None
    """The Supabase project, where one is configured: also for a queue that is reached by its database's own URL."""
    notes: tuple[str, ...] = ()
    """What the operator should know of the choice."""
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
        if self.project is not None:
            self.project.close()
        if self.embedded is not None:
            self.embedded.stop()


def chosen_kind(config: Config) -> str:
    """``queue = auto`` made definite as far as the configuration alone tells: a project without our functions turns out
    to be `edge` when it is opened. Raises :class:`ConfigError` for what lacks a setting."""
    kind = config.queue
    if kind == "auto":
        kind = "postgres" if config.database_url else "supabase" if config.supabase_url else "embedded"
    if kind == "postgres" and not config.database_url:
        raise ConfigError(["queue = postgres needs DATABASE_URL or --database-url"])
    if kind == "postgres":
        _read_url(config)
    if kind in ("supabase", "edge"):
        _need_project(config, kind)
    return kind


def _need_project(config: Config, kind: str) -> None:
    problems = []
    if not config.supabase_url:
        problems.append(f"queue = {kind} needs SUPABASE_URL or --supabase-url")
    if not config.supabase_key:
        problems.append(
            f"queue = {kind} needs a key: SUPABASE_SERVICE_ROLE_KEY, SUPABASE_SERVICE_ROLE_KEY_FILE or "
            "--supabase-access-token"
        )
    if problems:
        raise ConfigError(problems)


def _read_url(config: Config) -> None:
    from wan2gp.supervisor.postgres_errors import parse_url

    try:
        parse_url(config.database_url.reveal())
    except QueueRefused as error:
        raise ConfigError([f"DATABASE_URL = *** cannot be used: {error}"]) from error


def open_backend(config: Config, kind: str, run_dir: Path, facts: Facts) -> Backend:
    """Connect, or start the embedded server, bring its functions up to date and connect.

    Must be called from the main thread. Raises ``EmbeddedUnavailable``, ``QueueUnavailable``, ``QueueRefused`` or
    ``FunctionsMissing``, and leaves nothing open then.
    """
    project = _project(config)
    try:
        if kind in ("supabase", "edge"):
            assert project is not None
            return _open_hosted(config, kind, project, facts)
        return _open_postgres(config, kind, run_dir, project)
    except BaseException:
        if project is not None:
            project.close()
        raise


def _project(config: Config) -> SupabaseProject | None:
    if not (config.supabase_url and config.supabase_key) or config.queue == "embedded":
        return None
    from wan2gp.supervisor.supabase_project import SupabaseProject

    return SupabaseProject(config.supabase_url, config.supabase_key, poll_interval_s=config.poll_interval_s)


def _open_hosted(config: Config, kind: str, project: SupabaseProject, facts: Facts) -> Backend:
    if kind == "edge":
        return _open_edge(config, project, facts)
    from wan2gp.supervisor.supabase_queue import SupabaseQueue

    try:
        return _checked(Backend(SupabaseQueue(project), kind, project=project))
    except QueueError as error:
        if config.queue == "supabase" or not _functions_may_do(error):
            raise
        first = error
    try:
        return _open_edge(config, project, facts)
    except QueueError:
        raise first from None  # the queue that was meant comes first, and so does what is wrong with it


def _functions_may_do(error: QueueError) -> bool:
    """Whether the project may be one that nobody can migrate, or the key a personal access token, which opens the Edge
    Functions and nothing else. A queue that is ours and refuses is no reason to work without leases."""
    if isinstance(error, AccessDenied):
        return error.code in UNKNOWN_KEY
    return isinstance(error, FunctionsMissing) and not isinstance(error, ContractTooOld)


def _open_edge(config: Config, project: SupabaseProject, facts: Facts) -> Backend:
    from wan2gp.supervisor.edge_queue import WEAKER, EdgeQueue

    note = f"Working by Edge Functions: {'; '.join(WEAKER)}. `wan2gp-ctl db sql` prints what lifts that"
    return _checked(Backend(EdgeQueue(project, config.worker_id, facts), "edge", project=project, notes=(note,)))


def _open_postgres(config: Config, kind: str, run_dir: Path, project: SupabaseProject | None) -> Backend:
    from wan2gp.supervisor.postgres import PostgresQueue

    if kind == "postgres":
        return _checked(Backend(PostgresQueue(config.database_url.reveal()), kind, project=project))
    from wan2gp.supervisor.migrate import migrate

    embedded = EmbeddedPostgres(config.data_dir, run_dir)
    embedded.start()
    try:
        url = embedded.url.reveal()
        migrate(url)
        return _checked(Backend(PostgresQueue(url), kind, embedded, project))
    except BaseException:
        embedded.stop()
        raise


def _checked(backend: Backend) -> Backend:
    try:
        backend.queue.check()
    except BaseException:
        backend.queue.close()
        raise
    if backend.kind != "edge" and not backend.queue.prefers:
        backend.notes += (PLAIN_ORDER,)
    return backend
