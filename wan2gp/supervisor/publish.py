"""Where results go. A store takes an ending's files into the spool, makes them public, and takes back what was refused.

The order is the settler's: stage, upload, tell the database, then commit or withdraw. On this machine a file is shown
only after the fence, by a rename; what is uploaded before the fence lies under a path of its own attempt.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from wan2gp.protocol import Artifact
from wan2gp.supervisor.journal import flush_folder
from wan2gp.supervisor.spool import Ending
from wan2gp.supervisor.staging import check, holds, move, places, safe_name, take, umask

POSTER = "poster"
"""The kind of an artifact that is the still picture of another one."""


class PublishFailed(Exception):
    """A file could not be sent. ``permanent``: only a person can mend it, so the file waits for one in the spool.

    ``retry_after_s``: what the other side asked for, seconds.
    """

    def __init__(self, code: str, message: str, *, permanent: bool, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.permanent = permanent
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Staged:
    """A checked file in the spool, and where it is, or will be, for its user."""

    artifact: Artifact
    path: Path
    target: Path | None = None
    """Where it will be shown on this machine."""
    url: str | None = None
    """Where it was uploaded to."""
    storage_path: str | None = None
    """Its path in the bucket."""

    @property
    def place(self) -> str:
        """What the row says."""
        return self.url or str(self.target)


class Store(Protocol):
    """Every method is safe to repeat, also by another life of the worker, and is called from several threads."""

    def stage(self, ending: Ending, folder: Path) -> list[Staged]:
        """Take the artifacts into ``folder`` and check them. Raises :class:`~wan2gp.supervisor.staging.Refused`."""

    def upload(
        self, ending: Ending, staged: Sequence[Staged], stop: threading.Event, sent: Callable[[Staged], None] = ...
    ) -> list[Staged]:
        """Send what must be sent before the row may say so, but for files that have a ``url`` already. ``sent`` hears
        of each one that is up, also when another fails. Raises :class:`PublishFailed`; ends soon after ``stop``."""

    def commit(self, ending: Ending, staged: Sequence[Staged]) -> None:
        """The end was accepted: show the files."""

    def withdraw(self, ending: Ending, staged: Sequence[Staged]) -> None:
        """The end was refused: what was sent is deleted. Raises :class:`PublishFailed`."""


class LocalStore:
    """Publishes into ``outputs/<task_type>/`` of the data directory."""

    def __init__(self, outputs: Path) -> None:
        self._outputs = outputs
        self._mode = 0o666 & ~umask()

    def stage(self, ending: Ending, folder: Path) -> list[Staged]:
        """After a crash some are in ``folder`` already, and after one in :meth:`commit` some are shown."""
        staged: list[Staged] = []
        for artifact, path in zip(ending.artifacts, places(ending, folder), strict=True):
            target = self._target(ending, artifact, [other.target for other in staged])
            if not holds(target, artifact):
                take(ending, artifact, path)
            check(path if os.path.lexists(path) else target, artifact, self._mode)
            staged.append(Staged(artifact, path, target))
        return staged

    def _target(self, ending: Ending, artifact: Artifact, taken: Sequence[Path | None]) -> Path:
        """``{task_id}_{filename}``; on a clash the node's id, then the attempt goes between.

        A file of the very same content is no clash: it is what an earlier try has shown.
        """
        folder = self._outputs / safe_name(ending.task_type)
        name = safe_name(artifact.name)
        node = f"{safe_name(artifact.node_id)}_" if artifact.node_id else ""
        for middle in ("", node, f"{node}{ending.attempt}_", f"{node}{ending.attempt}_{len(taken)}_"):
            target = folder / f"{ending.task_id}_{middle}{name}"
            if target not in taken and (not os.path.lexists(target) or holds(target, artifact)):
                break
        return target

    def upload(
        self,
        ending: Ending,
        staged: Sequence[Staged],
        stop: threading.Event,
        sent: Callable[[Staged], None] = lambda item: None,
    ) -> list[Staged]:
        """Nothing leaves this machine."""
        return list(staged)

    def commit(self, ending: Ending, staged: Sequence[Staged]) -> None:
        """Rename the files into their places; one that was sent elsewhere has none here."""
        targets = [(item.path, item.target) for item in staged if item.target is not None and item.url is None]
        for path, target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():  # else an earlier try has shown it
                move(path, target)
        for folder in {target.parent for _, target in targets}:
            flush_folder(folder)

    def withdraw(self, ending: Ending, staged: Sequence[Staged]) -> None:
        """Nothing was shown yet."""


def describe(staged: Sequence[Staged]) -> list[dict[str, Any]]:
    """The ``artifacts`` of ``result_data``: what was measured, and where each will be."""
    described = []
    for item in staged:
        fields = msgspec.to_builtins(item.artifact)
        del fields["path"]
        where = {"url": item.url} if item.url else {"path": str(item.target)}
        described.append({key: value for key, value in {**fields, **where}.items() if value is not None})
    return described


def primary(staged: Sequence[Staged]) -> Staged | None:
    """What ``output_location`` names: the primary artifact, else the first."""
    chosen = [item for item in staged if item.artifact.primary] or staged
    return chosen[0] if chosen else None


def poster(staged: Sequence[Staged]) -> Staged | None:
    """The still picture of the primary artifact, if there is one: the one that it names, since a node may make several
    videos."""
    main = primary(staged)
    posters = [item for item in staged if item.artifact.kind == POSTER]
    return next((item for item in posters if main is not None and item.artifact.name == main.artifact.poster), None)


def outcome_of(ending: Ending, staged: Sequence[Staged]) -> Mapping[str, Any]:
    """The arguments of :meth:`Ending.settlement` for these files."""
    main, still = primary(staged), poster(staged)
    data = {**ending.result_data}
    if staged:
        data["artifacts"] = describe(staged)
    return {
        "output_location": None if main is None else main.place,
        "result_data": data or None,
        "storage_path": None if main is None else main.storage_path,
        "thumbnail_path": None if still is None else still.storage_path,
    }
