"""Stops as a whole, its I/O thread too: on the first `times` attempts."""

from __future__ import annotations

import os
import signal

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        if job.attempt <= int(job.params.get("times", 1)):
            os.kill(os.getpid(), signal.SIGSTOP)
        return Succeeded(())
