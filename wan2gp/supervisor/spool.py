"""The durable memory of what has ended: an outcome is here before anything else happens with it.

One JSON file an ending, written beside and renamed, file and folder flushed to the disk; a folder of the same name
takes its artifacts. What is here after a crash or an outage is settled at the next chance.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from wan2gp.protocol import Artifact
from wan2gp.supervisor.queue import Settlement, Verb


class Ending(msgspec.Struct, frozen=True):
    """How one attempt at a task ended, with all that settling it needs, whichever life of the worker does it."""

    task_id: str
    task_type: str
    attempt: int
    lease_id: str
    token: str
    verb: Verb
    work_dir: str
    error_message: str | None = None
    cause: dict[str, Any] | None = None
    retry_in_s: float | None = None
    artifacts: tuple[Artifact, ...] = ()
    result_data: dict[str, Any] = {}

    @property
    def key(self) -> str:
        """Names it in the spool."""
        return f"{self.task_id}-{self.lease_id[:16]}"

    def __repr__(self) -> str:  # the token stays out of tracebacks
        return f"Ending({self.key}, {self.verb.value})"

    def settlement(self, output_location: str | None, result_data: dict[str, Any] | None) -> Settlement:
        """What the database is told."""
        return Settlement(
            task_id=self.task_id,
            token=self.token,
            verb=self.verb,
            output_location=output_location,
            error_message=self.error_message,
            result_data=result_data,
            cause=self.cause,
            retry_in_s=self.retry_in_s,
        )


class Spool:
    """The folder ``spool/`` of the data directory. One thread writes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for rest in directory.glob("*.tmp"):
            rest.unlink()

    def add(self, endings: Iterable[Ending]) -> None:
        """Write them; on return they survive a power cut. Raises :class:`OSError` when the disk is full or broken."""
        for ending in endings:
            path = self._path(ending)
            fresh = path.with_suffix(".tmp")
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(ending))
                file.flush()
                os.fdatasync(file.fileno())
            fresh.rename(path)
        flush_folder(self._directory)

    def folder(self, ending: Ending) -> Path:
        """Where its artifacts are kept, made when needed."""
        folder = self._directory / ending.key
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def remove(self, ending: Ending) -> None:
        """It is settled. Not flushed: settling it again after a crash is harmless."""
        with contextlib.suppress(FileNotFoundError):
            self._path(ending).unlink()
        if ending.artifacts:
            shutil.rmtree(self._directory / ending.key, ignore_errors=True)

    def leftovers(self) -> Iterator[Ending]:
        """What an earlier life or an outage left, oldest first. A file that cannot be read is set aside as ``.bad``."""
        for path in sorted(self._directory.glob("*.json"), key=lambda found: found.stat().st_mtime):
            try:
                yield msgspec.json.decode(path.read_bytes(), type=Ending)
            except msgspec.DecodeError:
                path.rename(path.with_suffix(".bad"))

    def __len__(self) -> int:
        return sum(1 for _ in self._directory.glob("*.json"))

    def _path(self, ending: Ending) -> Path:
        return self._directory / f"{ending.key}.json"


def flush_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
