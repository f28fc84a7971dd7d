"""What a clip is made from: pictures or the frames of a video, each with its place in the clip that is to be made."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.media_open import media_errors, open_media
from wan2gp.handlers.media_probe import Unreadable
from wan2gp.handlers.wan_fit import Fit, read_picture, shaped, size_of
from wan2gp.handlers.wan_values import Pixels

if TYPE_CHECKING:
    import av
    import numpy as np
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from numpy.typing import NDArray
    from PIL import Image

    Picture = NDArray[np.uint8]

Keyed = Iterator[tuple[int, "Picture"]]
"""Places, which rise from 0 to the clip's last, and what is there: RGB, height x width x 3."""
Tick = Callable[[], None]
BT709, BT601 = 1, 5
"""How FFmpeg numbers the colours of high definition and of old television."""
SQUARE = 1.0
USUAL, NEAR = Fraction(25), 0.002
"""Frames per second of a file without times, and how far a file's own word may be off."""


class Scenes(abc.ABC):
    """``count`` source pictures. ``size``: of the first one."""

    count: int
    size: Pixels
    film: bool = False

    @abc.abstractmethod
    def keyed(self, frames: int, fit: Fit) -> Keyed:
        """The pictures that a clip of so many frames shows as they are; the first and the last always are. Raises
        ``TaskFailure``."""


class Stills(Scenes):
    """Picture files."""

    def __init__(self, files: Sequence[Path], labels: Sequence[str]) -> None:
        """Raises :class:`TaskFailure`."""
        self._files = files
        self._labels = labels
        self.count = len(files)
        with _unreadable(labels[0]):
            self.size = size_of(files[0])

    def keyed(self, frames: int, fit: Fit) -> Keyed:
        import numpy as np

        for place, index in places([float(index) for index in range(self.count)], frames):
            with _unreadable(self._labels[index]):
                picture = read_picture(self._files[index], fit)
            yield place, np.asarray(picture)


class Film(Scenes):
    """A video. Every frame is decoded once to know when it is shown, and once more to show it: what a file says of
    itself is often wrong, and thousands of frames do not fit into memory."""

    film = True

    def __init__(self, file: Path, label: str, tick: Tick) -> None:
        """Raises :class:`TaskFailure`, and what ``tick`` does."""
        self.path = file
        self._label = label
        self._times: list[float] = []
        with _unreadable(label), open_media(file) as container:
            stream = container.streams.video[0]
            self._said = stream.average_rate
            self.has_sound = bool(container.streams.audio)
            for frame in _frames(container, stream):
                if not self._times:
                    self.size = _upright_size(frame, stream)
                self._times.append(_time_of(frame, self._times, stream))
                tick()
        self.count = len(self._times)
        if self.count < 2:
            raise TaskFailure("input.bad_params", f"`{label}` has one frame only: there is nothing between")

    @property
    def rate(self) -> Fraction:
        """Frames per second, on average: as the file says it, unless its frames say otherwise."""
        measured = (self.count - 1) / self.span_s if self.span_s > 0 else float(USUAL)
        if self._said is not None and abs(float(self._said) - measured) <= NEAR * measured:
            return self._said
        return Fraction(measured).limit_denominator(1001)

    @property
    def span_s(self) -> float:
        """From its first frame to its last, seconds."""
        return self._times[-1] - self._times[0]

    @property
    def start_s(self) -> float:
        """When its first frame is shown, of the file's own clock."""
        return self._times[0]

    def keyed(self, frames: int, fit: Fit) -> Keyed:
        wanted = {index: place for place, index in places(self._times, frames)}
        with _unreadable(self._label), open_media(self.path) as container:
            stream = container.streams.video[0]
            for index, frame in enumerate(_frames(container, stream)):
                if index in wanted:
                    yield wanted[index], _fitted(frame, stream, fit)


def places(times: Sequence[float], frames: int) -> list[tuple[int, int]]:
    """For a clip of ``frames`` frames: place in the clip and index of the source, both rising, from the first to the
    last. With fewer frames than sources those nearest to the places are taken; with more, all are there, each as near
    to its time as can be.

    ``times`` rise. Two sources at least, and two frames.
    """
    last, count = frames - 1, len(times)
    span = times[-1] - times[0]
    wished = [(time - times[0]) / span * last if span > 0 else last * at / (count - 1) for at, time in enumerate(times)]
    if frames < count:
        return _thinned(wished, frames)
    found: list[tuple[int, int]] = []
    for index, wish in enumerate(wished):
        # Behind the one before, and with room for all that come after.
        lowest, highest = (found[-1][0] + 1 if found else 0), last - (count - 1 - index)
        found.append((min(max(round(wish), lowest), highest), index))
    found[-1] = (last, count - 1)
    return found


def _thinned(wished: Sequence[float], frames: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    index, count = 0, len(wished)
    for place in range(frames):
        highest = count - (frames - place)
        while index < highest and abs(wished[index + 1] - place) <= abs(wished[index] - place):
            index += 1
        found.append((place, index))
        index += 1
    found[-1] = (frames - 1, count - 1)
    return found


# --- frames ----------------------------------------------------------------------------------------------------------


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Frame by frame; a hole in the file ends them only when nothing came before it."""
    stream.thread_type = "AUTO"
    count = 0
    try:
        for frame in container.decode(stream):
            count += 1
            yield frame
    except media_errors():
        if not count:
            raise


def _time_of(frame: av.VideoFrame, before: Sequence[float], stream: VideoStream) -> float:
    """Seconds; later than the one before, whatever the file says."""
    rate = stream.average_rate or stream.guessed_rate
    step = 1 / float(rate) if rate else 0.04
    if frame.pts is None:
        return before[-1] + step if before else 0.0
    return frame.time if not before or frame.time > before[-1] else before[-1] + step / 1000


def _turn(frame: av.VideoFrame) -> int:
    return round(frame.rotation / 90) * 90 % 360


def _square(frame: av.VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """Width and height with square pixels, before the turn: the longer side of a pixel counts."""
    aspect = stream.sample_aspect_ratio
    wide = float(aspect) if aspect and 0.1 < aspect < 10 else SQUARE
    return max(1, round(frame.width * max(wide, SQUARE))), max(1, round(frame.height / min(wide, SQUARE)))


def _upright_size(frame: av.VideoFrame, stream: VideoStream) -> Pixels:
    width, height = _square(frame, stream)
    return Pixels(height, width) if _turn(frame) in (90, 270) else Pixels(width, height)


def _fitted(frame: av.VideoFrame, stream: VideoStream, fit: Fit) -> Picture:
    import numpy as np

    width, height = _square(frame, stream)
    # PyAV heeds the colours of a frame only when told of a change; to RGB the second means nothing.
    colors = (BT709, BT601) if frame.colorspace == BT709 else (None, None)
    scaled = frame.reformat(width, height, "rgb24", src_colorspace=colors[0], dst_colorspace=colors[1])
    image, turn = _image(scaled), _turn(frame)
    return np.asarray(shaped(image.rotate(turn, expand=True) if turn else image, fit))


def _image(frame: av.VideoFrame) -> Image.Image:
    from PIL import Image

    plane = frame.planes[0]
    return Image.frombytes("RGB", (frame.width, frame.height), bytes(plane), "raw", "RGB", plane.line_size, 1)


@contextlib.contextmanager
def _unreadable(label: str) -> Iterator[None]:
    """What cannot be decoded is the row's fault, and said by its name for it."""
    wrong: tuple[type[Exception], ...] = (Unreadable, *media_errors())
    try:
        yield
    except wrong as error:
        raise TaskFailure("input.corrupt", f"the file of `{label}` cannot be decoded: {error}") from error
