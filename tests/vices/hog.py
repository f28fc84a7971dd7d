"""Takes `params["mib"]` of memory in steps, touching every page while it says how far it is, and holds it for
`params["hold_s"]`. With `params["keep"]` it still has it after the task. `params["gpu"]` is a file of the stand-in for
the GPU's driver: there it claims `params["gpu_mib"]` for its process."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Cancelled, Outcome, Succeeded

STEP_MIB = 16
MIB = 1024 * 1024


class Vice(Handler):
    kept: list[mmap.mmap] = []

    def run(self, job: Job) -> Outcome:
        wanted = int(job.params["mib"])
        held = self.kept if job.params.get("keep") else []
        for taken in range(0, wanted, STEP_MIB):
            block = mmap.mmap(-1, STEP_MIB * MIB)
            for page in range(0, STEP_MIB * MIB, mmap.PAGESIZE):
                block[page] = 1
            held.append(block)
            job.progress(taken / wanted, detail=f"{taken} MiB")
        if "gpu" in job.params:
            with Path(job.params["gpu"]).open("a") as file:
                file.write(f"{os.getpid()} {job.params['gpu_mib'] * MIB}\n")
        ends = time.monotonic() + float(job.params.get("hold_s", 0))
        while time.monotonic() < ends:
            if job.cancelled():
                return Cancelled()
            job.progress(None)
            time.sleep(0.05)
        if not job.params.get("keep"):
            for block in held:
                block.close()
        return Succeeded((), data={"pid": os.getpid()})
