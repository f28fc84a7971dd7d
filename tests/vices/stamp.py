"""Says when it got its task: seconds of CLOCK_REALTIME."""

from __future__ import annotations

import time

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        return Succeeded((), data={"at": time.time()})
