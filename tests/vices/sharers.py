"""Two engines that share a card, as two handlers: a painter of two models, and one that names none. What each has there
stands in a file, which is the driver's list too; who meets somebody else's models there notes a collision."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

from tests.vices.specs import HASTY, needs
from wan2gp.config import Config
from wan2gp.handlers.api import Handler, HandlerContext, Job
from wan2gp.protocol import Cancelled, Outcome, Succeeded
from wan2gp.supervisor.registry import HandlerSpec

CROWD = 700 << 20
"""More than a bare context, bytes."""


class Vice(Handler):
    """``params``: ``model``, ``hold_s``, ``mib``, ``unload`` (well, not, raise or hang: what the next unload does),
    ``die``."""

    def __init__(self, context: HandlerContext) -> None:
        super().__init__(context)
        self._card = Path(context.settings["card"])
        self._mine = self._card / context.name
        self._loaded: str | None = None
        self._unload = "well"
        self._never = threading.Event()

    def warm(self) -> None:
        self._need(next(iter(self.context.settings["models"].values()), "its own"), 4000 << 20)

    def run(self, job: Job) -> Outcome:
        params: dict[str, Any] = job.params
        model = params.get("model") or self.context.settings["models"].get(job.task_type) or "its own"
        self._need(model, int(params.get("mib", 4000)) << 20)
        self._unload = params.get("unload", "well")
        if params.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(int(params.get("hold_s", 0) / 0.02)):
            if job.cancelled():
                return Cancelled()
            self._never.wait(0.02)
        return Succeeded((), data={"model": model, "pid": os.getpid()})

    def unload(self) -> None:
        if self._unload == "raise":
            raise RuntimeError("the allocator is corrupt")
        if self._unload == "hang":
            self._never.wait(60)
        if self._unload != "not":
            self._mine.unlink(missing_ok=True)
            self._loaded = None

    def _need(self, model: str, size: int) -> None:
        if model == self._loaded:
            return
        with (self._card / "loads").open("a") as log:
            log.write(f"{self.context.name} {model}\n")
        listed = [line.split() for line in (self._card / "processes").read_text().splitlines()]
        if any(int(pid) != os.getpid() and int(held) > CROWD for pid, held in listed):
            (self._card / "collisions").write_text(f"{self.context.name} met {listed}")
        draft = self._card / f".{self.context.name}"
        draft.write_text(f"{os.getpid()} {size}\n")
        draft.rename(self._mine)
        self._loaded = model
        named = {"model": model} if self.context.settings["models"] else {}
        self.context.engine_state("ready", pid=os.getpid(), **named)


def sharer(name: str, types: tuple[str, ...], models: dict[str, str]) -> HandlerSpec:
    def settings(config: Config) -> dict[str, Any]:
        return {"card": str(config.data_dir.parent / "card"), "models": models}

    return HandlerSpec(
        name=name,
        target="tests.vices.sharers:Vice",
        task_types=types,
        settings=settings,
        start_s=20.0,
        patience=HASTY,
        needs=needs,
        gpu=lambda config: True,
        models=models,
    )


painter = sharer("painter", ("paint", "portrait"), {"paint": "small", "portrait": "large"})
filmer = sharer("filmer", ("film",), {})
