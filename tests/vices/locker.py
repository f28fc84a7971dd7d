"""Keeps the interpreter's lock for `params["seconds"]`: not even its I/O thread runs meanwhile."""

from __future__ import annotations

import ctypes

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        job.progress(0.5)
        ctypes.PyDLL(None).usleep(int(float(job.params["seconds"]) * 1_000_000))
        return Succeeded(())
