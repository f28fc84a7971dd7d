"""A clip of exactly so many frames, from pictures or a video: what every handler may use that wants frames between."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from wan2gp.handlers.api import Interrupted, TaskFailure
from wan2gp.handlers.media_between import Cuts, by_ffmpeg, by_rife
from wan2gp.handlers.media_clip import add_sound, write_clip
from wan2gp.handlers.media_probe import MediaInfo, Unreadable, probe
from wan2gp.handlers.media_scenes import Film, Scenes
from wan2gp.handlers.wan_fit import STRETCH, Fit
from wan2gp.handlers.wan_values import Pixels
from wan2gp.wan_sidecar.errors import Abandoned
from wan2gp.wan_sidecar.rife import Rife, RifeFailed

if TYPE_CHECKING:
    from wan2gp.handlers.media_scenes import Picture

FFMPEG = "ffmpeg minterpolate"
SYNC_S = 0.1
"""How far sound and picture may be apart at the clip's end."""
AGAIN = ("exit", "silence", "refused")
"""Why RIFE may fail today and not tomorrow."""
TAIL_LINES = 8


@dataclass(frozen=True)
class Plan:
    """The clip that is wanted. ``fit`` has its size."""

    frames: int
    rate: Fraction
    fit: Fit
    lossless: bool = False


@dataclass(frozen=True)
class Made:
    """``warnings``: for whoever asked for the clip."""

    info: MediaInfo
    cuts: int
    warnings: tuple[str, ...]


def make_clip(
    scenes: Scenes,
    plan: Plan,
    rife: Rife | None,
    target: Path,
    *,
    written: Callable[[int], None],
    abandoned: Callable[[], bool],
) -> Made:
    """Write ``target``, an MP4; by ffmpeg where ``rife`` is None, else by a RIFE that runs. ``written``: told of every
    frame, may raise.

    Raises :class:`TaskFailure` or :class:`Interrupted`.
    """
    cuts = Cuts(scenes.film)
    _write(scenes, plan, rife, target, cuts, written, abandoned)
    info = _verified(target, plan)
    said = [f"frames are repeated at {cuts.count} cuts, where a scene ends"] if cuts.count else []
    if isinstance(scenes, Film):
        said += _sounded(scenes, plan, target, abandoned)
        info = _verified(target, plan)
    return Made(info, cuts.count, tuple(said))


def upsample(
    film: Path,
    target: Path,
    times: int,
    rife: Rife | None,
    *,
    written: Callable[[int, int], None],
    abandoned: Callable[[], bool],
) -> Made:
    """``film`` with ``times`` as many frames a second, in its own size, with its sound. ``written``: told of frames
    written and wanted. Raises as :func:`make_clip`."""

    def tick() -> None:
        if abandoned():
            raise Interrupted

    scenes = Film(film, film.name, tick)
    frames = (scenes.count - 1) * times + 1
    size = Pixels(scenes.size.width // 2 * 2, scenes.size.height // 2 * 2)
    plan = Plan(frames, scenes.rate * times, Fit(size, STRETCH if size == scenes.size else "crop"))
    return make_clip(scenes, plan, rife, target, written=lambda count: written(count, frames), abandoned=abandoned)


def _write(
    scenes: Scenes,
    plan: Plan,
    rife: Rife | None,
    target: Path,
    cuts: Cuts,
    written: Callable[[int], None],
    abandoned: Callable[[], bool],
) -> None:
    keyed = scenes.keyed(plan.frames, plan.fit)
    frames = by_ffmpeg(keyed, cuts) if rife is None else by_rife(rife, keyed, cuts, abandoned)
    try:
        with contextlib.closing(_checked(frames, abandoned)) as checked:
            count = write_clip(target, checked, plan.rate, plan.lossless, written)
    except Abandoned as error:
        raise Interrupted from error
    except RifeFailed as error:
        raise rife_failure(error) from error
    if count != plan.frames:
        # A file whose second reading differs from its first.
        raise TaskFailure("media.bad_output", f"{count} of {plan.frames} frames could be made")


def _checked(frames: Iterator[Picture], abandoned: Callable[[], bool]) -> Generator[Picture, None, None]:
    for frame in frames:
        if abandoned():
            raise Interrupted
        yield frame


def rife_failure(error: RifeFailed) -> TaskFailure:
    """For the row."""
    tail = {"tail": list(error.tail[-TAIL_LINES:])}
    if error.why == "memory":
        sentence = f"RIFE ran out of memory: give a smaller `resolution` ({error})"
        return TaskFailure("engine.out_of_memory", sentence, detail=tail, recycle=False)
    return TaskFailure("media.rife_failed", f"RIFE failed: {error}", retryable=error.why in AGAIN, detail=tail)


def _verified(path: Path, plan: Plan) -> MediaInfo:
    try:
        info = probe(path)
    except Unreadable as error:
        raise TaskFailure("media.bad_output", f"the clip that was made cannot be decoded: {error}") from error
    size = plan.fit.size
    assert size is not None
    if (info.frames, info.width, info.height) != (plan.frames, size.width, size.height):
        made = f"{info.frames} frames of {info.width}x{info.height}"
        raise TaskFailure("media.bad_output", f"the clip has {made}: wanted are {plan.frames} of {size}")
    return info


def _sounded(film: Film, plan: Plan, target: Path, abandoned: Callable[[], bool]) -> list[str]:
    """The film's sound, where the clip takes as long as the film."""

    def tick() -> None:
        if abandoned():
            raise Interrupted

    shown_s = float((plan.frames - 1) / plan.rate)
    if abs(shown_s - film.span_s) > SYNC_S:
        return ["the video's sound is left out: the clip takes another time than the video"] if film.has_sound else []
    heard = target.with_name(f"heard-{target.name}")
    why = add_sound(target, film.path, heard, film.start_s, tick)
    if why is None:
        heard.replace(target)
    return [f"the video's sound is left out: {why}"] if why else []
