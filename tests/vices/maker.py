"""Makes the text files that `params` ask for: {"files": {name: text}}."""

from __future__ import annotations

import hashlib

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Artifact, Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        made = []
        for number, (name, text) in enumerate(job.params["files"].items()):
            data = text.encode()
            path = f"out{number}"
            (job.work_dir / path).write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            made.append(Artifact(path, name, "text", "text/plain", len(data), digest, node_id=str(number)))
        return Succeeded(tuple(made), warnings=("made on purpose",), engine={"name": "maker"})
