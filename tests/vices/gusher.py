"""Writes `params["mib"]` MiB in files of one below its home, then stays for `params["hold_s"]`.
`params["how"]`: `files`, `nameless` ones that are open and have no name, or `deep` directories."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Cancelled, Outcome, Succeeded

MIB = 1024 * 1024


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        place = Path(tempfile.mkdtemp(dir=self.context.home))
        how, kept = job.params.get("how", "files"), []
        if how == "deep":
            os.chdir(place)
            for _ in range(int(job.params["mib"])):
                os.mkdir("d")
                os.chdir("d")
            os.chdir("/")
        for number in range(0 if how == "deep" else int(job.params["mib"])):
            with (place / str(number)).open("wb") as file:
                file.write(os.urandom(MIB))
                if how == "nameless":
                    kept.append(os.dup(file.fileno()))
            if how == "nameless":
                (place / str(number)).unlink()
        ends = time.monotonic() + float(job.params.get("hold_s", 0))
        while time.monotonic() < ends:
            if job.cancelled():
                return Cancelled()
            job.progress(None)
            time.sleep(0.05)
        for descriptor in kept:
            os.close(descriptor)
        return Succeeded((), data={"pid": os.getpid(), "place": str(place)})
