"""Runs out of memory on the first `params["times"]` runs of a task, after half a result; each is noted with its pid.

`params["then"] == "die"`: the run after those dies. `params["move"]`: each run moves its input away.
While the file `glutton-hold` lies in the data directory a start waits; when `die` is in it, it dies.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Artifact, Cancelled, Outcome, Source, Succeeded


class Vice(Handler):
    def load(self) -> None:
        hold = Path(self.context.settings["data_dir"]) / "glutton-hold"
        while hold.exists():
            if hold.read_text() == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.02)

    def run(self, job: Job) -> Outcome:
        params = job.params
        note = Path(self.context.settings["data_dir"]) / f"glutton-{job.task_id}"
        with note.open("a") as file:
            file.write(f"{os.getpid()} {job.work_dir}\n")
        text = self._input(job)
        left = sorted(path.name for path in job.work_dir.iterdir() if not path.name.startswith("in-"))
        (job.work_dir / "out").write_text(text)
        if len(note.read_text().splitlines()) <= int(params.get("times", 1)):
            raise RuntimeError("CUDA out of memory. Tried to allocate 80.00 GiB")
        if params.get("then") == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        end = time.monotonic() + float(params.get("seconds", 0))
        while time.monotonic() < end:
            job.progress(0.5)
            if job.cancelled():
                return Cancelled()
            time.sleep(0.02)
        data = text.encode()
        digest = hashlib.sha256(data).hexdigest()
        made = Artifact("out", "out.txt", "text", "text/plain", len(data), digest)
        return Succeeded((made,), data={"pid": os.getpid(), "found": left})

    def _input(self, job: Job) -> str:
        if "url" not in job.params:
            return "nothing"
        path = job.fetch({"a": Source(job.params["url"])})["a"]
        text = path.read_text()
        if job.params.get("move"):
            path.rename(job.work_dir / "moved")
        return text
