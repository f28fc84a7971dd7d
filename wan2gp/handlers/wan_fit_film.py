"""A task's films and sounds as the engine gets them: decoded and written anew, films in the size that is made.

A film keeps its pictures per second and its sound. Where it breaks off, what came before is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan2gp.handlers.media_open import media_errors, open_media
from wan2gp.handlers.media_probe import Unreadable
from wan2gp.handlers.wan_fit import PAD, STRETCH, Fit, reason_of

if TYPE_CHECKING:
    import av
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.filter import Graph
    from av.video.stream import VideoStream

Tick = Callable[[], None]
"""Called now and then; may raise, when the work is to end."""
PICTURES, MASKS = {"crf": "8", "preset": "veryfast"}, {"crf": "2", "preset": "veryfast"}
SLOWEST, FASTEST, USUAL = Fraction(1), Fraction(240), Fraction(25)
"""Pictures per second; the last where a file does not say."""
SOUND_HZ = 48_000
MOST_SOUND_S = 700.0
"""Longer than any video that can be asked for; what comes after it is of no use to the engine."""
TICK_FRAMES = 8


@dataclass(frozen=True)
class Film:
    """What was written. ``fps``: pictures per second."""

    frames: int
    fps: float


def fit_film(
    source: Path, target: Path, fit: Fit, tick: Tick, *, mask: bool = False, most: Callable[[float], int] | None = None
) -> Film:
    """Write ``source`` to ``target`` as MP4. ``most``: from its pictures per second, how many of them are taken.

    Raises :class:`~wan2gp.handlers.media_probe.Unreadable`, and what ``tick`` does.
    """
    import av

    try:
        with open_media(source) as container, av.open(str(target), "w", format="mp4") as output:
            if not container.streams.video:
                raise Unreadable("it has no video stream")
            return _Copy(container, output, fit, tick, mask, most).run()
    except media_errors() as error:
        raise Unreadable(reason_of(error)) from error


def fit_sound(source: Path, target: Path, tick: Tick) -> None:
    """Write the sound of ``source`` to ``target`` as WAV. Raises as :func:`fit_film` does."""
    import av

    try:
        with open_media(source) as container, av.open(str(target), "w", format="wav") as output:
            if not container.streams.audio:
                raise Unreadable("it has no sound")
            stream = container.streams.audio[0]
            stereo = stream.channels > 1
            made = output.add_stream("pcm_s16le", rate=stream.rate, layout="stereo" if stereo else "mono")
            if not _write_sound(container, stream, output, made, tick):
                raise Unreadable("its sound is empty")
    except media_errors() as error:
        raise Unreadable(reason_of(error)) from error


def _write_sound(
    container: InputContainer, stream: AudioStream, output: OutputContainer, made: AudioStream, tick: Tick
) -> int:
    """Samples written."""
    from av.audio.resampler import AudioResampler

    resampler = AudioResampler(format="s16", layout=made.layout, rate=made.rate)
    count, samples = 0, 0
    for frame in _until_broken(container.decode(stream)):
        count += 1
        if count % TICK_FRAMES == 0:
            tick()
        if samples > MOST_SOUND_S * made.rate:
            break
        for part in resampler.resample(frame):
            samples += part.samples
            output.mux(made.encode(part))
    for part in resampler.resample(None):
        samples += part.samples
        output.mux(made.encode(part))
    output.mux(made.encode(None))
    return samples


def _until_broken(frames: Iterator[Any]) -> Iterator[Any]:
    """What can be decoded; an error counts only where nothing came before it."""
    count = 0
    try:
        for frame in frames:
            count += 1
            yield frame
    except media_errors():
        if not count:
            raise


@dataclass
class _Copy:
    """One film, written while it is read."""

    container: InputContainer
    output: OutputContainer
    fit: Fit
    tick: Tick
    mask: bool
    most: Callable[[float], int] | None
    _written: int = 0
    _graph: Graph | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._source: VideoStream = self.container.streams.video[0]
        self._source.thread_type = "AUTO"
        self._rate = _rate_of(self._source)
        self._limit = self.most(float(self._rate)) if self.most is not None else None
        self._made: VideoStream | None = None
        self._shape = (0, 0, "")
        self._sound = _Sound.of(self.container, self.output) if not self.mask else None

    def run(self) -> Film:
        for frame in _until_broken(self._decoded()):
            self._push(frame)
            if self._is_enough():
                break
        self._drain(None)
        if self._made is None:
            raise Unreadable("it has no frames")
        self.output.mux(self._made.encode(None))
        if self._sound is not None:
            self._sound.end()
        return Film(self._written, float(self._rate))

    def _is_enough(self) -> bool:
        return self._limit is not None and self._written >= self._limit

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Pictures; the sound between them is written at once."""
        import av

        streams = [self._source, *([self._sound.source] if self._sound is not None else [])]
        for packet in self.container.demux(streams):
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    yield frame
                elif isinstance(frame, av.AudioFrame) and self._sound is not None:
                    self._sound.write(frame)

    def _push(self, frame: av.VideoFrame) -> None:
        if self._graph is None:
            self._graph = _graph(self._source, frame, self.fit, self._rate, self.mask)
            self._shape = frame.width, frame.height, frame.format.name
        if (frame.width, frame.height, frame.format.name) != self._shape:  # a film may change in its middle
            frame = frame.reformat(*self._shape)
        self._graph.push(frame)
        self._drain(frame)

    def _drain(self, frame: av.VideoFrame | None) -> None:
        """Write what the filters have ready; after the last picture all of it."""
        import av

        if self._graph is None:
            return
        if frame is None:
            self._graph.push(None)
        while not self._is_enough():
            try:
                self._write(self._graph.pull())
            except (av.error.BlockingIOError, av.error.EOFError):
                return

    def _write(self, frame: Any) -> None:
        if self._made is None:
            self._made = self._begin(frame)
        if self._written % TICK_FRAMES == 0:
            self.tick()
        frame.pts, frame.time_base = self._written, 1 / self._rate
        frame.pict_type = 0
        self.output.mux(self._made.encode(frame))
        self._written += 1

    def _begin(self, frame: Any) -> VideoStream:
        made: VideoStream = self.output.add_stream("libx264", rate=self._rate, options=MASKS if self.mask else PICTURES)
        made.width, made.height, made.pix_fmt = frame.width, frame.height, "yuv420p"
        made.codec_context.time_base = 1 / self._rate
        if self._sound is not None:
            self._sound.begin()
        return made


class _Sound:
    """A film's sound. Written only once the film's own stream is there: that one comes first in the file."""

    def __init__(self, source: AudioStream, output: OutputContainer) -> None:
        from av.audio.resampler import AudioResampler

        self.source = source
        self._output = output
        self._layout = "stereo" if source.channels > 1 else "mono"
        self._resampler = AudioResampler(format="fltp", layout=self._layout, rate=SOUND_HZ)
        self._made: AudioStream | None = None
        self._early: list[av.AudioFrame] = []

    @classmethod
    def of(cls, container: InputContainer, output: OutputContainer) -> _Sound | None:
        found = [stream for stream in container.streams.audio if getattr(stream, "codec_context", None) is not None]
        return cls(found[0], output) if found else None

    def begin(self) -> None:
        self._made = self._output.add_stream("aac", rate=SOUND_HZ, layout=self._layout)
        early, self._early = self._early, []
        for frame in early:
            self.write(frame)

    def write(self, frame: av.AudioFrame) -> None:
        if self._made is None:
            self._early.append(frame)
            return
        for part in self._resampler.resample(frame):
            self._output.mux(self._made.encode(part))

    def end(self) -> None:
        if self._made is not None:
            for part in self._resampler.resample(None):
                self._output.mux(self._made.encode(part))
            self._output.mux(self._made.encode(None))


def _rate_of(stream: VideoStream) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate
    return min(max(Fraction(rate), SLOWEST), FASTEST).limit_denominator(60_000) if rate else USUAL


def _graph(stream: VideoStream, frame: av.VideoFrame, fit: Fit, rate: Fraction, mask: bool) -> Graph:
    """Upright, with square pixels, in the size that is made, at a constant rate."""
    import av

    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=stream.time_base or 1 / rate
    )
    nodes = [source, *(graph.add(name, arguments) for name, arguments in _steps(frame, fit, rate, stream, mask))]
    nodes.append(graph.add("buffersink"))
    graph.link_nodes(*nodes).configure()
    return graph


def _steps(
    frame: av.VideoFrame, fit: Fit, rate: Fraction, stream: VideoStream, mask: bool
) -> Iterator[tuple[str, str]]:
    yield "fps", f"fps={rate.numerator}/{rate.denominator}"
    turn = round(frame.rotation / 90) * 90 % 360
    yield from {90: [("transpose", "cclock")], 180: [("hflip", ""), ("vflip", "")], 270: [("transpose", "clock")]}.get(
        turn, []
    )
    aspect = stream.sample_aspect_ratio
    wide = float(aspect) if aspect and 0.1 < aspect < 10 else 1.0
    wide = 1 / wide if turn in (90, 270) else wide
    if wide != 1.0:
        yield "scale", f"w=trunc(iw*{wide:.6f}/2)*2:h=ih:flags=lanczos"
    yield from _sized(fit)
    yield "setsar", "1"
    if mask:
        yield "format", "gray"
    yield "format", "yuv420p"


def _sized(fit: Fit) -> Iterator[tuple[str, str]]:
    if fit.size is None:
        yield "scale", "w=max(2\\,trunc(iw/2)*2):h=max(2\\,trunc(ih/2)*2):flags=lanczos"
        return
    width, height = fit.size.width, fit.size.height
    if fit.how == STRETCH:
        yield "scale", f"w={width}:h={height}:flags=lanczos"
    elif fit.how == PAD:
        yield "scale", f"w={width}:h={height}:flags=lanczos:force_original_aspect_ratio=decrease"
        yield "pad", f"w={width}:h={height}:x=(ow-iw)/2:y=(oh-ih)/2:color=black"
    else:
        yield "scale", f"w={width}:h={height}:flags=lanczos:force_original_aspect_ratio=increase"
        yield "crop", f"w={width}:h={height}"
