"""Goes round its link and speaks to the supervisor's socket itself; `params["how"]` chooses."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import time
from pathlib import Path

from tests.raw_zmtp import GREETING, MORE, connect, frame, join, ready
from wan2gp.handlers.api import Handler, Job
from wan2gp.handlers.link import Link
from wan2gp.protocol import Beat, Finished, Outcome, Progress, Succeeded, encode


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        link = next(thing for thing in gc.get_objects() if isinstance(thing, Link))
        if job.attempt == 1 or job.params["how"] == "chatter":
            with contextlib.suppress(OSError):
                getattr(self, f"_{job.params['how']}")(link, job)
        return Succeeded((), data={"how": job.params["how"]})

    def _connections(self, link: Link, job: Job) -> None:
        """More than the supervisor has descriptors for."""
        held: list[socket.socket] = []
        for _ in range(job.params["count"]):
            held.append(connect(link._endpoint))
        time.sleep(60)

    def _control(self, link: Link, job: Job) -> None:
        """The same of the operator's socket, one after the other."""
        for _ in range(job.params["count"]):
            with contextlib.suppress(OSError):
                connect(_control_of(link)).close()

    def _control_endless(self, link: Link, job: Job) -> None:
        own = connect(_control_of(link))
        own.sendall(GREETING + ready(b""))
        for _ in range(job.params["times"]):
            own.sendall(frame(b"xx", MORE) * 10_000)

    def _endless(self, link: Link, job: Job) -> None:
        """A message whose last part never comes; small parts, since each costs its reader the same."""
        own = _socket_of(link)
        parts = frame(b"xx", MORE) * 10_000
        for _ in range(job.params["times"]):
            own.sendall(parts)
        time.sleep(60)

    def _forged(self, link: Link, job: Job) -> None:
        """An end of somebody else's task, under somebody else's name."""
        own = join(link._endpoint, job.params["identity"].encode())
        own.sendall(frame(encode(Finished(job.params["task"], job.params["lease"], Succeeded(())))))
        time.sleep(60)

    def _chatter(self, link: Link, job: Job) -> None:
        """Far more than may be said at once, all of it lawful."""
        for number in range(job.params["count"]):
            link.send(Progress(job.task_id, job.lease_id, number / job.params["count"], "step"))

    def _garbage(self, link: Link, job: Job) -> None:
        own = connect(link._endpoint)
        own.sendall(bytes(range(256)) * 100)
        time.sleep(60)

    def _second(self, link: Link, job: Job) -> None:
        """Its own name twice: the second is turned away, and the first goes on."""
        own = join(link._endpoint, link._identity)
        own.sendall(frame(encode(Beat())) * 10)
        while own.recv(4096):
            pass


def _control_of(link: Link) -> str:
    return str(Path(link._endpoint.removeprefix("ipc://")).with_name("control"))


def _socket_of(link: Link) -> socket.socket:
    """The one that the link speaks by."""
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            own = socket.socket(fileno=os.dup(int(number)))
            if own.getpeername() == link._endpoint.removeprefix("ipc://"):
                own.setblocking(True)
                return own
    raise AssertionError("the link has no socket")
