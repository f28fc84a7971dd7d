"""Its artifact is a link (or lies behind one) to somebody else's file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Artifact, Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        prey = Path(job.params["prey"])
        data = prey.read_bytes()
        if job.params["how"] == "folder":
            (job.work_dir / "sub").symlink_to(prey.parent)
            path = f"sub/{prey.name}"
        else:
            (os.link if job.params["how"] == "hard" else os.symlink)(prey, job.work_dir / "x")
            path = "x"
        return Succeeded((Artifact(path, "x", "file", "x/x", len(data), hashlib.sha256(data).hexdigest()),))
