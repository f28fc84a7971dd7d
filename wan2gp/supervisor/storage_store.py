"""Publishing into a bucket of Supabase Storage.

A file is uploaded before the fence, so its path names the attempt and the lease: nobody else ever writes there, a
repeat writes the same bytes, and what a refused end has published is deleted again.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

from wan2gp.supervisor.publish import PublishFailed, Staged
from wan2gp.supervisor.spool import Ending
from wan2gp.supervisor.staging import check, places, safe_name, take

OURS = "{task_id}/{attempt}-{lease}/{filename}"
PREDECESSORS = "{user_id}/tasks/{task_id}/{attempt}-{lease}/{filename}"
"""Its app lets users read below their own id."""
NO_KEY = re.compile(r"[^\w/!\-.*'() &$@=;:+,]", re.ASCII)
"""What Storage takes in no object's key: letters outside ASCII among them."""
LEASE_CHARACTERS = 8
FILE_MODE = 0o600


class RemoteBucket(Protocol):
    """What :class:`wan2gp.supervisor.storage.Bucket` does for publishing."""

    def put(self, path: str, file: Path, mime: str, *, stop: threading.Event) -> None: ...

    def remove(self, paths: Sequence[str]) -> None: ...

    def url(self, path: str, signed_s: float | None) -> str: ...


class StorageStore:
    """Publishes into one bucket, several files at once."""

    def __init__(
        self, bucket: RemoteBucket, worker: str, *, template: str = "", signed_s: float | None = None, uploads: int = 3
    ) -> None:
        """``template``: of an object's path, see :data:`wan2gp.config_options.PATH_FIELDS`; empty: ours, or the
        predecessor's for rows that have a user. ``signed_s``: how long the URLs hold, seconds; None: public ones."""
        self._bucket = bucket
        self._worker = worker
        self._template = template
        self._signed_s = signed_s
        self._pool = ThreadPoolExecutor(uploads, thread_name_prefix="upload")

    def stage(self, ending: Ending, folder: Path) -> list[Staged]:
        """See :class:`~wan2gp.supervisor.publish.Store`."""
        staged: list[Staged] = []
        for artifact, path in zip(ending.artifacts, places(ending, folder), strict=True):
            take(ending, artifact, path)
            check(path, artifact, FILE_MODE)
            name = self._name(artifact.name, artifact.node_id, [item.storage_path for item in staged], ending)
            staged.append(Staged(artifact, path, storage_path=name))
        return staged

    def _name(self, name: str, node_id: str | None, taken: Sequence[str | None], ending: Ending) -> str:
        """A path of its own for each file, and the same one whenever the same ending is staged."""
        return untaken(taken, node_id, lambda middle: self.path(ending, f"{middle}{safe_name(name)}"))

    def path(self, ending: Ending, filename: str) -> str:
        """Where in the bucket a file of this attempt belongs."""
        template = self._template or (PREDECESSORS if ending.user_id else OURS)
        path = template.format(
            task_id=ending.task_id,
            attempt=ending.attempt,
            lease=ending.lease_id[:LEASE_CHARACTERS],
            filename=filename,
            task_type=safe_name(ending.task_type),
            user_id=safe_name(ending.user_id or "nobody"),
            project_id=safe_name(ending.project_id or "none"),
            worker=safe_name(self._worker),
        )
        return NO_KEY.sub("_", path)

    def upload(
        self,
        ending: Ending,
        staged: Sequence[Staged],
        stop: threading.Event,
        sent: Callable[[Staged], None] = lambda item: None,
    ) -> list[Staged]:
        """All files of one ending, side by side; the first failure is raised once none is under way any more."""
        over = Either(stop)
        running = {item.path: self._pool.submit(self._send, item, over) for item in staged if item.url is None}
        settle_all(list(running.values()), over, sent)
        return [running[item.path].result() if item.path in running else item for item in staged]

    def _send(self, item: Staged, stop: threading.Event) -> Staged:
        assert item.storage_path is not None
        self._bucket.put(item.storage_path, item.path, item.artifact.mime, stop=stop)
        return dataclasses.replace(item, url=self._bucket.url(item.storage_path, self._signed_s))

    def commit(self, ending: Ending, staged: Sequence[Staged]) -> None:
        """It is public already."""

    def withdraw(self, ending: Ending, staged: Sequence[Staged]) -> None:
        """Delete what may have been sent."""
        paths = [item.storage_path for item in staged if item.storage_path is not None]
        if paths:
            self._bucket.remove(paths)


def untaken(taken: Sequence[str | None], node_id: str | None, named: Callable[[str], str]) -> str:
    """The first of ``named("")``, with the node's id, and with a number more, that is not in ``taken``."""
    node = f"{safe_name(node_id)}_" if node_id else ""
    numbered = (f"{node}{number}_" for number in itertools.count(len(taken)))
    return next(name for middle in itertools.chain(("", node), numbered) if (name := named(middle)) not in taken)


class Either(threading.Event):
    """Set when it is set itself, or the event that it stands for."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """In small steps: two events cannot be waited for at once."""
        left = timeout
        while not self.is_set() and (left is None or left > 0):
            step = 0.25 if left is None else min(0.25, left)
            super().wait(step)
            left = None if left is None else left - step
        return self.is_set()


def settle_all(
    running: Sequence[Future[Staged]], over: threading.Event, sent: Callable[[Staged], None] = lambda item: None
) -> None:
    """Wait for all; ``sent`` hears of each that succeeds, in this thread. After a failure the others are told to
    stop, and the failure that was the reason is raised."""
    errors: list[BaseException] = []
    left = set(running)
    while left:
        done, left = wait(left, return_when=FIRST_COMPLETED)
        for future in done:
            error = future.exception()
            if error is None:
                sent(future.result())
            else:
                errors.append(error)
        if errors:
            over.set()
            left = {future for future in left if not future.cancel()}
    if errors:
        raise min(errors, key=_told_to_stop)


def _told_to_stop(error: BaseException) -> bool:
    """True for an upload that ended for another one's sake: the reason is what that other one met."""
    return isinstance(error, PublishFailed) and error.code == "worker.stopping"
