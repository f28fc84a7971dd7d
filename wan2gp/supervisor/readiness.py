"""Whether this worker would take a task now, and if not, why: for `wan2gp-ctl`, the image's health check and `workers`.

A database that is away is no obstacle: the worker waits for it, and exchanging the worker would help nobody.
"""

from __future__ import annotations

from wan2gp.supervisor.lifecycle import State
from wan2gp.supervisor.loop import Loop, Stage

_STAGES = {
    Stage.DRAINING: ("worker.draining", "the worker drains: `wan2gp-ctl resume` lets it claim again"),
    Stage.STOPPING: ("worker.stopping", "the worker stops"),
}


def obstacles(loop: Loop) -> dict[str, str]:
    """Code to sentence of all that stands in the way; empty when it is ready. From any thread: plain reads alone."""
    found = loop.health.reasons
    if loop.stage in _STAGES:
        code, sentence = _STAGES[loop.stage]
        found[code] = sentence
    unable = loop.unable
    idle = [name for name, desk in loop.handlers.items() if name in unable or desk.life.state is State.BROKEN]
    if idle and len(idle) == len(loop.handlers):
        found["handler.broken"] = f"no handler can work: {', '.join(idle)} is broken or cannot work here"
    return found
