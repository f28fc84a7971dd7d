"""The picture of what a run makes so far, as a file that others may look at while it is replaced."""

from __future__ import annotations

import os

from wan2gp.comfy_sidecar.prompt_progress import Preview
from wan2gp.handlers.api import Job

EVERY_S = 1.0
"""Between two writes of the file, seconds at least."""
STEM = "preview"


class PreviewFile:
    """Keeps the latest picture in the task's work directory; whoever reads it always finds a whole one."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._written: Preview | None = None
        self._next_s = 0.0

    def keep(self, preview: Preview | None, now_s: float) -> str | None:
        """The name of the file, or None while there is no picture. Writes when there is a new one and it is time."""
        if preview is not None and now_s >= self._next_s and not self._is(preview):
            self._write(preview)
            self._written, self._next_s = preview, now_s + EVERY_S
        return None if self._written is None else STEM + self._written.suffix

    def _is(self, preview: Preview) -> bool:
        return self._written is not None and self._written.number == preview.number

    def _write(self, preview: Preview) -> None:
        part = self._job.work_dir / f".{STEM}.part"
        part.write_bytes(preview.image)
        os.replace(part, self._job.work_dir / f"{STEM}{preview.suffix}")
        if self._written is not None and self._written.suffix != preview.suffix:
            (self._job.work_dir / f"{STEM}{self._written.suffix}").unlink(missing_ok=True)
