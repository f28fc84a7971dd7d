"""Dies under its task: `params["how"]` is a signal's number or an exit status; only on the first `times` attempts."""

from __future__ import annotations

import os
import sys

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        if job.attempt > int(job.params.get("times", 1)):
            return Succeeded(())
        sys.stderr.write("last words of the crasher\n")
        sys.stderr.flush()
        if "signal" in job.params:
            os.kill(os.getpid(), job.params["signal"])
        os._exit(job.params.get("exit", 9))
