"""More frames a second for what a generation made: by the engine's RIFE, in a process of its own.

The engine's own function for it makes anew every frame past the hundredth, repeats frames where two differ much, tells
no progress and cannot be called off. It does so all the same where this one cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wan2gp.handlers.api import Interrupted, Job
from wan2gp.handlers.media_make import rife_failure, upsample
from wan2gp.handlers.media_parameters import RIFE
from wan2gp.handlers.media_rife import choose, fetched
from wan2gp.handlers.media_settings import MediaSettings
from wan2gp.handlers.wan_options import WanSettings
from wan2gp.media_sources import RIFE_URL
from wan2gp.model_places import FOLDERS, WEIGHTS, place_of
from wan2gp.wan_sidecar.checkout import interpreter
from wan2gp.wan_sidecar.errors import Abandoned
from wan2gp.wan_sidecar.rife import Rife, RifeFailed

TIMES = {"rife2": 2, "rife4": 4}
"""By the value of `temporal_upsampling`."""
Told = Callable[["int | None", "int | None", str], None]
"""Frames written, frames wanted, and what is done."""


class Upsampler:
    """Of one task; RIFE is started at the first film. :meth:`close` ends it."""

    def __init__(self, job: Job, settings: WanSettings) -> None:
        self._job = job
        self._settings = _media(settings)
        self._rife: Rife | None = None

    def more(self, film: Path, target: Path, how: str, told: Told) -> tuple[str, ...]:
        """Write ``film`` with more frames to ``target``; what there is to warn of. Raises ``TaskFailure``, of which
        ``media.no_rife`` is a lack and no failure, or :class:`Interrupted`."""
        rife = self._running(told)
        target.parent.mkdir(parents=True, exist_ok=True)

        def written(count: int, frames: int) -> None:
            told(count, frames, "RIFE")

        made = upsample(film, target, TIMES[how], rife, written=written, abandoned=self._job.cancelled)
        return made.warnings

    def close(self) -> None:
        """Safe to call again."""
        if self._rife is not None:
            self._rife.stop()

    def _running(self, told: Told) -> Rife:
        if self._rife is None:
            way = fetched(choose(RIFE, self._settings), RIFE, self._settings, self._job)
            assert way.model is not None
            settings, home = self._settings, self._job.work_dir
            python = interpreter(way.model.root, settings.python)
            self._rife = Rife(way.model, python, home, device=settings.device, start_s=settings.start_timeout_s)

        def left() -> bool:
            told(None, None, "RIFE starts")
            return self._job.cancelled()

        try:
            self._rife.ensure(left)
        except Abandoned as error:
            raise Interrupted from error
        except RifeFailed as error:
            raise rife_failure(error) from error
        return self._rife


def _media(settings: WanSettings) -> MediaSettings:
    kept = Path(settings.models_dir) / FOLDERS[WEIGHTS] / place_of(WEIGHTS, RIFE_URL).parent
    return MediaSettings(
        checkout=settings.path,
        python=settings.python,
        stores=(str(kept),) if settings.models_dir else (),
        interpolation=RIFE,
        download=settings.download,
        device=settings.upsampling_device,
        start_timeout_s=settings.start_timeout_s,
    )
