"""Its outcome is larger than a message may be, and it writes a megabyte a line to its output."""

from __future__ import annotations

import sys

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import MAX_MESSAGE_BYTES, Outcome, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        for _ in range(20):
            sys.stdout.write("x" * 1_000_000 + "\n")
        return Succeeded((), data={"x": "y" * MAX_MESSAGE_BYTES})
