"""How large a task's media may be, and whether they are: a small file can hold a picture that no memory takes.

What a file says of itself is held against the limits first, then what decoding it shows: the pictures that stand at
key frames, the time stamps, the number of packets. Only part of a long film is decoded, so the engine behind needs a
limit of memory all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from wan2gp.handlers.media_open import PICTURE_ERRORS, media_errors

if TYPE_CHECKING:
    import av
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from PIL import Image

MOST_STREAMS = 64
"""In one file: pictures, sounds, subtitles and attachments together."""
MOST_PICTURES = 10_000
"""In an animated picture or a document of several pages."""
ANIMATION_PIXELS = 8
"""All frames of an animated picture together, in times of the limit for one: loaders keep them all in memory."""
KEY_FRAMES = 32
"""So many of a film's key frames are decoded, where its size may change."""
MOST_CHANNELS, FASTEST_HZ = 64, 1_536_000


class OverLimit(Exception):
    """The file is larger than the worker takes; the message says in what, and which setting it is."""


@dataclass(frozen=True)
class MediaLimits:
    """0 is no limit."""

    max_pixels: int = 134_217_728
    """Of one picture or frame: 16384 x 8192."""
    max_frames: int = 500_000
    max_duration_s: float = 14_400.0
    max_packets: int = 25_000_000
    """Of all streams together: a minute or two of looking. Four hours of the shortest sound packets are 6 million."""

    def size(self, width: int, height: int) -> None:
        """Raises :class:`OverLimit`, as the others do."""
        if self.max_pixels and width * height > self.max_pixels:
            raise OverLimit(f"{width} x {height} pixels, the limit is {self.max_pixels} (inputs.max_pixels)")

    def frames(self, count: int) -> None:
        if self.max_frames and count > self.max_frames:
            raise OverLimit(f"more than {self.max_frames} frames (inputs.max_frames)")

    def duration(self, seconds: float) -> None:
        if self.max_duration_s and seconds > self.max_duration_s:
            raise OverLimit(f"{seconds:.0f} s long, the limit is {self.max_duration_s:g} s (inputs.max_duration_s)")

    def packets(self, count: int) -> None:
        if self.max_packets and count > self.max_packets:
            raise OverLimit(f"more than {self.max_packets} packets of picture, sound and text")


NO_LIMITS = MediaLimits(0, 0, 0.0, 0)


# --- pictures ------------------------------------------------------------------------------------------------------


def check_picture(image: Image.Image, limits: MediaLimits) -> None:
    """All pages or frames, in order. Of one that breaks off the rest is not looked at."""
    limits.size(*image.size)
    pixels = count = 0
    for width, height in _sizes(image):
        limits.size(width, height)
        count, pixels = count + 1, pixels + width * height
        if count > MOST_PICTURES:
            raise OverLimit(f"more than {MOST_PICTURES} pictures in one")
        if count > 1 and limits.max_pixels and pixels > ANIMATION_PIXELS * limits.max_pixels:
            most = ANIMATION_PIXELS * limits.max_pixels
            raise OverLimit(f"more than {most} pixels in all of its pictures ({ANIMATION_PIXELS} x inputs.max_pixels)")
        limits.frames(count)


def _sizes(image: Image.Image) -> Iterator[tuple[int, int]]:
    yield image.size
    index = 0
    while True:
        index += 1
        try:
            image.seek(index)
        except PICTURE_ERRORS:
            return
        yield image.size


# --- films and sounds ----------------------------------------------------------------------------------------------


def check_declared(container: InputContainer, limits: MediaLimits) -> None:
    """What the file says of itself."""
    import av

    if len(container.streams) > MOST_STREAMS:
        raise OverLimit(f"{len(container.streams)} streams, the limit is {MOST_STREAMS}")
    for video in filter(_has_decoder, container.streams.video):
        limits.size(video.width, video.height)
        limits.frames(video.frames)
    for audio in filter(_has_decoder, container.streams.audio):
        if audio.channels > MOST_CHANNELS or audio.rate > FASTEST_HZ:
            raise OverLimit(f"sound of {audio.channels} channels at {audio.rate} Hz")
    limits.duration((container.duration or 0) / av.time_base)


def _has_decoder(stream: VideoStream | AudioStream) -> bool:
    """Without one, nobody can open it either, and PyAV knows no size of it."""
    return getattr(stream, "codec_context", None) is not None


def check_film(container: InputContainer, limits: MediaLimits) -> None:
    """What it turns out to be. One that breaks off is judged by what is there."""
    keys = dict.fromkeys((stream.index for stream in container.streams.video), 0)
    try:
        for packet in _measured(container, limits):
            if packet.is_keyframe and keys.get(packet.stream.index, KEY_FRAMES) < KEY_FRAMES:
                keys[packet.stream.index] += 1
                _check_key_frame(packet, limits)
    except media_errors():
        return


def check_sound(container: InputContainer, limits: MediaLimits) -> None:
    """The same for a file of which only the sound counts; nothing is decoded."""
    try:
        for _ in _measured(container, limits):
            pass
    except media_errors():
        return


def _measured(container: InputContainer, limits: MediaLimits) -> Iterator[av.Packet[Any]]:
    """Every packet, until one stream has too many pictures, the time gets too long, or there is no end of them.

    Time bounds neither what has none, such as subtitles and data, nor what stands still.
    """
    counts: dict[int, int] = {}
    first_s: float | None = None
    for count, packet in enumerate(container.demux(), 1):
        limits.packets(count)
        if packet.size == 0:
            continue
        if packet.pts is not None and packet.time_base is not None:
            end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            first_s = min(end_s, end_s if first_s is None else first_s)
            limits.duration(end_s - first_s)
        if packet.stream.type == "video":
            index = packet.stream.index
            counts[index] = counts.get(index, 0) + 1
            limits.frames(counts[index])
        yield packet


def _check_key_frame(packet: av.Packet[Any], limits: MediaLimits) -> None:
    """Decoded alone: the decoder is emptied and begins anew behind it.

    FFmpeg's own ``max_pixels`` is left alone: what it refuses looks like any other frame that is spoilt. Without it
    one frame may take the memory of 2^28 pixels, which is as much as FFmpeg ever allows.
    """
    stream: VideoStream = packet.stream
    codec = stream.codec_context
    try:
        frames = [*codec.decode(packet), *codec.decode(None)]
        codec.flush_buffers()
    except media_errors():
        return
    for frame in islice(frames, 8):
        limits.size(frame.width, frame.height)
