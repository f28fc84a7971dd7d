"""The durable memory of what has ended: an outcome is here before anything else happens with it.

Endings are records of a journal; a folder of an ending's own takes its artifacts. What is here after a crash or an
outage is settled at the next chance.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from wan2gp.protocol import Artifact
from wan2gp.supervisor.emptying import discard
from wan2gp.supervisor.journal import Journal
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
    user_id: str | None = None
    project_id: str | None = None
    put_url: str | None = None
    """A signed URL that the task gave for its primary artifact; itself a secret."""
    withheld: str | None = None
    """Why it could not be published (``code: sentence``): the row is Failed until that is mended."""
    refused: bool = False
    """The database did not take it: all that is left to do is to delete what was uploaded."""
    resumed: bool = False
    """An earlier life of the worker left it, which may have sent some of it."""

    @property
    def key(self) -> str:
        """Names it in the spool."""
        return f"{self.task_id}-{self.lease_id[:16]}"

    def __repr__(self) -> str:  # the token stays out of tracebacks
        return f"Ending({self.key}, {self.verb.value})"

    def settlement(
        self,
        output_location: str | None,
        result_data: dict[str, Any] | None,
        storage_path: str | None = None,
        thumbnail_path: str | None = None,
    ) -> Settlement:
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
            project_id=self.project_id,
            storage_path=storage_path,
            thumbnail_path=thumbnail_path,
        )


class Spool:
    """The folder ``spool/`` of the data directory. An ending is written by one thread at a time."""

    def __init__(self, directory: Path, aside: Path | None = None) -> None:
        """``aside``: see :func:`~wan2gp.supervisor.emptying.discard`; None: beside the folder. Raises :class:`OSError`
        when the folder cannot be used."""
        self._directory = directory
        self._aside = aside or directory.parent
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._journal = Journal(directory / "journal")
        self.damaged = self._journal.damaged
        """Something of it could not be read: the file is kept as ``journal.bad``, and no artifact is removed."""
        for folder in () if self.damaged else directory.iterdir():
            if folder.is_dir() and folder.name not in self._journal.live:
                discard(folder, self._aside)  # settled; its removal was cut short

    def add(self, endings: Iterable[Ending]) -> None:
        """Write them; on return they survive a power cut. Raises :class:`OSError` when the disk is full or broken."""
        self._journal.append({ending.key: ending for ending in endings})

    def folder(self, ending: Ending) -> Path:
        """Where its artifacts are kept, made when needed."""
        folder = self._directory / ending.key
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def remove(self, ending: Ending) -> None:
        """It is settled. Not flushed: settling it again after a crash is harmless."""
        self._journal.forget(ending.key)
        discard(self._directory / ending.key, self._aside)  # also of a result that was refused

    def leftovers(self) -> list[Ending]:
        """What an earlier life or an outage left, oldest first."""
        found = [msgspec.json.decode(value, type=Ending) for value in self._journal.live.values()]
        return [msgspec.structs.replace(ending, resumed=True) for ending in found]

    def close(self) -> None:
        """Give the journal's file back."""
        self._journal.close()
