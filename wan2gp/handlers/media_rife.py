"""RIFE between tasks: which of the two ways a row takes, and a process that is kept for a while."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from wan2gp.handlers.api import HandlerContext, Interrupted, Job, TaskFailure
from wan2gp.handlers.media_make import rife_failure
from wan2gp.handlers.media_parameters import AUTO, FFMPEG
from wan2gp.handlers.media_settings import MediaSettings
from wan2gp.media_sources import RIFE_URL
from wan2gp.model_places import WEIGHTS
from wan2gp.protocol import Source
from wan2gp.wan_sidecar.checkout import interpreter
from wan2gp.wan_sidecar.errors import Abandoned, NotInstalled
from wan2gp.wan_sidecar.rife import Rife, RifeFailed
from wan2gp.wan_sidecar.rife_weights import RifeModel, WeightsMissing, find_rife

PASSING = ("worker.disk_full", "input.unplaced")
"""What may pass besides what is retryable."""


@dataclass(frozen=True)
class Way:
    """``model`` None: ffmpeg, and ``why`` where nobody asked for it by name. ``fetch``: its weights are still to be
    fetched."""

    model: RifeModel | None
    why: str = ""
    fetch: bool = False


def choose(method: str, settings: MediaSettings) -> Way:
    """A row has the last word. ffmpeg serves one that leaves the choice only where the worker is set up so. Raises
    :class:`TaskFailure` (``media.no_rife``)."""
    if method == FFMPEG:
        return Way(None)
    if method == AUTO and settings.interpolation == FFMPEG:
        return Way(None, "as this worker is set up (wan.interpolation)")
    try:
        return Way(find_rife(settings.checkout, settings.stores))
    except WeightsMissing as error:
        if settings.download:
            return Way(error.model, fetch=True)
        return _without(method, settings, str(error))
    except NotInstalled as error:
        return _without(method, settings, str(error))


def fetched(way: Way, method: str, settings: MediaSettings, job: Job) -> Way:
    """The same with weights that are there. Raises as :func:`choose` does, what may pass until the next attempt, or
    ``Interrupted``."""
    if way.model is None or not way.fetch:
        return way
    try:
        found = job.fetch({"weights": Source(RIFE_URL, WEIGHTS)})["weights"]
    except TaskFailure as failure:
        if failure.retryable or failure.code in PASSING:
            raise
        return _without(method, settings, f"{WeightsMissing(way.model)}; it cannot be fetched: {failure.message}")
    return Way(replace(way.model, weights=found))


def _without(method: str, settings: MediaSettings, why: str) -> Way:
    if method == AUTO and settings.interpolation == AUTO:
        return Way(None, why)
    instead = 'ask for `"method": "ffmpeg"`, or set wan.interpolation=auto'
    raise TaskFailure("media.no_rife", f"this worker has no RIFE: {why}; or {instead}")


class WarmRife:
    """Starts RIFE at the first task that wants it, ends it some time after the last."""

    def __init__(self, context: HandlerContext, settings: MediaSettings) -> None:
        self._context = context
        self._settings = settings
        self._rife: Rife | None = None
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """While a task runs it is not idle."""
        with self._lock:
            self._cancel_timer()
            try:
                yield
            finally:
                self._wind()

    def running(self, model: RifeModel, waiting: Callable[[], None], cancelled: Callable[[], bool]) -> Rife:
        """RIFE with ``model``, running; within :meth:`turn`. ``waiting`` is called while it starts.

        Raises :class:`TaskFailure` or :class:`Interrupted`.
        """
        if self._rife is None or self._rife.model != model:
            self._end("another model")
            python = interpreter(model.root, self._settings.python)
            home, settings = self._context.home, self._settings
            self._rife = Rife(model, python, home, device=settings.device, start_s=settings.start_timeout_s)

        def look() -> bool:
            waiting()
            return cancelled()

        try:
            about = self._rife.ensure(look)
        except Abandoned as error:
            raise Interrupted from error
        except RifeFailed as error:
            self._context.engine_state("failed", reason=str(error))
            raise rife_failure(error) from error
        self._context.engine_state(
            "ready", interpolation=about.name, device=about.device, torch=about.torch, pid=about.pid
        )
        return self._rife

    def stop(self, cause: str) -> None:
        """Between tasks. Safe to call again."""
        with self._lock:
            self._cancel_timer()
            self._end(cause)

    def _end(self, cause: str) -> None:
        if self._rife is not None and self._rife.about is not None:
            self._rife.stop()
            self._context.engine_state("stopped", cause=cause)
        self._rife = None

    def _wind(self) -> None:
        if self._rife is None or self._rife.about is None or self._settings.idle_stop_s <= 0:
            return
        self._timer = threading.Timer(self._settings.idle_stop_s, self._idle)
        self._timer.daemon = True
        self._timer.start()

    def _idle(self) -> None:
        """In the timer's thread. A turn that began meanwhile has taken the timer away."""
        with self._lock:
            if self._timer is threading.current_thread():
                self._timer = None
                self._end(f"idle for {self._settings.idle_stop_s:g} s; the next task starts it")

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
