"""Tells what a handler can see of its own process: environment, arguments, open files, modules."""

from __future__ import annotations

import os
import sys

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        files = {}
        for number in os.listdir("/proc/self/fd"):
            try:
                files[number] = os.readlink(f"/proc/self/fd/{number}")
            except FileNotFoundError:
                continue
        data = {
            "environ": dict(os.environ),
            "cmdline": open("/proc/self/cmdline").read().split("\0"),
            "files": files,
            "modules": sorted(sys.modules),
            "ppid": os.getppid(),
            "pid": os.getpid(),
        }
        return Succeeded((), data=data)
