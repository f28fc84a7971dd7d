"""One connection to the supervisor: a socket that never blocks, what waits to be sent, what was paid for."""

from __future__ import annotations

import contextlib
import select
import socket
import struct

from wan2gp.supervisor.zmtp import Session

READ_BYTES = 256 * 1024
_UCRED = struct.Struct("3i")


class Connection:
    """Owns its socket. ``closed`` is True once nothing can come from it any more."""

    def __init__(self, own: socket.socket, session: Session, queue_bytes: int, now: float) -> None:
        """``queue_bytes``: how much may wait for a peer that does not read."""
        own.setblocking(False)
        self._socket = own
        self._queue_bytes = queue_bytes
        self.session = session
        self.opened_at = now
        self.ended = False
        """The peer has closed it; what it had said before is still to be heard."""
        self.closed = False
        self._out = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wishes(self) -> int:
        """The events of ``epoll(7)`` to wait for."""
        return select.EPOLLIN | (select.EPOLLOUT if self.unsent else 0)

    @property
    def unsent(self) -> bool:
        """Whether something waits until the peer reads."""
        return bool(self._out or self.session.answer)

    def read(self) -> None:
        """Take what has come, at most one read of it."""
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # it was reset
            data = b""
        self.ended = not data
        self.session.feed(data)

    def queue(self, data: bytes) -> bool:
        """Send it now, or as the peer reads. False when too much waits already."""
        if self._out and len(self._out) + len(data) > self._queue_bytes:
            return False
        self._put_answer()
        self._out += data
        self.flush()
        return True

    def flush(self) -> None:
        """Send what the kernel takes."""
        # Of a connection that is broken the end is read, behind the peer's last words.
        with contextlib.suppress(OSError):
            while self.unsent:
                self._put_answer()
                del self._out[: self._socket.send(self._out)]

    def _put_answer(self) -> None:
        """Behind all that waits already, so that a session knows how much its peer leaves unread."""
        if not self._out:
            self._out += self.session.answer
            self.session.answer.clear()

    def close(self) -> None:
        """Give the descriptor back."""
        self.closed = True
        self._socket.close()


def peer_pid(own: socket.socket) -> int:
    """The process that connected, by the kernel's word; 0 when it is in none of our pid namespaces. See unix(7)."""
    pid, _, _ = _UCRED.unpack(own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(pid)
