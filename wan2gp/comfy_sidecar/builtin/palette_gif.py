"""A GIF with one palette for all its pictures, by FFmpeg's filters.

The pictures come twice, for the palette and for the file, so that they need not be kept between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

from wan2gp.comfy_sidecar.builtin.video_write import even

if TYPE_CHECKING:
    import av
    from av import VideoStream
    from av.filter.context import FilterContext

    from wan2gp.comfy_sidecar.builtin.media import Pixels


def write_palette_gif(
    path: Path,
    for_palette: Iterator[Pixels],
    pictures: Iterator[Pixels],
    rate: Fraction,
    dither: str,
    written: Callable[[], None],
) -> int:
    """Returns the number of pictures. `written` is called after each and may raise to stop."""
    import av

    count = 0
    palette = _palette(_frames(for_palette, rate))
    with av.open(str(path), "w") as container:
        stream: VideoStream | None = None
        try:
            for frame in _painted(_frames(pictures, rate), palette, dither):
                if stream is None:
                    stream = container.add_stream("gif", rate=rate)
                    stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "pal8"
                frame.pts, frame.time_base = count, 1 / rate
                container.mux(stream.encode(frame))
                count += 1
                written()
        finally:  # as with any video, an interrupted one is short but whole
            if stream is not None:
                container.mux(stream.encode(None))
    return count


def _frames(pictures: Iterator[Pixels], rate: Fraction) -> Iterator[av.VideoFrame]:
    import av

    for index, picture in enumerate(map(even, pictures)):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = index, 1 / rate
        yield frame


def _palette(frames: Iterator[av.VideoFrame]) -> av.VideoFrame:
    import av

    graph = av.filter.Graph()
    first = next(frames)
    source = _source(graph, first)
    options = "reserve_transparent=on:transparency_color=ffffff"
    graph.link_nodes(source, graph.add("palettegen", options), graph.add("buffersink")).configure()
    source.push(first)
    for frame in frames:
        source.push(frame)
    source.push(None)
    return cast("av.VideoFrame", graph.pull())


def _painted(frames: Iterator[av.VideoFrame], palette: av.VideoFrame, dither: str) -> Iterator[av.VideoFrame]:
    import av

    graph = av.filter.Graph()
    first = next(frames)
    palette.pts, palette.time_base = 0, first.time_base
    film, colours = _source(graph, first), _source(graph, palette)
    user, sink = graph.add("paletteuse", f"dither={dither}"), graph.add("buffersink")
    film.link_to(user, 0, 0)
    colours.link_to(user, 0, 1)
    user.link_to(sink)
    graph.configure()
    colours.push(palette)
    colours.push(None)
    film.push(first)
    yield from _pulled(graph)
    for frame in frames:
        film.push(frame)
        yield from _pulled(graph)
    film.push(None)
    yield from _pulled(graph)


def _source(graph: av.filter.Graph, frame: av.VideoFrame) -> FilterContext:
    return graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)


def _pulled(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    """What the graph has ready: none yet, or none any more."""
    import av

    while True:
        try:
            yield cast("av.VideoFrame", graph.pull())
        except (av.error.BlockingIOError, av.error.EOFError):
            return
