"""Starts well, and finds out in a task that its engine does not, until `engine-works` lies in the data directory."""

from __future__ import annotations

from pathlib import Path

from wan2gp.handlers.api import Handler, Job, TaskFailure
from wan2gp.protocol import Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        if not (Path(self.context.settings["data_dir"]) / "engine-works").exists():
            raise TaskFailure("comfy.start_failed", "the engine's port is closed: as planned", engine_down=True)
        return Succeeded(())
