"""Names a file outside its directory, or a name that climbs."""

from __future__ import annotations

import hashlib

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Artifact, Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        (job.work_dir / "x").write_bytes(b"abc")
        path, name = job.params.get("path", "x"), job.params.get("name", "x")
        return Succeeded((Artifact(path, name, "file", "x/x", 3, hashlib.sha256(b"abc").hexdigest()),))
