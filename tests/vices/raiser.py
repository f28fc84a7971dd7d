"""Raises what it is told to."""

from __future__ import annotations

from wan2gp.handlers.api import Handler, Job, TaskFailure
from wan2gp.protocol import Outcome


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        if "code" in job.params:
            raise TaskFailure(
                job.params["code"], job.params.get("message", "as asked"), retryable=job.params.get("retryable")
            )
        raise ZeroDivisionError("nobody foresaw this")
