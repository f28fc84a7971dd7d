"""A listening socket of the supervisor that survives whoever connects to it, how often they may."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

BACKLOG = 64
ACCEPTS = 16
"""Connections taken in one go."""
BREATH_S = 0.005
"""Pause of a caller that can neither take a connection nor turn it away, seconds."""
_SHORT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listener:
    """Bound to a path of at most 107 bytes, which it takes over. Nobody but our user may connect."""

    def __init__(self, endpoint: str) -> None:
        """``endpoint``: ``ipc://`` and an absolute path. Raises :class:`OSError`."""
        self._path = Path(endpoint.removeprefix("ipc://"))
        self._path.unlink(missing_ok=True)  # of an earlier life: the data directory's lock is ours
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            self._socket.bind(str(self._path))
            self._path.chmod(0o600)
            self._socket.listen(BACKLOG)
            self._spare: int | None = _spare()
        except OSError:
            self._socket.close()
            raise
        self.lacked = 0
        """Connections that were turned away since there was no descriptor for them."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def open_to(self, group: int) -> None:
        """Let this group's members connect too: handlers that have a user of their own. Raises :class:`OSError`."""
        os.chown(self._path, -1, group)
        self._path.chmod(0o660)

    def accept(self) -> Iterator[socket.socket]:
        """Who has connected, at most a handful."""
        for _ in range(ACCEPTS):
            try:
                yield self._socket.accept()[0]
            except OSError as error:
                if error.errno in _SHORT_OF_DESCRIPTORS:
                    self._turn_one_away()
                return

    def close(self) -> None:
        """Unbind and close."""
        self._socket.close()
        if self._spare is not None:
            os.close(self._spare)
        self._path.unlink(missing_ok=True)

    def _turn_one_away(self) -> None:
        """There is no descriptor for a connection: one is kept back, to take it and close it."""
        self.lacked += 1
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
            with contextlib.suppress(OSError):
                self._socket.accept()[0].close()
        try:
            self._spare = _spare()
        except OSError:  # another thread was faster: who waits here is asked for at once again
            time.sleep(BREATH_S)


def _spare() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
