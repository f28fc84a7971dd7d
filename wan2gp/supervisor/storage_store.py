"""Publishing into a bucket of Supabase Storage, or by PUT to a URL that the task gave.

A file is uploaded before the fence, so its path names the attempt and the lease: nobody else ever writes there, a
repeat writes the same bytes, and what a refused end has published is deleted again.
"""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

from wan2gp.supervisor.publish import PublishFailed, Staged, Store, primary
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
        node = f"{safe_name(node_id)}_" if node_id else ""
        path = ""
        for middle in ("", node, f"{node}{len(taken)}_"):
            path = self.path(ending, f"{middle}{safe_name(name)}")
            if path not in taken:
                break
        return path

    def path(self, ending: Ending, filename: str) -> str:
        """Where in the bucket a file of this attempt belongs."""
        template = self._template or (PREDECESSORS if ending.user_id else OURS)
        path = template.format(
            task_id=ending.task_id,
            attempt=ending.attempt,
            lease=ending.lease_id[:LEASE_CHARACTERS],
            filename=filename,
            task_type=safe_name(ending.task_type),
            user_id=ending.user_id or "nobody",
            project_id=ending.project_id or "none",
            worker=safe_name(self._worker),
        )
        return NO_KEY.sub("_", path)

    def upload(self, ending: Ending, staged: Sequence[Staged], stop: threading.Event) -> list[Staged]:
        """All files of one ending, side by side; the first failure is raised once none is under way any more."""
        over = Either(stop)
        running = [self._pool.submit(self._send, item, over) for item in staged]
        settle_all(running, over)
        return [future.result() for future in running]

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


def settle_all(running: Sequence[Future[Staged]], over: threading.Event) -> None:
    """Wait for all; after a failure the others are told to stop."""
    wait(running, return_when=FIRST_EXCEPTION)
    if any(future.done() and future.exception() is not None for future in running):
        over.set()
        for future in running:
            future.cancel()
        wait([future for future in running if not future.cancelled()])
        errors = [error for future in running if not future.cancelled() and (error := future.exception())]
        raise min(errors, key=_told_to_stop)


def _told_to_stop(error: BaseException) -> bool:
    """True for an upload that ended for another one's sake: the reason is what that other one met."""
    return isinstance(error, PublishFailed) and error.code == "worker.stopping"


class DirectStore:
    """Another store, except that the primary artifact goes to the URL that its task gave, if it gave one."""

    def __init__(self, inner: Store, put: Callable[[str, Path, str, threading.Event], None]) -> None:
        """``put(url, file, mime, stop)`` sends one file; it raises
        :class:`~wan2gp.supervisor.publish.PublishFailed`."""
        self._inner = inner
        self._put = put

    def stage(self, ending: Ending, folder: Path) -> list[Staged]:
        """See :class:`~wan2gp.supervisor.publish.Store`."""
        return self._inner.stage(ending, folder)

    def upload(self, ending: Ending, staged: Sequence[Staged], stop: threading.Event) -> list[Staged]:
        """The one file first: its URL is of the task's own making, and may be no good."""
        main = primary(staged) if ending.put_url else None
        if main is None or ending.put_url is None:
            return self._inner.upload(ending, staged, stop)
        self._put(ending.put_url, main.path, main.artifact.mime, stop)
        sent = dataclasses.replace(main, url=ending.put_url.partition("?")[0], storage_path=None)
        others = self._inner.upload(ending, [item for item in staged if item is not main], stop)
        return [sent, *others]

    def commit(self, ending: Ending, staged: Sequence[Staged]) -> None:
        """See :class:`~wan2gp.supervisor.publish.Store`."""
        self._inner.commit(ending, staged)

    def withdraw(self, ending: Ending, staged: Sequence[Staged]) -> None:
        """What was PUT cannot be taken back: a signed URL allows only that."""
        self._inner.withdraw(ending, staged)
