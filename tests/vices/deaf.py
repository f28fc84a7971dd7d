"""Hears no cancellation, no SIGTERM and no request to leave."""

from __future__ import annotations

import signal
import time

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end = time.monotonic() + float(job.params["seconds"])
        while time.monotonic() < end:
            job.progress(0.5)
            time.sleep(0.05)
        return Succeeded(())
