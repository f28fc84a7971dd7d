"""Ends at every start, with last words, until the file `engine-works` lies in the worker's data directory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Outcome, Succeeded


class Vice(Handler):
    def load(self) -> None:
        if not (Path(self.context.settings["data_dir"]) / "engine-works").exists():
            sys.stderr.write("no libcuda on this machine\n")
            sys.stderr.flush()
            os._exit(3)

    def run(self, job: Job) -> Outcome:
        return Succeeded(())
