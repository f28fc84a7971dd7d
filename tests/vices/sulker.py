"""Works on, whatever it is told, until the file `params["gate"]` is there; then it raises what it is told to."""

from __future__ import annotations

import time
from pathlib import Path

from tests.vices import raiser
from wan2gp.handlers.api import Job
from wan2gp.protocol import Outcome


class Vice(raiser.Vice):
    def run(self, job: Job) -> Outcome:
        while not Path(job.params["gate"]).exists():
            job.progress(0.5)
            time.sleep(0.01)
        return super().run(job)
