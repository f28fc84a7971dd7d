"""A handler that makes one large file: `params["bytes"]` of them."""

from __future__ import annotations

import hashlib
import os

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Artifact, Outcome, Succeeded

CHUNK = 1 << 20


class Bulky(Handler):
    def run(self, job: Job) -> Outcome:
        digest, left = hashlib.sha256(), int(job.params["bytes"])
        size = left
        with (job.work_dir / "large.bin").open("wb") as file:
            while left:
                piece = os.urandom(min(CHUNK, left))
                file.write(piece)
                digest.update(piece)
                left -= len(piece)
        made = Artifact("large.bin", "large.bin", "file", "application/octet-stream", size, digest.hexdigest())
        return Succeeded((made,))
