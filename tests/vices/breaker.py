"""Breaks the GPU: always with `params["poison"]`, else as often as the file `breaks` in the data directory says."""

from __future__ import annotations

import os
from pathlib import Path

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        file = Path(self.context.settings["data_dir"]) / "breaks"
        left = int(file.read_text()) if file.exists() else 0
        if left > 0:
            file.write_text(str(left - 1))
        if left > 0 or job.params.get("poison"):
            raise RuntimeError(f"CUDA error: an illegal memory access was encountered (pid {os.getpid()})")
        return Succeeded((), data={"pid": os.getpid()})
