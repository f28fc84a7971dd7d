"""The Wan2GP under the handler: started when first needed, kept warm, unloaded when idle, started again after a death.

One task at a time has the engine; in between, a watcher gives back the memory of a model that nobody needs.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from wan2gp.engine_process.process import monotonic
from wan2gp.handlers.api import HandlerContext, Interrupted, TaskFailure
from wan2gp.handlers.wan_errors import cannot_start, died
from wan2gp.handlers.wan_options import WanSettings
from wan2gp.handlers.wan_twins import plain_twins
from wan2gp.wan_sidecar.engine import WanEngine
from wan2gp.wan_sidecar.errors import UnknownModel, WanError
from wan2gp.wan_sidecar.verdict import Verdict
from wan2gp.wan_sidecar.work import EngineAbout, EngineJob, OnEvent, Want

LOOK_S = 0.5
"""Between two looks of the watcher."""
ENGINE = "engine"
"""Below the handler's own directory: the engine's."""
SWITCHED_OFF = "nothing is downloaded for the engine here: put the file into its directory for checkpoints"
Answer = TypeVar("Answer")
Supply = Callable[[Want], "Path | str"]


class WarmEngine:
    """Every method but the watcher's runs in the handler's main thread."""

    def __init__(self, context: HandlerContext, settings: WanSettings) -> None:
        self._context = context
        self._settings = settings
        self._engine: WanEngine | None = None
        self._supply: Supply | None = None
        self._told: dict[str, Any] = {}
        self._used_s = monotonic()
        self._turn = threading.Lock()
        """Held while a task has the engine, or the watcher handles it."""
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None

    @contextlib.contextmanager
    def turn(self, supply: Supply | None = None) -> Iterator[None]:
        """The engine is in use: the watcher keeps its hands off. ``supply`` is asked for the files that it misses."""
        with self._turn:
            self._supply = supply
            try:
                yield
            finally:
                self._supply = None
                self._used_s = monotonic()
                self._tell()

    # --- in a turn ----------------------------------------------------------------------------------------------------

    @property
    def loaded(self) -> str | None:
        """The model in memory."""
        return self._engine.loaded if self._engine is not None else None

    def ensure(self, progress: Callable[[str], None], cancelled: Callable[[], bool]) -> EngineAbout:
        """A process that takes jobs. Raises :class:`TaskFailure`, or :class:`Interrupted` when ``cancelled``."""
        about = self._engine.about if self._engine is not None else None
        return about or self._start(progress, cancelled)

    def _start(self, progress: Callable[[str], None], cancelled: Callable[[], bool]) -> EngineAbout:
        self._gone()
        self._context.event("wan.starting", path=self._settings.path)
        self._context.engine_state("starting")
        began_s = monotonic()
        # Anew each time: what the checkout holds may have changed since.
        self._engine = self._made()
        try:
            about = self._engine.ensure(progress, cancelled)
        except WanError as error:
            raise self._failed(cannot_start(error)) from error
        self._context.event("wan.ready", version=about.version, pid=about.pid, seconds=round(monotonic() - began_s, 1))
        self._tell()
        self._watch()
        return about

    def _made(self) -> WanEngine:
        path = Path(self._settings.path).expanduser()
        return WanEngine(
            path,
            self._settings.python,
            self._context.home / ENGINE,
            arguments=self._settings.engine_arguments(),
            finetunes=plain_twins(path),
            limits=self._settings.engine_limits(),
            supply=self._ask,
        )

    def _ask(self, want: Want) -> Path | str:
        return self._supply(want) if self._supply is not None else SWITCHED_OFF

    def _failed(self, failure: Exception) -> Exception:
        """Nothing is left; the next call tries again."""
        self._discard()
        if isinstance(failure, TaskFailure):
            self._context.event("wan.start_failed", reason=failure.message)
            self._context.engine_state("failed", reason=failure.message)
        elif isinstance(failure, Interrupted):
            self._context.engine_state("stopped", cause="its start was given up")
        return failure

    def models(self) -> tuple[str, ...]:
        """All that the engine lists. Raises :class:`TaskFailure`, as the next two do."""
        return self._asked(lambda engine: engine.models())

    def definition(self, name: str) -> Mapping[str, Any]:
        return self._asked(lambda engine: engine.model_def(name))

    def availability(self, name: str) -> str:
        """``available``, ``partial`` or ``missing``: the weights of a model, but not what all models share."""
        return self._asked(lambda engine: engine.availability(name))

    def _asked(self, ask: Callable[[WanEngine], Answer]) -> Answer:
        assert self._engine is not None
        try:
            return ask(self._engine)
        except UnknownModel as error:
            raise TaskFailure("wan.unknown_model", str(error)) from error
        except WanError as error:
            self._gone(str(error))
            raise died(error) from error

    def run(self, job: EngineJob, on_event: OnEvent, cancelled: Callable[[], bool]) -> Verdict:
        """One generation."""
        assert self._engine is not None
        return self._ended(self._engine.run(job, on_event, cancelled))

    def postprocess(
        self,
        file: Path,
        settings: Mapping[str, Any],
        output_dir: Path,
        on_event: OnEvent,
        cancelled: Callable[[], bool],
    ) -> Verdict:
        """What comes after a generation, as a job of its own."""
        assert self._engine is not None
        return self._ended(self._engine.postprocess(file, settings, output_dir, on_event, cancelled))

    def _ended(self, verdict: Verdict) -> Verdict:
        if verdict.fresh:
            self._gone(verdict.sentence)
        self._tell()
        return verdict

    def free(self) -> None:
        """Give the model's memory back, if there is one."""
        engine = self._engine
        if engine is None or engine.loaded is None:
            return
        if engine.unload():
            self._context.event("wan.unloaded")
        else:
            self._gone("its model could not be unloaded")
        self._tell()

    # --- states -------------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """What the engine is and which model it has, when that has changed: the supervisor prefers tasks of it."""
        about = self._engine.about if self._engine is not None else None
        if about is None:
            return
        now = {
            "pid": about.pid,
            "version": about.version,
            "commit": about.commit,
            "gpu": about.gpu,
            "model": self.loaded,
        }
        if now != self._told:
            self._told = now
            self._context.engine_state("ready", **now)

    def _gone(self, cause: str = "") -> None:
        """The process has ended, or is of no use: nothing of it is left."""
        if self._engine is None:
            return
        self._discard()
        cause = cause or "it ended while idle"
        self._context.event("wan.stopped", cause=cause)
        self._context.engine_state("stopped", cause=cause, model=None)

    def _discard(self) -> None:
        engine, self._engine = self._engine, None
        self._told = {}
        if engine is not None:
            engine.stop()

    def close(self) -> None:
        """End everything. Safe to call again."""
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join()
        self._discard()

    # --- the watcher --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._look_after, name="wan-watch", daemon=True)
            self._watcher.start()

    def _look_after(self) -> None:
        while not self._closing.wait(LOOK_S):
            if self._turn.acquire(blocking=False):
                try:
                    self._look()
                finally:
                    self._turn.release()

    def _look(self) -> None:
        if self._engine is None:
            return
        if self._engine.about is None:
            self._gone()
            return
        limit_s = self._settings.idle_unload_s
        if limit_s and self._engine.loaded is not None and monotonic() - self._used_s > limit_s:
            self.free()
