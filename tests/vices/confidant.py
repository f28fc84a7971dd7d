"""Tells everybody of the token that it was given, and shows what else it can see of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from wan2gp.handlers.api import Handler, Job, TaskFailure
from wan2gp.protocol import Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        token = self.context.secrets["confidant"].reveal()
        if job.params["how"] == "die":
            sys.stderr.write(f"cannot reach the API with {token}\n")
            sys.stderr.flush()
            os._exit(3)
        if job.params["how"] == "fail":
            raise TaskFailure("confidant.refused", f"401 for {token}", retryable=False, detail={"header": token})
        job.event("confidant", text=token)
        job.progress(0.5, detail=f"calling with {token}")
        places = (f"/proc/self/{name}" for name in ("environ", "cmdline"))
        seen = [path for path in places if token.encode() in Path(path).read_bytes()]
        data = {"seen": seen, "names": sorted(self.context.secrets), "token": token, "length": len(token)}
        return Succeeded((), data={**data, "shown": str(self.context.secrets["confidant"])})
