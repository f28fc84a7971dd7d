"""Works until it is cancelled, and writes the time of that (CLOCK_REALTIME, seconds) into `params["note"]`."""

from __future__ import annotations

import time
from pathlib import Path

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Cancelled, Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        if job.attempt > 1:
            return Succeeded(())
        while not job.cancelled():
            job.progress(0.5)
            time.sleep(0.01)
        Path(job.params["note"]).write_text(str(time.time()))
        return Cancelled()
