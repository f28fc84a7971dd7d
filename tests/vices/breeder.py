"""Starts `params["processes"]` processes that last, each in a session of its own, and goes on when it gets no more.
Then it stays for `params["hold_s"]`. With `params["fork"]` each of them and of theirs does the same, up to a number
at which the machine is still well."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import time

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Cancelled, Outcome, Succeeded

MOST = 1000
"""If nothing stops them."""


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        begun = refused = 0
        board = mmap.mmap(-1, MOST)
        for _ in range(int(job.params["processes"])):
            try:
                if os.fork() == 0:
                    _last(board if job.params.get("fork") else None)
                begun += 1
            except OSError:
                refused += 1
        ends = time.monotonic() + float(job.params.get("hold_s", 60))
        while time.monotonic() < ends:
            if job.cancelled():
                return Cancelled()
            job.progress(None, detail=f"{begun} begun, {refused} refused")
            time.sleep(0.05)
        return Succeeded((), data={"begun": begun, "refused": refused})


def _last(board: mmap.mmap | None) -> None:
    """In the child. Each attempt to breed leaves a mark on the board that all of them share."""
    os.setsid()
    ends = time.monotonic() + 60
    for place in itertools.cycle(range(MOST)):
        if time.monotonic() > ends:
            os._exit(0)
        if board is not None and board[place] == 0:
            board[place] = 1
            with contextlib.suppress(OSError):
                os.fork()
        else:
            time.sleep(0.02 if board is None or 0 not in board[:] else 0)
