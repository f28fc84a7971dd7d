"""Claims a file whose bytes are others."""

from __future__ import annotations

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Artifact, Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        (job.work_dir / "x.txt").write_text("abc")
        return Succeeded((Artifact("x.txt", "x.txt", "text", "text/plain", 3, "0" * 64),))
