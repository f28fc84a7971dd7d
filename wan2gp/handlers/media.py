"""The handler of tasks that need no generating engine: frames between pictures, or between those of a video."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from wan2gp.handlers.api import Handler, HandlerContext, Interrupted, Job
from wan2gp.handlers.comfy_fields import bad
from wan2gp.handlers.media_files import take_files
from wan2gp.handlers.media_make import FFMPEG, Made, Plan, make_clip
from wan2gp.handlers.media_parameters import IMAGES_FPS, LARGEST_PIXELS
from wan2gp.handlers.media_probe import sha256_of
from wan2gp.handlers.media_request import MediaRequest, read_request
from wan2gp.handlers.media_rife import WarmRife, Way, choose, fetched
from wan2gp.handlers.media_scenes import Film, Scenes, Stills
from wan2gp.handlers.media_settings import MediaSettings
from wan2gp.handlers.poster import add_posters
from wan2gp.handlers.wan_fit import Fit
from wan2gp.handlers.wan_values import Pixels
from wan2gp.protocol import Artifact, Outcome, Succeeded
from wan2gp.wan_sidecar.checkout import look
from wan2gp.wan_sidecar.errors import NotInstalled
from wan2gp.wan_sidecar.rife import Rife

NAME = "interpolated.mp4"
LEAST_SIDE, LONGEST_SIDE = 32, 8192
"""Pixels. In less ffmpeg looks for no motion."""
MOST_MADE = 100_000
"""Frames, by ``multiplier``."""
MOST_RATE = 1000
LOOKED_AT, MADE = 0.04, 0.95
"""Where the work begins and ends in the fraction of the whole run."""


class MediaHandler(Handler):
    """One clip at a time. RIFE's process is started by the first task that wants it."""

    def __init__(self, context: HandlerContext) -> None:
        super().__init__(context)
        self._settings = MediaSettings.of(context.settings)
        self._rife = WarmRife(context, self._settings)

    def run(self, job: Job) -> Outcome:
        request = read_request(job.params)
        with self._rife.turn():
            return Interpolation(job, request, self._settings, self._rife).run()

    def unload(self) -> None:
        self._rife.stop("asked to give its memory back")

    def close(self) -> None:
        self._rife.stop("the handler ends")


class Interpolation:
    """One task."""

    def __init__(self, job: Job, request: MediaRequest, settings: MediaSettings, rife: WarmRife) -> None:
        self._job = job
        self._request = request
        self._settings = settings
        self._warm = rife
        self._warnings = list(request.warnings)
        self._began_s = 0.0

    def run(self) -> Outcome:
        way = choose(self._request.method, self._settings)  # before anything is fetched
        files = take_files(self._job, self._request.files, self._settings)
        scenes = self._scenes(files)
        plan = self._plan(scenes)
        rife, target = self._ready(way), self._job.work_dir / NAME
        self._began_s = time.monotonic()
        made = make_clip(scenes, plan, rife, target, written=self._written(plan.frames), abandoned=self._job.cancelled)
        return self._succeeded(target, scenes, plan, made, _engine(rife))

    # --- before --------------------------------------------------------------------------------------------------

    def _scenes(self, files: list[Path]) -> Scenes:
        labels = [file.label for file in self._request.files]
        if self._request.video is None:
            return Stills(files, labels)
        return Film(files[0], labels[0], self._looking)

    def _looking(self) -> None:
        self._job.progress(0.0, "decode", detail="looking at the video")
        if self._job.cancelled():
            raise Interrupted

    def _ready(self, way: Way) -> Rife | None:
        """RIFE, running, or None for ffmpeg."""
        way = fetched(way, self._request.method, self._settings, self._job)
        if way.why:
            self._warnings.append(f"made by {FFMPEG}, not by RIFE: {way.why}")
        if way.model is None:
            return None
        return self._warm.running(way.model, self._starting, self._job.cancelled)

    def _starting(self) -> None:
        self._job.progress(LOOKED_AT, "load", detail="RIFE")

    def _plan(self, scenes: Scenes) -> Plan:
        request = self._request
        frames = request.frames or (scenes.count - 1) * (request.multiplier or 1) + 1
        if frames > MOST_MADE:
            raise bad(f"`multiplier` makes {frames} frames of this video: the most is {MOST_MADE}")
        size = request.size or self._own_size(scenes.size)
        return Plan(frames, request.fps or _own_rate(scenes, frames), Fit(size, request.fit), request.lossless)

    def _own_size(self, size: Pixels) -> Pixels:
        even = Pixels(size.width // 2 * 2, size.height // 2 * 2)
        sides = (even.width, even.height)
        if min(sides) < LEAST_SIDE or max(sides) > LONGEST_SIDE or even.width * even.height > LARGEST_PIXELS:
            raise bad(f"the first picture is {size}, of which no clip can be made: give a `resolution`")
        if even != size:
            self._warnings.append(f"the clip is {even}, not {size}: videos have even sides")
        return even

    # --- the work ------------------------------------------------------------------------------------------------

    def _written(self, frames: int) -> Callable[[int], None]:
        def written(count: int) -> None:
            each_s = (time.monotonic() - self._began_s) / count
            fraction = LOOKED_AT + (MADE - LOOKED_AT) * count / frames
            self._job.progress(fraction, "step", step=count, steps=frames, eta_s=round(each_s * (frames - count), 1))
            if self._job.cancelled():
                raise Interrupted

        return written

    # --- after ---------------------------------------------------------------------------------------------------

    def _succeeded(self, target: Path, scenes: Scenes, plan: Plan, made: Made, engine: dict[str, Any]) -> Succeeded:
        self._job.progress(MADE, "publish", detail=NAME)
        info = made.info
        clip = Artifact(
            path=NAME,
            name=NAME,
            kind=info.kind,
            mime=info.mime,
            bytes=target.stat().st_size,
            sha256=sha256_of(target),
            width=info.width,
            height=info.height,
            frames=info.frames,
            duration_s=info.duration_s,
            primary=True,
        )
        warnings = (*self._warnings, *made.warnings)
        artifacts: tuple[Artifact, ...] = (clip,)
        if self._settings.posters:
            artifacts, more = add_posters(self._job.work_dir, artifacts, self._job.cancelled)
            warnings += more
        return Succeeded(artifacts, warnings, engine, self._said(scenes, plan, made))

    def _said(self, scenes: Scenes, plan: Plan, made: Made) -> dict[str, Any]:
        """What was asked for, and what became of it."""
        request = self._request
        asked = {
            "frames": request.frames,
            "multiplier": request.multiplier,
            "fps": None if request.fps is None else round(float(request.fps), 3),
            "resolution": None if request.size is None else str(request.size),
            "method": request.method,
            "fit": request.fit,
        }
        done = {
            "frames": made.info.frames,
            "fps": round(float(plan.rate), 3),
            "resolution": str(plan.fit.size),
            "sources": scenes.count,
            "cuts": made.cuts,
        }
        return {"asked": {name: value for name, value in asked.items() if value is not None}, "made": done}


def _own_rate(scenes: Scenes, frames: int) -> Fraction:
    """A video keeps its length, pictures have none."""
    if not isinstance(scenes, Film):
        return Fraction(IMAGES_FPS)
    rate = scenes.rate * Fraction(frames - 1, scenes.count - 1)
    if not Fraction(1, MOST_RATE) <= rate <= MOST_RATE:
        raise bad(f"the clip would have {float(rate):.3g} frames a second: give `fps`")
    return rate.limit_denominator(MOST_MADE)


def _engine(rife: Rife | None) -> dict[str, Any]:
    """Which of the two made the frames; of Wan2GP its licence wants to be named."""
    if rife is None or rife.about is None:
        return {"interpolation": FFMPEG}
    about = rife.about
    found: dict[str, Any] = {"interpolation": about.name, "device": about.device, "torch": about.torch, "name": "WanGP"}
    try:
        checkout = look(rife.model.root)
    except NotInstalled:  # RIFE alone was copied there
        return found
    return {**found, "version": checkout.version, "commit": checkout.commit}
