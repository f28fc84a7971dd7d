"""The vices as a handler: the task's type says which one, its params are the prey."""

from __future__ import annotations

import importlib
import os

from tests.hostile.tries import Tries
from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Artifact, Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        tries = Tries()
        prey = {**job.params, "task": job.task_id, "lease": job.lease_id}
        importlib.import_module(f"tests.hostile.{job.task_type}").attempt(tries, prey, job.work_dir)
        made = tuple(
            Artifact(loot.path, f"loot{number}.png", "image", "image/png", loot.bytes, loot.sha256)
            for number, loot in enumerate(tries.loot)
        )
        return Succeeded(made, data={"saw": tries.saw, "pid": os.getpid()})
