"""Encoding with PyAV and Pillow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wan2gp.comfy_sidecar.builtin.media import Audio
from wan2gp.comfy_sidecar.builtin.video_read import sound

if TYPE_CHECKING:
    from av import AudioStream, VideoStream
    from av.container import OutputContainer

    from wan2gp.comfy_sidecar.builtin.media import Pixels
    from wan2gp.comfy_sidecar.builtin.video_read import Samples

AUDIO_RATE_HZ = 48_000
BT709 = 1
"""The colours a player expects; FFmpeg's number for them."""


@dataclass(frozen=True)
class Recipe:
    """One entry of VHS_VideoCombine's `format`. `pixel_formats`: the first is the default."""

    suffix: str
    codec: str
    pixel_formats: tuple[str, ...]
    audio_codec: str
    crf: int | None = None
    options: dict[str, str] = field(default_factory=dict)


def recipes() -> dict[str, Recipe]:
    """The formats this engine can write beside GIF and WebP."""
    fast_vp9 = {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
    return {
        "video/h264-mp4": Recipe("mp4", "libx264", ("yuv420p", "yuv420p10le"), "aac", 19),
        "video/h265-mp4": Recipe(
            "mp4", "libx265", ("yuv420p10le", "yuv420p"), "aac", 22, {"x265-params": "log-level=error"}
        ),
        "video/webm": Recipe("webm", "libvpx-vp9", ("yuv420p", "yuva420p"), "libopus", 20, fast_vp9),
        "video/ProRes": Recipe("mov", "prores_ks", ("yuv422p10le",), "pcm_s16le", None, {"profile": "3"}),
        "video/ffv1-mkv": Recipe("mkv", "ffv1", ("bgra", "yuv420p", "yuv444p"), "flac", None, {"level": "3"}),
    }


def encode(
    path: Path,
    pictures: Iterator[Pixels],
    rate: Fraction,
    recipe: Recipe,
    *,
    pixel_format: str,
    crf: int | None,
    texts: dict[str, Any],
    written: Callable[[], None],
) -> int:
    """Writes the pictures and returns their number. `written` is called after each and may raise to stop."""
    import av
    from av.video.reformatter import Colorspace

    options = dict(recipe.options) | ({} if crf is None else {"crf": str(crf)})
    count = 0
    with open_output(path, texts) as container:
        stream: VideoStream | None = None
        try:
            for picture in map(even, pictures):
                if stream is None:
                    added = container.add_stream(recipe.codec, rate=rate, options=options)
                    stream = cast("VideoStream", added)
                    stream.height, stream.width = picture.shape[:2]
                    stream.pix_fmt = pixel_format
                    context = stream.codec_context
                    context.colorspace = context.color_primaries = context.color_trc = BT709
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame = frame.reformat(format=pixel_format, dst_colorspace=Colorspace.ITU709)
                frame.pts, frame.time_base = count, 1 / rate
                container.mux(stream.encode(frame))
                count += 1
                written()
        finally:  # an interrupted video is short but whole, as ffmpeg leaves it when its input ends
            if stream is not None:
                container.mux(stream.encode(None))
    return count


def open_output(path: Path, texts: dict[str, Any]) -> OutputContainer:
    """`texts` become the file's metadata."""
    import av

    options = {"movflags": "use_metadata_tags"} if path.suffix in (".mp4", ".mov") else {}
    container = av.open(str(path), "w", options=options)
    container.metadata.update({key: json.dumps(text) for key, text in texts.items()})
    return container


@dataclass(frozen=True)
class SoundTrack:
    """`shortest`: the film ends with its sound; otherwise silence fills the rest."""

    audio: Audio
    codec: str
    seconds: float
    shortest: bool = False


def add_sound(silent: Path, path: Path, track: SoundTrack, texts: dict[str, Any]) -> None:
    """Copies the video of `silent` and puts the sound beside it."""
    import av

    with av.open(str(silent)) as source, open_output(path, texts) as container:
        video_in = source.streams.video[0]
        video = container.add_stream_from_template(video_in)
        added = container.add_stream(track.codec, rate=AUDIO_RATE_HZ, layout="stereo")
        end_s = _write_sound(container, cast("AudioStream", added), track)
        for packet in source.demux(video_in):
            if packet.dts is None or (packet.pts or 0) * (packet.time_base or 0) >= end_s:
                continue
            packet.stream = video
            container.mux(packet)


def _write_sound(container: OutputContainer, stream: AudioStream, track: SoundTrack) -> float:
    """Returns the length in seconds."""
    import av

    position = 0
    wanted = round(track.seconds * AUDIO_RATE_HZ)
    for samples in _at_most(sound(track.audio, AUDIO_RATE_HZ), wanted, fill=not track.shortest):
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = AUDIO_RATE_HZ, position, Fraction(1, AUDIO_RATE_HZ)
        position += samples.shape[1]
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    return position / AUDIO_RATE_HZ


def _at_most(pieces: Iterator[Samples], total: int, *, fill: bool) -> Iterator[Samples]:
    import numpy as np

    left = total
    for piece in pieces:
        piece = piece[:, :left]
        if piece.shape[1]:
            left -= piece.shape[1]
            yield np.ascontiguousarray(piece)
        if left <= 0:
            return
    while fill and left > 0:
        size = min(left, AUDIO_RATE_HZ)
        left -= size
        yield np.zeros((2, size), np.float32)


def even(picture: Pixels) -> Pixels:
    """Most codecs want even sides: a last row or column is repeated."""
    import numpy as np

    height, width = picture.shape[:2]
    if height % 2 or width % 2:
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(picture)


def write_animation(path: Path, pictures: Iterator[Pixels], frame_ms: int, loop_count: int, lossless: bool) -> None:
    """GIF or WebP by the file's suffix; `loop_count` 0 is for ever."""
    from PIL import Image

    images = (Image.fromarray(picture) for picture in pictures)
    first = next(images)
    extra: dict[str, Any] = {"lossless": lossless} if path.suffix == ".webp" else {"disposal": 2}
    first.save(path, save_all=True, append_images=images, duration=frame_ms, loop=loop_count, **extra)


def write_png(path: Path, picture: Pixels, texts: dict[str, Any]) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, json.dumps(text))
    Image.fromarray(picture).save(path, pnginfo=info, compress_level=4)
