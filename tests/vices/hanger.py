"""Its I/O thread beats, its work stands still: on the first `times` attempts."""

from __future__ import annotations

import threading

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        job.progress(0.1, "step")
        if job.attempt > int(job.params.get("times", 1)):
            return Succeeded(())
        threading.Event().wait()
        raise AssertionError("waits for ever")
