"""What the engine is given to do, and what it tells meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union


@dataclass(frozen=True)
class EngineAbout:
    """The engine that runs."""

    version: str
    """Of Wan2GP."""
    commit: str
    """Of its checkout, or "" where that is no git repository."""
    gpu: str
    """The card's name; "" where PyTorch names none."""
    gpu_total_mib: int
    pid: int
    """Of its process; another one after a restart."""


@dataclass(frozen=True)
class EngineJob:
    """One task of the engine's own: one generation."""

    settings: Mapping[str, Any]
    """Its settings, as :class:`wan2gp.handlers.wan_settings.EngineTask` has them: paths are absolute."""
    output_dir: Path
    """Absolute, and this job's alone: what it makes lies in here. Made where it is missing."""
    preview: Path | None = None
    """Where previews are put, as JPEG, each replacing the one before; None: none."""


@dataclass(frozen=True)
class Loading:
    """The model is being loaded; nothing can be cancelled meanwhile, except a wait for a file."""

    model: str


@dataclass(frozen=True)
class Loaded:
    model: str
    seconds: float


@dataclass(frozen=True)
class Step:
    """``step`` of ``steps``, None where the engine counts none. ``phase`` is the engine's word and may be stale: it is
    taken from shared state when the event is handled."""

    step: int | None
    steps: int | None
    phase: str
    status: str


@dataclass(frozen=True)
class Preview:
    """There is a new one at ``EngineJob.preview``."""

    path: Path


@dataclass(frozen=True)
class Said:
    """A line of status, or for the user's information."""

    text: str


Event = Union[Loading, Loaded, Step, Preview, Said]
OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Want:
    """A file that the engine does not find: it waits until it is told where the file is, or that there is none."""

    url: str
    """Where the engine would have fetched it, "" where it names only a repository."""
    repo: str
    """``owner/name`` on the hub, or ""."""
    file: str
    """Its path there. A whole folder when it ends in ``/``."""
    place: Path
    """Where the engine looks for it: it is copied or linked there."""


Supply = Callable[[Want], Union[Path, str]]
"""The file, complete; or why it cannot be had. May take as long as a download takes, and raise: the job is cancelled
then and the error raised to whoever asked for the job."""


def refuse(want: Want) -> str:
    """A :data:`Supply` that has nothing."""
    return "downloads are switched off"


@dataclass(frozen=True)
class WanLimits:
    """Times in seconds."""

    start_s: float = 300.0
    """The first import after an installation compiles for a minute and a half."""
    answer_s: float = 60.0
    """For questions that need no model."""
    unload_s: float = 60.0
    cancel_grace_s: float = 60.0
    """How long a cancelled job may go on before its process is killed: a model that is being loaded cannot be
    interrupted."""
    stuck_s: float = 1800.0
    """How long a job may be silent."""
    join_s: float = 20.0
    """How long the engine's threads may go on after its last word on a job: releasing memory takes seconds."""
    stop_grace_s: float = 2.0
