"""A file on its way to somewhere else: read in pieces, and never passed on when somebody changes it meanwhile."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from wan2gp.supervisor.publish import PublishFailed

PIECE_BYTES = 128 * 1024
_MIME = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}")
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class UploadFile:
    """Open from ``with`` to its end. Raises :class:`PublishFailed` (``publish.file_changed``, ``worker.stopping``)."""

    def __init__(self, path: Path, stop: threading.Event) -> None:
        self._path = path
        self._stop = stop
        try:
            self._descriptor = os.open(path, _OPEN)
        except FileNotFoundError:
            raise changed(path, "it is gone") from None
        self._found = os.fstat(self._descriptor)

    def __enter__(self) -> UploadFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._found.st_size

    @property
    def state(self) -> tuple[int, int, int]:
        """Differs for another file, and for the same one after a change."""
        return self._found.st_ino, self._found.st_size, self._found.st_mtime_ns

    def pieces(self, first: int, count: int) -> Iterator[bytes]:
        """``count`` bytes from the offset ``first``; the last piece only if the file is what it was."""
        end = first + count
        while first < end:
            check_stop(self._stop)
            piece = os.pread(self._descriptor, min(PIECE_BYTES, end - first), first)
            first += len(piece)
            if not piece or (first == end and not self._same()):
                raise changed(self._path, f"it had {self.size} bytes when the upload began")
            yield piece

    def _same(self) -> bool:
        now = os.fstat(self._descriptor)
        return (now.st_ino, now.st_size, now.st_mtime_ns) == self.state


def changed(path: Path, how: str) -> PublishFailed:
    """Permanent: what is there now is not what was checked."""
    return PublishFailed(
        "publish.file_changed",
        f"cannot send {path.name}: somebody changed the file in the spool: {how}",
        permanent=True,
    )


def plain_mime(mime: str) -> str:
    """The type as it may stand in a header; what a handler said of a file is not trusted to be one."""
    return mime if _MIME.fullmatch(mime) else "application/octet-stream"


def check_stop(stop: threading.Event) -> None:
    """Raises :class:`PublishFailed` (``worker.stopping``) once the worker stops."""
    if stop.is_set():
        raise stopped()


def stopped() -> PublishFailed:
    return PublishFailed("worker.stopping", "the worker stops: its next life sends the file", permanent=False)
