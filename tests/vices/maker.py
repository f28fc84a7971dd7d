"""Makes the text files that `params` ask for: {"files": {name: text}}; each text "times" over, after "seconds"."""

from __future__ import annotations

import hashlib
import time

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Artifact, Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        time.sleep(job.params.get("seconds", 0))
        made = []
        for number, (name, text) in enumerate(job.params["files"].items()):
            data = text.encode() * job.params.get("times", 1)
            path = f"out{number}"
            (job.work_dir / path).write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            made.append(Artifact(path, name, "text", "text/plain", len(data), digest, node_id=str(number)))
        return Succeeded(tuple(made), warnings=("made on purpose",), engine={"name": "maker"})
