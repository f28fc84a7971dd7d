"""The poster of a video: a still picture of it, for pages that show many. Libraries are imported at the first one.

Usable by every handler: :func:`add_posters` takes what a run made and gives it back with a poster for each video. A
poster is a courtesy: one that cannot be made is a warning, and never the end of a task that has succeeded.

Only videos get one. A picture that moves (GIF, WebP, APNG) is shown by whatever shows a picture, by itself.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from wan2gp.handlers.media_open import media_errors, open_media
from wan2gp.handlers.media_probe import sha256_of
from wan2gp.protocol import Artifact

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from PIL import Image

KIND = "poster"
LONGEST_SIDE = 1280
"""Pixels. A smaller video keeps its size."""
QUALITY = 85
FRAMES_SEARCHED = 240
"""So many frames are looked at for one that is not black: ten seconds of film."""
LARGEST_PIXELS = 150_000_000
"""A larger frame is not decoded again: its decoder holds several."""
SAMPLE_SIDE = 48
DARK, LIT_SHARE = 32, 0.02
"""A pixel up to this grey, 0..255, is dark; a frame with less than this share of lit ones is black."""
BT709, BT601 = 1, 5
"""How FFmpeg numbers the colours of high definition and of old television."""
MOST_POSTERS = 100
"""In one task."""
SUFFIX = ".poster.jpg"
NAME_BYTES = 200


class NoPoster(Exception):
    """There is none; the message says why, for a row's warning."""


@dataclass(frozen=True)
class Poster:
    """A JPEG that was made; sizes in pixels."""

    path: Path
    width: int
    height: int


def add_posters(
    work_dir: Path, artifacts: Sequence[Artifact], cancelled: Callable[[], bool] = lambda: False
) -> tuple[tuple[Artifact, ...], tuple[str, ...]]:
    """``artifacts``, each video naming its poster, and the posters behind them; and what there is to warn of.

    Posters lie beside their videos, below ``work_dir``. A cancelled task gets no more of them. Never raises.
    """
    named: list[Artifact] = []
    posters: list[Artifact] = []
    warnings: list[str] = []
    left_out = 0
    taken = {artifact.name.casefold() for artifact in artifacts}
    for artifact in artifacts:
        poster = None
        if has_poster(artifact) and len(posters) >= MOST_POSTERS:
            left_out += 1
        elif has_poster(artifact) and not cancelled():
            try:
                poster = _poster_of(work_dir, artifact, taken)
            except NoPoster as error:
                warnings.append(f"no poster of {artifact.name}: {error}")
        if poster is not None:
            posters.append(poster)
            taken.add(poster.name.casefold())
        named.append(msgspec.structs.replace(artifact, poster=poster.name if poster else None))
    if left_out:
        warnings.append(f"no poster of {left_out} of the videos: a task gets {MOST_POSTERS} at most")
    return (*named, *posters), tuple(warnings)


def has_poster(artifact: Artifact) -> bool:
    """Whether it is of the kind that gets one: not a sound with a picture of its cover, for example."""
    return artifact.kind == "video" and artifact.mime.startswith("video/")


def make_poster(video: Path, target: Path) -> Poster:
    """Write the first frame of ``video`` that is not black, or its first, to ``target``. Raises :class:`NoPoster`.

    In bounded memory: a few frames as their decoder needs them, and the picture in the size that it gets.
    """
    try:
        with open_media(video) as container:
            if not container.streams.video:
                raise NoPoster("it has no video stream")
            picture = _picture(container, container.streams.video[0])
            picture.save(target, "JPEG", quality=QUALITY)
    except media_errors() as error:
        target.unlink(missing_ok=True)
        text = getattr(error, "strerror", None) or str(error)
        raise NoPoster(f"{type(error).__name__}: {text}" if text else type(error).__name__) from error
    return Poster(target, picture.width, picture.height)


# --- one artifact --------------------------------------------------------------------------------------------------


def _poster_of(work_dir: Path, artifact: Artifact, taken: set[str]) -> Artifact:
    video = work_dir / artifact.path
    name = next(name for name in _names(artifact.name) if name.casefold() not in taken and _is_free(video, name))
    poster = make_poster(video, video.with_name(name))
    try:
        size, digest = poster.path.stat().st_size, sha256_of(poster.path)
    except OSError as error:
        raise NoPoster(str(error.strerror)) from error
    return Artifact(
        path=str(poster.path.relative_to(work_dir)),
        name=name,
        kind=KIND,
        mime="image/jpeg",
        bytes=size,
        sha256=digest,
        width=poster.width,
        height=poster.height,
        node_id=artifact.node_id,
    )


def _names(video: str) -> Iterator[str]:
    stem = os.path.splitext(video)[0].encode()[:NAME_BYTES].decode(errors="ignore")
    yield f"{stem}{SUFFIX}"
    yield from (f"{stem}-{number}{SUFFIX}" for number in itertools.count(2))


def _is_free(video: Path, name: str) -> bool:
    return not os.path.lexists(video.with_name(name))


# --- one frame -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shape:
    """What a frame becomes; sizes in pixels, before the turn."""

    width: int
    height: int
    turn: int
    """Degrees, against the clock."""


def _picture(container: InputContainer, stream: VideoStream) -> Image.Image:
    if stream.width * stream.height > LARGEST_PIXELS:
        raise NoPoster(f"its frames of {stream.width} x {stream.height} are too large")
    stream.thread_type = "SLICE"  # threads by frame hold a frame each
    first: Image.Image | None = None
    for frame in itertools.islice(_frames(container, stream), FRAMES_SEARCHED):
        if not _is_black(frame):
            return _still(frame, stream)
        first = first or _still(frame, stream)
    if first is None:
        raise NoPoster("it has no frame that can be decoded")
    return first


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Frame by frame; a hole in the file ends them only when nothing came before it."""
    import av

    count = 0
    try:
        for frame in container.decode(stream):
            count += 1
            yield frame
    except av.error.FFmpegError:
        if not count:
            raise


def _is_black(frame: av.VideoFrame) -> bool:
    small = _image(frame.reformat(SAMPLE_SIDE, SAMPLE_SIDE, "gray"), "L")
    return sum(small.histogram()[DARK + 1 :]) < LIT_SHARE * SAMPLE_SIDE * SAMPLE_SIDE


def _still(frame: av.VideoFrame, stream: VideoStream) -> Image.Image:
    shape = _shape(frame, stream)
    # Older releases of PyAV heed the colours of a frame only when told of a change; to RGB the second means nothing.
    colors = (BT709, BT601) if frame.colorspace == BT709 else (None, None)
    scaled = frame.reformat(shape.width, shape.height, "rgb24", src_colorspace=colors[0], dst_colorspace=colors[1])
    image = _image(scaled, "RGB")
    return image.rotate(shape.turn, expand=True) if shape.turn else image


def _image(frame: av.VideoFrame, mode: str) -> Image.Image:
    """A copy, without the padding that lines have in a frame."""
    from PIL import Image

    plane = frame.planes[0]
    return Image.frombytes(mode, (frame.width, frame.height), bytes(plane), "raw", mode, plane.line_size, 1)


def _shape(frame: av.VideoFrame, stream: VideoStream) -> _Shape:
    """As a player shows it: square pixels, upright."""
    aspect = stream.sample_aspect_ratio
    wide = float(aspect) if aspect and 0.1 < aspect < 10 else 1.0
    width, height = frame.width * max(wide, 1.0), frame.height / min(wide, 1.0)
    scale = min(1.0, LONGEST_SIDE / max(width, height))
    turn = round(frame.rotation / 90) * 90 % 360
    return _Shape(max(1, round(width * scale)), max(1, round(height * scale)), turn)
