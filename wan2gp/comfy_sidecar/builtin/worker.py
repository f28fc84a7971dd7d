"""The one thread that runs prompts, one after the other."""

from __future__ import annotations

import importlib
import logging
import threading
import time

from wan2gp.comfy_sidecar.builtin.execution import Engine
from wan2gp.comfy_sidecar.builtin.prompt_queue import PromptQueue

WAIT_S = 1000.0
SLOW_IMPORTS = ("numpy", "PIL.Image", "av")
log = logging.getLogger(__name__)


class Worker:
    """A daemon thread: the process can end while a node runs, as the real one can."""

    def __init__(self, queue: PromptQueue, engine: Engine) -> None:
        self._queue = queue
        self._engine = engine
        self._thread = threading.Thread(target=self._run, name="prompt-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        # Imported here, beside the server's start, so that neither it nor the first prompt waits for them.
        for name in SLOW_IMPORTS:
            importlib.import_module(name)
        while True:
            self._run_one()
            flags = self._queue.take_flags()
            if flags.get("free_memory"):
                self._engine.cache.clear()

    def _run_one(self) -> None:
        taken = self._queue.get(WAIT_S)
        if taken is None:
            return
        (_, prompt_id, prompt, extra_data, outputs), task = taken
        started = time.perf_counter()
        outcome = self._engine.execute(prompt_id, prompt, extra_data, outputs)
        # In the history before the last two messages, so that a client that acts on them finds it.
        self._queue.task_done(task, outcome)
        hub = self._engine.hub
        if hub.client_id is not None:
            hub.send("executing", {"node": None, "prompt_id": prompt_id}, hub.client_id)
        log.info("Prompt executed in %.2f seconds", time.perf_counter() - started)
