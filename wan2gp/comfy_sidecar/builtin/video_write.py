"""Encoding pictures with PyAV and Pillow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wan2gp.comfy_sidecar.builtin.formats import BT709, Colours, Recipe

if TYPE_CHECKING:
    import av
    from av import VideoStream
    from av.container import OutputContainer

    from wan2gp.comfy_sidecar.builtin.media import Pixels

TV_RANGE, PC_RANGE = 1, 2
"""FFmpeg's numbers."""


def encode(
    path: Path,
    pictures: Iterator[Pixels],
    rate: Fraction,
    recipe: Recipe,
    *,
    texts: dict[str, Any],
    written: Callable[[], None],
) -> int:
    """Writes the pictures and returns their number. `written` is called after each and may raise to stop."""
    count = 0
    with open_output(path, texts, "image2" if recipe.many_files else None) as container:
        stream: VideoStream | None = None
        try:
            for picture in map(even, pictures):
                if stream is None:
                    stream = _add_stream(container, picture, rate, recipe)
                frame = _frame_of(picture, recipe)
                frame.pts, frame.time_base = count, 1 / rate
                container.mux(stream.encode(frame))
                count += 1
                written()
        finally:  # an interrupted video is short but whole, as ffmpeg leaves it when its input ends
            if stream is not None:
                container.mux(stream.encode(None))
    return count


def _add_stream(container: OutputContainer, picture: Pixels, rate: Fraction, recipe: Recipe) -> VideoStream:
    options = dict(recipe.options)
    tag = options.pop("tag", None)
    stream = cast("VideoStream", container.add_stream(recipe.codec, rate=rate, options=options))
    stream.height, stream.width = picture.shape[:2]
    stream.pix_fmt = recipe.pixel_format
    if tag is not None:
        stream.codec_context.codec_tag = tag
    if recipe.colours is not None:
        _say_colours(stream, recipe.colours)
    return stream


def _say_colours(stream: VideoStream, colours: Colours) -> None:
    context = stream.codec_context
    context.colorspace, context.color_primaries = colours.matrix, colours.primaries
    context.color_trc = colours.transfer
    context.color_range = PC_RANGE if colours.full_range else TV_RANGE


def _frame_of(picture: Pixels, recipe: Recipe) -> av.VideoFrame:
    import av
    from av.video.reformatter import Colorspace

    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    if recipe.colours is BT709:
        return frame.reformat(format=recipe.pixel_format, dst_colorspace=Colorspace.ITU709)
    return frame.reformat(format=recipe.pixel_format)


def open_output(path: Path, texts: dict[str, Any], muxer: str | None = None) -> OutputContainer:
    """`texts` become the file's metadata, as JSON."""
    import av

    options = {"movflags": "use_metadata_tags"} if path.suffix in (".mp4", ".mov") else {}
    container = av.open(str(path), "w", format=muxer, options=options)
    container.metadata.update({key: json.dumps(text) for key, text in texts.items()})
    return container


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
