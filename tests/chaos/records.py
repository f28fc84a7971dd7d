"""What a run leaves behind, as plain values: the books' only input. Nothing here reads a clock, a file or a database.

All times are seconds since the epoch, of one machine: the database's ``clock_timestamp()``, the clients' and the logs'.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FINAL = frozenset({"Complete", "Failed", "Cancelled"})
SLACK_S = 1.0
"""What two processes on a busy machine may be late in saying that something happened, seconds."""


@dataclass(frozen=True)
class Row:
    """A row of ``tasks`` at the end, with the counters of its lease: 0 when it never had one, None: not looked at."""

    id: str
    task_type: str
    status: str
    attempts: int = 0
    max_attempts: int = 3
    failures: int | None = None
    losses: int | None = None
    interruptions: int | None = None
    error_message: str | None = None
    output_location: str | None = None
    result_data: Mapping[str, Any] = field(default_factory=dict)
    makes: int | None = None
    """How many files, posters aside, a completed task of this kind publishes; None: as many as its row names."""
    after: tuple[str, ...] = ()
    """Tasks that it waited for."""


@dataclass(frozen=True)
class Event:
    """A row of ``task_events``. ``id`` is its number there, which orders the events of one task."""

    task_id: str
    at: float
    name: str
    worker_id: str | None = None
    attempt: int | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0


@dataclass(frozen=True)
class Inserted:
    """A client was told that its row is in the table."""

    task_id: str
    at: float


@dataclass(frozen=True)
class Cancelled:
    """A client asked to cancel. ``accepted``: it was told that the row was Queued or In Progress until then."""

    task_id: str
    at: float
    accepted: bool


@dataclass(frozen=True)
class Artifact:
    """A file that lies where finished ones are published (under ``outputs/``, or in the bucket)."""

    task_id: str
    worker: str
    path: str
    sha256: str
    decodable: bool
    expected: str | None = None
    """The sha256 that it must have when that is known beforehand; None when only the row can say."""


@dataclass(frozen=True)
class Sample:
    """Resident memory of one process, bytes. ``role``: supervisor, shim, courier, a handler's name, server."""

    at: float
    role: str
    rss: int


@dataclass(frozen=True)
class Life:
    """One supervisor process, from its birth to its end (None: it was there when all was over). ``able``: when it began
    to claim; None when that is not known, infinite when it never did.

    ``pauses`` are when it could not work though it lived: stopped by a signal, or cut off alone. ``pid`` tells the
    lives of one worker apart.
    """

    worker: str
    begun: float
    ended: float | None = None
    pauses: tuple[tuple[float, float], ...] = ()
    memory: tuple[Sample, ...] = ()
    pid: int | None = None
    able: float | None = None


@dataclass(frozen=True)
class Deed:
    """A fault that was done. ``victim``: handler, shim, supervisor, server, courier, backend, database, network,
    storage or disk. ``until``: when it was undone (thawed, connected, up again); None for what ends at once.

    ``name`` begins with what was done: kill, freeze, restart, cut, slow, refuse, stop, drop.
    """

    at: float
    name: str
    victim: str
    worker: str | None = None
    pid: int | None = None
    task_id: str | None = None
    """What the victim was running, as far as one could see."""
    handler: str | None = None
    until: float | None = None


@dataclass(frozen=True)
class History:
    """Everything that the rules judge. ``outages``: (from, to) when the database was away for all, or stood still.

    ``leases_left``, ``spools``, ``orphans``, ``open_ports``, ``leftover_files`` are what was still there when all had
    stopped, each as words for a person (task and worker, path, pid and command line, port).
    """

    rows: tuple[Row, ...]
    events: tuple[Event, ...]
    inserted: tuple[Inserted, ...] = ()
    cancels: tuple[Cancelled, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    lives: tuple[Life, ...] = ()
    deeds: tuple[Deed, ...] = ()
    outages: tuple[tuple[float, float], ...] = ()
    leases_left: tuple[str, ...] = ()
    spools: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()
    open_ports: tuple[str, ...] = ()
    leftover_files: tuple[str, ...] = ()
    lease_s: float = 90.0
    poll_s: float = 1.0
    ended_at: float = 0.0
    memory_factor: float = 1.25
    memory_slack: int = 48 * 1024 * 1024
    """Memory is flat when the last quarter's median is at most the first's times the factor plus this, bytes."""


class Rule(enum.Enum):
    """What is promised of every run."""

    ACKNOWLEDGED = "an acknowledged row is there"
    FINAL = "every row ends"
    COMPLETED_ONCE = "a task completes at most once"
    ONE_END = "a row has one end"
    STALE = "no write of a stale attempt is accepted"
    ALONE = "a task has one holder at a time"
    RISING = "attempts rise by one"
    ROBBED = "no lease is taken before it has expired"
    RESCUED = "what lost its holder is taken up in time"
    BACK_OFF = "no task is claimed before its pause is over"
    CANCELLED = "cancelled stays cancelled"
    PUBLISHED = "a completed task's files are published once"
    UNPUBLISHED = "what did not complete has published nothing"
    CONTENT = "a published file is the one that the row tells of"
    DECODABLE = "a published file can be decoded"
    CAUSES = "every attempt that was lost has its cause on the row"
    COUNTERS = "the counters agree with the events"
    LEASE_LEFT = "no lease is left"
    SPOOL_LEFT = "no spool is left"
    ORPHAN = "no process is left"
    PORT_LEFT = "no port is left open"
    FILE_LEFT = "no file is left"
    MEMORY = "memory stays flat"


@dataclass(frozen=True)
class Violation:
    """A rule that was broken: by which task (None: by the run as a whole), and what is to be seen."""

    task_id: str | None
    rule: str
    sentence: str
