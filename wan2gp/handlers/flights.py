"""Downloads under way, shared: several tasks that want the same URL at the same time cost one request.

The first to ask leads and downloads; the others wait and get a link to its file the moment it is there. A leader that
is cancelled leaves the lead to one of those who wait. A failure is everybody's: another request would end the same.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path

from wan2gp.handlers.api import Interrupted, TaskFailure
from wan2gp.handlers.download import Download, Downloaded
from wan2gp.handlers.input_names import input_name, place
from wan2gp.handlers.locations import Location, locate
from wan2gp.protocol import Signed, Source


class Flights:
    """What is under way in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passengers: dict[Hashable, list[SharedDownload]] = {}

    def board(self, key: Hashable, passenger: SharedDownload) -> bool:
        """True: lead. False: wait to be told."""
        with self._lock:
            waiting = self._passengers.get(key)
            if waiting is None:
                self._passengers[key] = []
                return True
            waiting.append(passenger)
            return False

    def leave(self, key: Hashable, passenger: SharedDownload) -> None:
        """Wait no longer."""
        with self._lock:
            if passenger in (waiting := self._passengers.get(key, [])):
                waiting.remove(passenger)

    def waiting(self, key: Hashable) -> list[SharedDownload]:
        with self._lock:
            return list(self._passengers.get(key, ()))

    def land(self, key: Hashable) -> list[SharedDownload]:
        """It is over; returns who has waited."""
        with self._lock:
            return self._passengers.pop(key)


class SharedDownload:
    """As :class:`~wan2gp.handlers.download.Download`: :meth:`run` once, :meth:`cancel` at any time."""

    def __init__(
        self,
        source: Source,
        directory: Path,
        flights: Flights,
        make: Callable[[Callable[[int, int | None], None]], Download],
        progress: Callable[[int, int | None], None],
        signed: Signed | None = None,
    ) -> None:
        """``make(progress)`` gives the download of ``source`` into ``directory``, should this one lead."""
        self._source = source
        self._signed = signed
        self._location: Location | None = None
        self._directory = directory
        self._flights = flights
        self._progress = progress
        self._download = make(self._tell)
        self._told = threading.Event()
        self._cancelled = threading.Event()
        self._got: Downloaded | TaskFailure | None = None
        self._key: Hashable = None

    def cancel(self) -> None:
        """End it at once: :meth:`run` raises :class:`Interrupted`."""
        self._cancelled.set()
        self._download.cancel()
        self._told.set()

    def run(self) -> Downloaded:
        """Fetch, check and store. Raises :class:`TaskFailure` or :class:`Interrupted`."""
        began = time.monotonic()
        self._location = locate(self._source, self._signed)
        self._key = (self._location.identity, self._source.kind)
        while True:
            self._told.clear()  # before the look at the flag, which is set first: no cancellation is slept through
            if self._cancelled.is_set():
                raise Interrupted
            if self._flights.board(self._key, self):
                return self._lead()
            self._told.wait()
            self._flights.leave(self._key, self)
            if isinstance(self._got, TaskFailure):
                raise self._got
            if self._got is not None:
                return replace(self._got, seconds=time.monotonic() - began)

    def _lead(self) -> Downloaded:
        got: Downloaded | TaskFailure | None = None
        try:
            got = self._download.run()
            return got
        except TaskFailure as failure:
            got = failure
            raise
        finally:
            for passenger in self._flights.land(self._key):
                passenger.told(got)

    def _tell(self, done: int, total: int | None) -> None:
        for each in (self, *self._flights.waiting(self._key)):
            each._progress(done, total)

    def told(self, got: Downloaded | TaskFailure | None) -> None:
        """The leader's end, in its thread. None: it was cancelled, or failed by a defect; somebody else may lead."""
        if isinstance(got, Downloaded) and not self._cancelled.is_set():
            try:
                self._got = self._shared(got)
            except OSError:
                self._got = None  # a full disk, or a directory that is gone: found again, and said, by its own try
        elif isinstance(got, TaskFailure):
            self._got = TaskFailure(got.code, got.message, retryable=got.retryable, detail=got.detail)
        self._told.set()

    def _shared(self, got: Downloaded) -> Downloaded:
        draft = self._directory / f".{got.path.name}.{id(self):x}.part"
        try:
            try:
                os.link(got.path, draft)
            except OSError:
                shutil.copyfile(got.path, draft)
            assert self._location is not None  # it waits since it knows what for
            stem, extension = input_name(self._location.file_name, got.found)
            return replace(got, path=place(draft, self._directory, stem, extension), shared=True)
        finally:
            draft.unlink(missing_ok=True)
