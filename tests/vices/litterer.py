"""Leaves processes behind (see `tests.litter`) and writes their pids to `params["pids"]`. On its first attempt it then
stays, if `params["stay"]`, and hears nothing; with `params["phase"]` it says that it is in that one."""

from __future__ import annotations

import time

from tests.litter import leave
from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        leave(job.params["pids"])
        if "phase" in job.params:
            job.progress(0.1, job.params["phase"])
        if job.attempt == 1 and job.params.get("stay"):
            time.sleep(600)
        return Succeeded(())
