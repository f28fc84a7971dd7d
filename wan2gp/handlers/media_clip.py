"""A clip's file: its frames encoded one by one, and the sound of the video that it is made from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan2gp.handlers.media_open import media_errors, open_media

if TYPE_CHECKING:
    import av
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.video.stream import VideoStream

    from wan2gp.handlers.media_scenes import Picture

LOSSY, LOSSLESS = {"crf": "12", "preset": "medium"}, {"qp": "0", "preset": "fast"}
BT709, TV_RANGE = 1, 1
"""FFmpeg's numbers."""
MP4 = {"movflags": "faststart"}
SOUND_HZ, SOUND_BITS = 48_000, 192_000


def write_clip(
    target: Path, frames: Iterator[Picture], rate: Fraction, lossless: bool, written: Callable[[int], None]
) -> int:
    """The number of frames. ``written`` is called with it after each, and may raise to stop."""
    import av

    count = 0
    with av.open(str(target), "w", format="mp4", options=MP4) as output:
        stream: VideoStream | None = None
        for picture in frames:
            stream = stream or _begin(output, picture, rate, lossless)
            frame = _frame(picture, lossless)
            frame.pts, frame.time_base = count, 1 / rate
            output.mux(stream.encode(frame))
            count += 1
            written(count)
        if stream is not None:
            output.mux(stream.encode(None))
    return count


def _begin(output: OutputContainer, picture: Picture, rate: Fraction, lossless: bool) -> VideoStream:
    stream: VideoStream
    if lossless:
        stream = output.add_stream("libx264rgb", rate=rate, options=LOSSLESS)
        stream.pix_fmt = "rgb24"
    else:
        stream = output.add_stream("libx264", rate=rate, options=LOSSY)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = TV_RANGE
    stream.height, stream.width = picture.shape[:2]
    stream.codec_context.time_base = 1 / rate
    return stream


def _frame(picture: Picture, lossless: bool) -> av.VideoFrame:
    import av
    import numpy as np
    from av.video.reformatter import Colorspace

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return frame if lossless else frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)


def add_sound(silent: Path, film: Path, target: Path, start_s: float, tick: Callable[[], None]) -> str | None:
    """Write ``silent`` with the sound of ``film`` from ``start_s`` on, as long as the clip is, to ``target``. Returns
    why there is none, or None. Raises what ``tick`` does."""
    try:
        with open_media(film) as source, open_media(silent) as clip:
            found = [stream for stream in source.streams.audio if getattr(stream, "codec_context", None) is not None]
            if not found:
                return "" if not source.streams.audio else "it cannot be decoded"
            _mux(clip, source, found[0], target, start_s, tick)
    except media_errors() as error:
        target.unlink(missing_ok=True)
        return f"it cannot be decoded: {error}"
    return None


def _mux(
    clip: InputContainer,
    source: InputContainer,
    heard: AudioStream,
    target: Path,
    start_s: float,
    tick: Callable[[], None],
) -> None:
    """Both by their times, so that nothing waits in memory."""
    import av

    video = clip.streams.video[0]
    length_s = float(video.duration * video.time_base) if video.duration and video.time_base else 0.0
    with av.open(str(target), "w", format="mp4", options=MP4) as output:
        shown = output.add_stream_from_template(video)
        layout = "stereo" if heard.channels > 1 else "mono"
        sound = output.add_stream("aac", rate=SOUND_HZ, layout=layout, bit_rate=SOUND_BITS)
        pictures = _packets(clip, video)
        waiting = next(pictures, None)
        for packet in _sound(source, heard, sound, start_s, length_s):
            tick()
            while waiting is not None and _time(waiting) <= _time(packet):
                waiting.stream = shown
                output.mux(waiting)
                waiting = next(pictures, None)
            output.mux(packet)
        while waiting is not None:
            waiting.stream = shown
            output.mux(waiting)
            waiting = next(pictures, None)


def _packets(clip: InputContainer, video: VideoStream) -> Iterator[Any]:
    return (packet for packet in clip.demux(video) if packet.dts is not None)


def _time(packet: Any) -> float:
    stamp = packet.dts if packet.dts is not None else packet.pts or 0
    return float(stamp * packet.time_base)


def _sound(
    source: InputContainer, heard: AudioStream, made: AudioStream, start_s: float, length_s: float
) -> Iterator[Any]:
    """Packets of the new sound. What is before the start is left out; what begins later keeps its distance."""
    at: int | None = None
    most = round(length_s * SOUND_HZ)
    for frame in _samples(source, heard, made, start_s):
        if at is None:
            at = 0 if frame.time is None else max(0, round((frame.time - start_s) * SOUND_HZ))
        if at + frame.samples > most:
            break
        frame.pts, frame.time_base = at, Fraction(1, SOUND_HZ)
        at += frame.samples
        yield from made.encode(frame)
    if at is not None:
        yield from made.encode(None)


def _samples(source: InputContainer, heard: AudioStream, made: AudioStream, start_s: float) -> Iterator[Any]:
    """What can be decoded of it from the start on; a hole ends it."""
    from av.audio.resampler import AudioResampler

    resampler = AudioResampler(format="fltp", layout=made.layout, rate=SOUND_HZ)
    with contextlib.suppress(*media_errors()):
        for frame in source.decode(heard):
            if frame.time is None or frame.time + frame.samples / frame.sample_rate > start_s:
                yield from resampler.resample(frame)
        yield from resampler.resample(None)
