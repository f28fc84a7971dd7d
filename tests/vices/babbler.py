"""Sends what is no message, on its first attempt."""

from __future__ import annotations

import gc
import time

from wan2gp.handlers.api import Handler, Job
from wan2gp.handlers.link import Link
from wan2gp.protocol import Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        if job.attempt == 1:
            link = next(thing for thing in gc.get_objects() if isinstance(thing, Link))
            link._outbox.put(b'{"type":"no such thing"}')
            link._rouse()
            time.sleep(600)
        return Succeeded(())
