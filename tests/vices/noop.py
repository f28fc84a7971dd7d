"""Does nothing, well."""

from __future__ import annotations

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        return Succeeded(())
