"""An honest handler beside the hostile one: it has secrets of its task and of its own, and works until it is told."""

from __future__ import annotations

import os
import time

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Cancelled, Outcome

SECRET = "a stranger's holiday"


class Victim(Handler):
    def run(self, job: Job) -> Outcome:
        (job.work_dir / "out").write_text(SECRET)
        (self.context.home / "kept").write_text(f"{SECRET} {os.getpid()}")
        while not job.cancelled():
            job.progress(0.5)
            time.sleep(0.02)
        return Cancelled()
