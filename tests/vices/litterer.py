"""Leaves processes behind: a child, one in its own session, and one whose parent is gone; writes down their pids."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Outcome, Succeeded

DOUBLE = """
import subprocess
print(subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL).pid, flush=True)
"""


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        plain = subprocess.Popen(["sleep", "600"])
        session = subprocess.Popen(["sleep", "600"], start_new_session=True)
        orphan = subprocess.run(["python3", "-c", DOUBLE], stdout=subprocess.PIPE, check=True)
        pids = [os.getpid(), plain.pid, session.pid, int(orphan.stdout)]
        fresh = Path(job.params["pids"] + ".tmp")
        fresh.write_text(json.dumps(pids))
        fresh.rename(job.params["pids"])
        if job.attempt == 1 and job.params.get("stay"):
            time.sleep(600)
        return Succeeded(())
