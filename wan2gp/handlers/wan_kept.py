"""LoRAs and weights that are kept on this machine for all tasks: fetched when they are missing, locked while in use.

A file that nobody has locked may be removed to make room for another.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from wan2gp.handlers.api import Job, TaskFailure
from wan2gp.handlers.model_store import lock
from wan2gp.handlers.wan_loras import Lora
from wan2gp.model_places import LORA, WEIGHTS
from wan2gp.protocol import Source
from wan2gp.wan_sidecar.work import Want

TRIES = 3
FOLDER_WANTED = "it is a whole folder, which is not fetched: put it into the engine's directory for checkpoints"
NO_ADDRESS = "the engine does not say where it is to be had: put it into its directory for checkpoints"
PASSING = ("worker.disk_full", "input.unplaced")


class KeptFiles:
    """Of one task: what it has fetched stays where it is until :meth:`close`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._held = contextlib.ExitStack()
        self._count = 0

    def lora(self, lora: Lora) -> str:
        """What the engine is to be given. Raises :class:`TaskFailure`, or ``Interrupted``."""
        if not lora.is_url:
            return lora.source
        try:
            return str(self._fetched(lora.source, LORA))
        except TaskFailure as failure:
            where = f"`{lora.label}`" if lora.label else f"a LoRA of {self._job.task_type}"
            raise TaskFailure(
                failure.code, f"{where}: {failure.message}", retryable=failure.retryable, detail=failure.detail
            ) from failure

    def weights(self, want: Want) -> Path | str:
        """The file, or why there is none. Raises what may pass until the next attempt."""
        if want.file.endswith("/"):
            return FOLDER_WANTED
        if not want.url:
            return NO_ADDRESS
        try:
            return self._fetched(want.url, WEIGHTS)
        except TaskFailure as failure:
            if failure.retryable or failure.code in PASSING:
                raise
            return failure.message

    def _fetched(self, url: str, kind: str) -> Path:
        self._count += 1
        name = f"{kind}[{self._count}]"
        for _ in range(TRIES):
            path = self._job.fetch({name: Source(url, kind)})[name]
            if self._hold(path):
                return path
        raise TaskFailure("input.unplaced", f"{path.name} was removed again before it could be used", retryable=True)

    def _hold(self, path: Path) -> bool:
        """False: it is being removed."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        self._held.callback(os.close, descriptor)
        return lock(descriptor, fcntl.LOCK_SH) and os.fstat(descriptor).st_nlink > 0

    def close(self) -> None:
        """They may be removed from now on."""
        self._held.close()
