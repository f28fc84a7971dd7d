"""Puts sound beside a video: the packets of the video are copied, the sound is encoded as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wan2gp.comfy_sidecar.builtin.media import Audio
from wan2gp.comfy_sidecar.builtin.video_read import sound, sound_format
from wan2gp.comfy_sidecar.builtin.video_write import open_output

if TYPE_CHECKING:
    from av import AudioStream
    from av.container import InputContainer, OutputContainer

    from wan2gp.comfy_sidecar.builtin.video_read import Samples

COMMON_RATE_HZ = 48_000
"""Every encoder here takes it."""
ENDLESS_S = 1e9
"""Longer than any sound."""
STEREO_ONLY = ("libopus",)
"""Their streams of more channels need a mapping that few players know."""


class Fit(Enum):
    """What happens when the sound is shorter than the film. A longer one is always cut."""

    SILENCE = "silence fills the rest"
    CUT_FILM = "the film ends with its sound"
    AS_IS = "the film goes on without"


@dataclass(frozen=True)
class SoundTrack:
    audio: Audio
    codec: str
    seconds: float
    fit: Fit = Fit.SILENCE
    layout: str | None = None
    """None: the sound's own."""


@dataclass(frozen=True)
class SoundFormat:
    """A file of sound alone. ``rates``: those in Hz that the codec takes, None for any; ``bit_rate`` 0: the codec's."""

    suffix: str
    codec: str
    bit_rate: int = 0
    rates: tuple[int, ...] | None = None

    def rate(self, given: int) -> int:
        """The sound's own, else the next higher one."""
        if self.rates is None or given in self.rates:
            return given
        return next((rate for rate in self.rates if rate > given), self.rates[-1])


def write_sound(path: Path, audio: Audio, form: SoundFormat, texts: dict[str, Any], check: Callable[[], None]) -> None:
    """A file of the sound alone, in mono or stereo. `check` is called often and may raise to stop."""
    with open_output(path, texts, form.suffix) as container:
        given, _, channels = sound_format(audio)
        layout = "mono" if channels == 1 else "stereo"
        stream = cast("AudioStream", container.add_stream(form.codec, rate=form.rate(given), layout=layout))
        if form.bit_rate:
            stream.bit_rate = form.bit_rate
        _write_sound(container, stream, SoundTrack(audio, form.codec, ENDLESS_S, Fit.AS_IS), check)


def add_sound(silent: Path, path: Path, track: SoundTrack, texts: dict[str, Any], check: Callable[[], None]) -> None:
    """Copies the video of `silent` and puts the sound beside it. `check` is called often and may raise to stop."""
    import av

    with av.open(str(silent)) as source, open_output(path, texts) as container:
        rate, layout = _encodable(track)
        _add_copy_of_video(source, container)
        added = container.add_stream(track.codec, rate=rate, layout=layout)
        end_s = _write_sound(container, cast("AudioStream", added), track, check)
        _copy_video(source, container, end_s if track.fit is Fit.CUT_FILM else None, check)


def _encodable(track: SoundTrack) -> tuple[int, str]:
    """The sound's own rate and channels where the encoder takes them."""
    import av

    rate, layout, channels = sound_format(track.audio)
    rates = av.codec.Codec(track.codec, "w").audio_rates
    if rates and rate not in rates:
        rate = COMMON_RATE_HZ
    if channels > 2 and track.codec in STEREO_ONLY:
        layout = "stereo"
    return rate, track.layout or layout


def _add_copy_of_video(source: InputContainer, container: OutputContainer) -> None:
    """`opaque`: there need be no encoder of that name. The rate is said anew: times in ms cannot tell 30 from 29.97."""
    given = source.streams.video[0]
    copy = container.add_stream_from_template(given, opaque=True)
    rate = given.average_rate or given.guessed_rate
    if rate is not None:
        copy.codec_context.framerate = rate


def _copy_video(
    source: InputContainer, container: OutputContainer, end_s: float | None, check: Callable[[], None]
) -> None:
    for packet in source.demux(source.streams.video[0]):
        check()
        if packet.dts is None:
            continue
        if end_s is None or (packet.pts or 0) * (packet.time_base or 0) < end_s:
            packet.stream = container.streams.video[0]
            container.mux(packet)


def _write_sound(
    container: OutputContainer, stream: AudioStream, track: SoundTrack, check: Callable[[], None]
) -> float:
    """Returns the length in seconds."""
    import av

    rate, layout = stream.codec_context.sample_rate, stream.codec_context.layout.name
    position = 0
    pieces = _at_most(sound(track.audio, rate, layout), round(track.seconds * rate))
    if track.fit is Fit.SILENCE:
        pieces = _filled(pieces, round(track.seconds * rate), rate, av.AudioLayout(layout).nb_channels)
    for samples in pieces:
        check()
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, position, Fraction(1, rate)
        position += samples.shape[1]
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    return position / rate


def _at_most(pieces: Iterator[Samples], total: int) -> Iterator[Samples]:
    import numpy as np

    left = total
    for piece in pieces:
        piece = piece[:, :left]
        if piece.shape[1]:
            left -= piece.shape[1]
            yield np.ascontiguousarray(piece)
        if left <= 0:
            return


def _filled(pieces: Iterator[Samples], total: int, rate: int, channels: int) -> Iterator[Samples]:
    """Silence behind the pieces, a second at a time."""
    import numpy as np

    left = total
    for piece in pieces:
        left -= piece.shape[1]
        yield piece
    while left > 0:
        size = min(left, rate)
        left -= size
        yield np.zeros((channels, size), np.float32)
