"""Its engine starts only once the file `engine-works` lies in the worker's data directory."""

from __future__ import annotations

from pathlib import Path

from wan2gp.handlers.api import Handler, Job, TaskFailure
from wan2gp.protocol import Outcome, Succeeded


class Vice(Handler):
    def warm(self) -> None:
        if not (Path(self.context.settings["data_dir"]) / "engine-works").exists():
            raise TaskFailure("comfy.start_failed", "ComfyUI startup failed: as planned", engine_down=True)

    def run(self, job: Job) -> Outcome:
        self.warm()
        return Succeeded(())
