"""Publishing the primary artifact by PUT to a URL that the task gave, and everything else into another store.

Nobody can look whether something is behind such a URL, so what an earlier try did is remembered: where a host takes
nothing twice, its refusal of a repeat is the answer that was lost.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from wan2gp.supervisor.publish import PublishFailed, Staged, Store, primary
from wan2gp.supervisor.spool import Ending

REMEMBERED = 1000
"""Endings whose file may be where it belongs although no success is known."""
_REFUSED = "publish.put_refused"


class PutFailed(PublishFailed):
    """The other side, or the way to it, failed."""

    arrived = False
    """The file may be there nevertheless: the answer that says so was lost."""


class Put(Protocol):
    """Sends one file. Raises :class:`~wan2gp.supervisor.publish.PublishFailed`."""

    def __call__(self, url: str, file: Path, mime: str, stop: threading.Event, begun_before: bool) -> None:
        """``begun_before``: an earlier try may have succeeded, so "it exists already" is a success."""


class DirectStore:
    """Another store, except that the primary artifact goes to the URL that its task gave, if it gave one."""

    def __init__(self, inner: Store, put: Put) -> None:
        self._inner = inner
        self._put = put
        self._lock = threading.Lock()
        self._arrived: OrderedDict[str, None] = OrderedDict()

    def stage(self, ending: Ending, folder: Path) -> list[Staged]:
        """See :class:`~wan2gp.supervisor.publish.Store`."""
        return self._inner.stage(ending, folder)

    def upload(
        self,
        ending: Ending,
        staged: Sequence[Staged],
        stop: threading.Event,
        sent: Callable[[Staged], None] = lambda item: None,
    ) -> list[Staged]:
        """The one file first: its URL is of the task's own making, and may be no good."""
        told = _one_by_one(sent)
        main = primary(staged) if ending.put_url else None
        if main is None or ending.put_url is None:
            return self._inner.upload(ending, staged, stop, told)
        done = main if main.url is not None else self._send(ending, ending.put_url, main, stop)
        if done is not main:
            told(done)
        others = self._inner.upload(ending, [item for item in staged if item is not main], stop, told)
        return [done, *others]

    def _send(self, ending: Ending, url: str, main: Staged, stop: threading.Event) -> Staged:
        try:
            self._put(url, main.path, main.artifact.mime, stop, self._begun(ending))
        except PublishFailed as failure:
            if isinstance(failure, PutFailed) and failure.arrived:
                self._note(ending.key)
            raise
        self._note(ending.key)
        return dataclasses.replace(main, url=url.partition("?")[0], storage_path=None)

    def _begun(self, ending: Ending) -> bool:
        """What an earlier life did is not known, unless it was told no: then there is somebody else's file."""
        with self._lock:
            if ending.key in self._arrived:
                return True
        return ending.resumed and not (ending.withheld or "").startswith(_REFUSED)

    def _note(self, key: str) -> None:
        with self._lock:
            self._arrived[key] = None
            while len(self._arrived) > REMEMBERED:
                self._arrived.popitem(last=False)

    def commit(self, ending: Ending, staged: Sequence[Staged]) -> None:
        """See :class:`~wan2gp.supervisor.publish.Store`."""
        self._inner.commit(ending, staged)

    def withdraw(self, ending: Ending, staged: Sequence[Staged]) -> None:
        """What was PUT cannot be taken back: a signed URL allows only that."""
        self._inner.withdraw(ending, staged)


def _one_by_one(sent: Callable[[Staged], None]) -> Callable[[Staged], None]:
    """A store may tell of several files at once, from several threads."""
    lock = threading.Lock()

    def told(item: Staged) -> None:
        with lock:
            sent(item)

    return told
