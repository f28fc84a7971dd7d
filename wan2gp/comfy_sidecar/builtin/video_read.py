"""Decoding with PyAV: which frames of a file are taken, and its sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

from wan2gp.comfy_sidecar.builtin.media import HELD_BYTES, Audio, Frames, of_list

if TYPE_CHECKING:
    import av
    import numpy as np
    import numpy.typing as npt

    from wan2gp.comfy_sidecar.builtin.media import Pixels

    Samples = npt.NDArray[np.float32]
    """Channels x samples."""

EPSILON_S = 1e-9


@dataclass(frozen=True)
class Source:
    """A file's first video stream. `frames` is the file's own count, or an estimate.

    `turns`: quarter turns to the left that make its pictures upright; the sides are those of the upright ones.
    """

    fps: Fraction
    frames: int
    width: int
    height: int
    turns: int = 0

    @property
    def duration_s(self) -> float:
        return float(self.frames / self.fps)


@dataclass(frozen=True)
class Selection:
    """The widgets of VHS_LoadVideo: 0 means unset, except that every nth is at least 1."""

    force_rate: float = 0
    skip: int = 0
    every_nth: int = 1
    cap: int = 0
    size: tuple[int, int] | None = None

    def rate(self, source: Source) -> Fraction:
        return Fraction(self.force_rate).limit_denominator(1000) if self.force_rate else source.fps

    def expected(self, source: Source) -> int:
        """How many frames to announce; the file may hold fewer."""
        resampled = round(source.frames * self.rate(source) / source.fps)
        count = -(-max(resampled - self.skip, 0) // self.every_nth)
        return min(count, self.cap) if self.cap else count


def probe(path: Path) -> Source:
    """Decodes one frame. Raises FFmpegError for a file that cannot be read, ValueError for one without video."""
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no video")
        stream = container.streams.video[0]
        fps = stream.average_rate or stream.guessed_rate or Fraction(1)
        seconds = container.duration / av.time_base if container.duration else 0.0
        frames = stream.frames or round(seconds * fps)
        first = next(container.decode(stream), None)
        if first is None:
            raise ValueError(f"{path} holds no video frame")
        return Source(fps, frames, first.width, first.height)


def probe_upright(path: Path) -> Source:
    """As `probe`, for pictures turned as a player turns them; every failure in the words of VideoHelperSuite."""
    import av

    try:
        source = probe(path)
        with av.open(str(path)) as container:
            turns = next(container.decode(video=0)).rotation // 90 % 4
    except (av.error.FFmpegError, ValueError) as error:
        raise ValueError(f"{path} could not be loaded with cv.") from error
    sides = (source.height, source.width) if turns % 2 else (source.width, source.height)
    return Source(source.fps, source.frames, *sides, turns)


def load(path: Path, source: Source, wanted: Selection, report: Callable[[int, int], None]) -> Frames:
    """Decodes once, to count and to fail early; keeps the frames if they are few."""
    width, height = wanted.size or (source.width, source.height)
    expected = wanted.expected(source)
    held: list[Pixels] | None = []
    count = 0
    for picture in pictures(path, source, wanted):
        count += 1
        report(count, max(expected, count))
        if held is not None:
            held.append(picture)
            if len(held) * picture.nbytes > HELD_BYTES:
                held = None
    if held is not None:
        return of_list(held, width, height)
    return Frames(count, width, height, lambda: pictures(path, source, wanted))


def pictures(path: Path, source: Source, wanted: Selection) -> Iterator[Pixels]:
    """The chosen frames, converted and resized only when chosen."""
    import numpy as np

    for frame in _chosen(_frames(path), source, wanted):
        picture = cast("Pixels", np.rot90(frame.to_ndarray(format="rgb24"), source.turns))
        yield picture if wanted.size is None else fit(picture, *wanted.size)


def _frames(path: Path) -> Iterator[av.VideoFrame]:
    import av

    try:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            yield from container.decode(video=0)
    except av.error.FFmpegError as error:
        raise ValueError(f"{path} could not be loaded with cv.") from error


def _chosen(frames: Iterator[av.VideoFrame], source: Source, wanted: Selection) -> Iterator[av.VideoFrame]:
    taken = 0
    for index, frame in enumerate(_resampled(frames, source.fps, wanted.rate(source)), start=-wanted.skip):
        if index < 0 or index % wanted.every_nth:
            continue
        yield frame
        taken += 1
        if taken == wanted.cap:
            return


def _resampled(frames: Iterator[av.VideoFrame], fps: Fraction, rate: Fraction) -> Iterator[av.VideoFrame]:
    """Repeats or leaves out frames so that `rate` of them make a second."""
    source_step, step = float(1 / fps), float(1 / rate)
    credit = step - source_step
    for frame in frames:
        credit += source_step
        while credit >= step - EPSILON_S:
            yield frame
            credit -= step


def fit(picture: Pixels, width: int, height: int) -> Pixels:
    """Fills the size: the longer side is cut at both ends."""
    import numpy as np
    from PIL import Image, ImageOps

    fitted = ImageOps.fit(Image.fromarray(picture), (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted)


def has_sound(audio: Audio) -> bool:
    import av

    with av.open(str(audio.path)) as container:
        return bool(container.streams.audio)


def sound_format(audio: Audio) -> tuple[int, str, int]:
    """Rate in Hz, layout and number of channels. A layout without a name is the usual one of that many."""
    import av

    usual = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
    with av.open(str(audio.path)) as container:
        context = container.streams.audio[0].codec_context
        channels = context.layout.nb_channels
        layout = usual.get(channels, "stereo")
        return context.sample_rate, layout, av.AudioLayout(layout).nb_channels


def sound(audio: Audio, rate: int, layout: str) -> Iterator[Samples]:
    """In pieces, between the part's start and end."""
    import av

    start = round(audio.start_s * rate)
    end = None if audio.duration_s is None else start + round(audio.duration_s * rate)
    position = 0
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    with av.open(str(audio.path)) as container:
        for frame in container.decode(audio=0):
            for piece in resampler.resample(frame):
                samples = cast("Samples", piece.to_ndarray())
                first, last = max(start - position, 0), None if end is None else max(end - position, 0)
                position += samples.shape[1]
                yield samples[:, first:last]
                if end is not None and position >= end:
                    return
