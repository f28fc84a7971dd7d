"""The operator: reads the workers' logs, and restarts by `wan2gp-ctl` a handler that is said to be broken.

So many deaths in a row as a run may inflict on one handler, a worker takes for a defect: it waits for a person, or for
minutes. A run has neither to spare.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

from tests.chaos.stage import Actor, Stage

LOOK_EVERY_S = 0.5
BROKEN = re.compile(r"Handler (\w+) is broken after")


class OperatorDesk:
    """Called from the main thread; waits for nobody. ``restarts``: how many handlers were restarted."""

    def __init__(self, stage: Stage) -> None:
        self.restarts = 0
        self._stage = stage
        self._read: dict[str, int] = {}
        self._asking: list[tuple[subprocess.Popen[bytes], Actor, str]] = []
        self._look_s = 0.0

    def turn(self) -> None:
        """Look when it is time to."""
        now_s = time.monotonic()
        if now_s < self._look_s:
            return
        self._look_s = now_s + LOOK_EVERY_S
        self._follow_up()
        for actor in self._stage.actors.values():
            for handler in BROKEN.findall(self._news(actor)):
                self.restarts += 1
                self._restart(actor, handler)

    def close(self) -> None:
        """Safe to repeat."""
        for process, _, _ in self._asking:
            process.kill()
            process.wait()
        self._asking = []

    def _follow_up(self) -> None:
        """A supervisor that was not there, or stood still, is asked again."""
        asking, self._asking = self._asking, []
        for process, actor, handler in asking:
            code = process.poll()
            if code is None:
                self._asking.append((process, actor, handler))
            elif code != 0:
                self._restart(actor, handler)

    def _news(self, actor: Actor) -> str:
        """What its log says since the last look, whole lines only."""
        log = actor.data_dir / "logs" / "worker.log"
        if not log.exists():
            return ""
        with log.open("rb") as file:
            file.seek(self._read.get(actor.name, 0))
            text, newline, _ = file.read().rpartition(b"\n")
        self._read[actor.name] = self._read.get(actor.name, 0) + len(text) + len(newline)
        return text.decode(errors="replace")

    def _restart(self, actor: Actor, handler: str) -> None:
        command = [sys.executable, "-m", "wan2gp.ctl", "--data-dir", str(actor.data_dir), "restart", handler]
        null = subprocess.DEVNULL
        process = subprocess.Popen(command, env=actor.environ, stdin=null, stdout=null, stderr=null)
        self._stage.errands.add(process.pid)
        self._asking.append((process, actor, handler))
