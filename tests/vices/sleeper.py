"""Sleeps `params["seconds"]`, says how far it is, and wakes when cancelled."""

from __future__ import annotations

import time

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Cancelled, Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        seconds, start = float(job.params["seconds"]), time.monotonic()
        while (passed := time.monotonic() - start) < seconds:
            if job.cancelled():
                return Cancelled()
            job.progress(passed / seconds, step=int(passed * 10), steps=int(seconds * 10))
            time.sleep(0.02)
        return Succeeded((), data={"slept_s": seconds})
