"""One child's connection to the supervisor: a socket that never blocks, what waits to be sent, what was paid for."""

from __future__ import annotations

import contextlib
import select
import socket
import struct

from wan2gp.protocol import MAX_MESSAGE_BYTES
from wan2gp.supervisor.zmtp import Session

READ_BYTES = 256 * 1024
QUEUE_BYTES = 2 * MAX_MESSAGE_BYTES
"""How much may wait for a peer that does not read, bytes."""
_UCRED = struct.Struct("3i")


class Connection:
    """Owns its socket. ``closed`` is True once nothing can come from it any more."""

    def __init__(self, own: socket.socket, now: float) -> None:
        own.setblocking(False)
        self._socket = own
        self.session = Session(MAX_MESSAGE_BYTES)
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
        return select.EPOLLIN | (select.EPOLLOUT if self._out else 0)

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
        if self._out and len(self._out) + len(data) > QUEUE_BYTES:
            return False
        self._out += data
        self.flush()
        return True

    def flush(self) -> None:
        """Send what the kernel takes."""
        answer = self.session.answer
        if answer:
            self._out += answer  # no message is queued before it
            answer.clear()
        # Of a connection that is broken the end is read, behind the peer's last words.
        with contextlib.suppress(OSError):
            while self._out:
                del self._out[: self._socket.send(self._out)]

    def close(self) -> None:
        """Give the descriptor back."""
        self.closed = True
        self._socket.close()


def peer_pid(own: socket.socket) -> int:
    """The process that connected, by the kernel's word; 0 when it is in none of our pid namespaces. See unix(7)."""
    pid, _, _ = _UCRED.unpack(own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(pid)
