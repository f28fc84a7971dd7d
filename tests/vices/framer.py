"""Says that `params["pid"]` is its engine's process."""

from __future__ import annotations

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        self.context.engine_state("ready", pid=job.params["pid"], port=1)
        return Succeeded(())
