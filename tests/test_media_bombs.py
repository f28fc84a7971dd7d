"""Small files that become large when opened, and files that open others: refused before an engine sees them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.comfy_jobs import make_video
from wan2gp.handlers.comfy_input_probe import PROBES, probe_audio_input, probe_image_input, probe_video_input
from wan2gp.handlers.media_limits import KEY_FRAMES, MOST_STREAMS, MediaLimits, OverLimit
from wan2gp.handlers.media_open import open_media
from wan2gp.handlers.media_probe import Unreadable, probe
from wan2gp.handlers.sniff import sniff

SMALL = MediaLimits(max_pixels=10_000, max_frames=20, max_duration_s=5.0)


def png_head(width: int, height: int) -> bytes:
    """A picture of that size in a few hundred bytes: its head alone is believed, the body is not there."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(50_000, 50_000), (1, 2**31 - 1), (100_000, 2000)])
def test_a_picture_of_gigapixels_is_refused_undecoded(tmp_path: Path, size: tuple[int, int]) -> None:
    """What the earlier limit did not decode, it let through."""
    path = tmp_path / "bomb.png"
    path.write_bytes(png_head(*size))
    with pytest.raises(OverLimit):
        probe_image_input(path, MediaLimits())


def test_the_limit_names_the_size_and_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("L", (101, 100)).save(path)
    with pytest.raises(OverLimit, match=r"101 x 100 pixels, the limit is 10000 \(inputs\.max_pixels\)"):
        probe_image_input(path, SMALL)
    probe_image_input(path)
    Image.new("L", (100, 100)).save(path)
    probe_image_input(path, SMALL)


def animated(path: Path, count: int, side: int) -> Path:
    frames = [Image.new("RGB", (side, side), (shade * 53 % 256, shade * 97 % 256, 9)) for shade in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=10)
    return path


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".tiff", ".png"])
def test_an_animated_picture_is_counted_frame_by_frame(tmp_path: Path, suffix: str) -> None:
    """A loader of pictures keeps all frames in memory."""
    path = animated(tmp_path / f"x{suffix}", 21, 8)
    with pytest.raises(OverLimit, match="more than 20 frames"):
        probe_image_input(path, SMALL)
    with pytest.raises(OverLimit, match="more than 80000 pixels in all"):
        probe_image_input(animated(tmp_path / f"y{suffix}", 9, 100), SMALL)
    probe_image_input(animated(tmp_path / f"z{suffix}", 8, 100), SMALL)


def test_a_page_that_is_larger_than_the_first_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.tiff"
    Image.new("L", (8, 8)).save(path, save_all=True, append_images=[Image.new("L", (200, 200))])
    with pytest.raises(OverLimit, match="200 x 200"):
        probe_image_input(path, SMALL)


def test_a_film_too_large_too_long_or_of_too_many_frames(tmp_path: Path) -> None:
    film = make_video(tmp_path / "x.mp4", frames=30, rate=10)  # 64 x 48
    probe_video_input(film, MediaLimits())
    for limits, words in (
        (MediaLimits(max_pixels=3071), "64 x 48 pixels"),
        (MediaLimits(max_frames=29), "more than 29 frames"),
        (MediaLimits(max_duration_s=2.5), "3 s long, the limit is 2.5 s"),
    ):
        with pytest.raises(OverLimit, match=words):
            probe_video_input(film, limits)
    probe_video_input(film, MediaLimits(max_pixels=3072, max_frames=30, max_duration_s=3.2))


def test_a_film_that_does_not_say_how_long_it_is_is_measured(tmp_path: Path) -> None:
    """A raw stream declares neither frames nor duration; its packets are counted."""
    film = tmp_path / "x.h264"
    with av.open(str(make_video(tmp_path / "x.mp4", frames=60, rate=10))) as source:
        with av.open(str(film), "w", format="h264") as sink:
            copied = sink.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = copied
                    sink.mux(packet)
    with open_media(film) as opened:
        assert opened.streams.video[0].frames == 0
    with pytest.raises(OverLimit, match="more than 20 frames"):
        probe_video_input(film, SMALL)


def grown(path: Path, sizes: list[tuple[int, int]]) -> Path:
    """A film of pictures, each of which may have another size: FFmpeg declares the first."""
    body = b""
    for size in sizes:
        buffer = io.BytesIO()
        Image.effect_noise(size, 40).convert("RGB").save(buffer, "JPEG")
        body += buffer.getvalue()
    path.write_bytes(body)
    return path


def test_a_film_that_grows_behind_its_first_frame_is_found_out(tmp_path: Path) -> None:
    """Declared 64 x 64, decoded 320 x 320."""
    path = grown(tmp_path / "x.mjpeg", [(64, 64)] * 4 + [(320, 320)] + [(64, 64)] * 4)
    with pytest.raises(OverLimit, match="320 x 320"):
        probe_video_input(path, MediaLimits(max_pixels=64 * 64 * 2))
    probe_video_input(grown(tmp_path / "y.mjpeg", [(64, 64)] * (KEY_FRAMES + 8)), MediaLimits(max_pixels=4096))


def test_a_file_of_a_hundred_streams(tmp_path: Path) -> None:
    path = tmp_path / "x.mkv"
    with av.open(str(path), "w") as sink:
        streams = [sink.add_stream("pcm_s16le", rate=8000, layout="mono") for _ in range(MOST_STREAMS + 1)]
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 80), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        for stream in streams:
            sink.mux(stream.encode(frame))
    with pytest.raises(OverLimit, match=f"{MOST_STREAMS + 1} streams"):
        probe_audio_input(path, MediaLimits())


def test_a_sound_of_days(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        sink.mux(stream.encode(frame))
    with pytest.raises(OverLimit, match=r"6 s long, the limit is 5 s \(inputs\.max_duration_s\)"):
        probe_audio_input(path, SMALL)
    probe_audio_input(path, MediaLimits())


@pytest.mark.parametrize("look", [probe_video_input, probe_audio_input])
def test_a_file_of_packets_without_end(tmp_path: Path, look: Callable[[Path, MediaLimits], object]) -> None:
    """A text packet of seven bytes is no picture and takes no time: a file of gigabytes holds hundreds of millions."""
    path = tmp_path / "x.mkv"
    with av.open(str(make_video(tmp_path / "x.mp4", frames=4, rate=10))) as source, av.open(str(path), "w") as sink:
        copied = sink.add_stream_from_template(source.streams.video[0])
        sound = sink.add_stream("pcm_s16le", rate=8000, layout="mono")
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copied
                sink.mux(packet)
        for _ in range(300):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8), np.int16), format="s16", layout="mono")
            frame.sample_rate = 8000
            sink.mux(sound.encode(frame))
    look(path, MediaLimits())
    with pytest.raises(OverLimit, match="more than 200 packets"):
        look(path, MediaLimits(max_packets=200))


# --- files that open others -------------------------------------------------------------------------------------------

PLAYLISTS: dict[str, Callable[[Path], str]] = {
    "hls": lambda film: f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{film}\n#EXT-X-ENDLIST\n",
    "concat": lambda film: f"ffconcat version 1.0\nfile {film.name}\n",
    "dash": lambda film: (
        '<?xml version="1.0"?><MPD profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" type="static"><Period>'
        f"<AdaptationSet><Representation><BaseURL>{film}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    ),
    "sdp": lambda film: "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
}


@pytest.mark.parametrize("kind", ["video", "audio", "image"])
@pytest.mark.parametrize("which", PLAYLISTS)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".png"])
def test_a_playlist_opens_no_other_file(tmp_path: Path, which: str, kind: str, suffix: str) -> None:
    """Under any name: FFmpeg goes by the content, and reads whatever file or address it names."""
    film = make_video(tmp_path / "secret.mp4", frames=5)
    path = tmp_path / f"clip{suffix}"
    path.write_text(PLAYLISTS[which](film))
    with pytest.raises(Unreadable):
        PROBES[kind](path, MediaLimits())
    if suffix != ".m3u8":  # as a result, under that name, it is a file like any other, and nobody opens it
        with pytest.raises(Unreadable):
            probe(path)


@pytest.mark.parametrize("which", ["hls", "concat"])
def test_the_same_playlist_bites_where_nothing_guards(tmp_path: Path, which: str) -> None:
    """The control: without the list of formats, the other file's frames come out."""
    path = tmp_path / "clip.m3u8"
    path.write_text(PLAYLISTS[which](make_video(tmp_path / "secret.mp4", frames=5)))
    with av.open(str(path)) as opened:
        assert next(opened.decode(video=0)).width == 64


@pytest.mark.parametrize("which", PLAYLISTS)
def test_a_playlist_is_told_by_its_first_bytes(which: str) -> None:
    found = sniff(PLAYLISTS[which](Path("/secret.mp4")).encode())
    assert not found.serves("video") and not found.serves("image") and not found.serves("audio")
    if which != "sdp":
        assert not found.serves("any"), "no field of any node is given one"


@pytest.mark.parametrize(
    "head", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xc5\xd0\xd3\xc6" + bytes(28)]
)
def test_postscript_starts_no_ghostscript(tmp_path: Path, head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr("subprocess.Popen", lambda *given, **named: started.append(given))
    path = tmp_path / "x.png"
    path.write_bytes(head + b"%%EndComments\n")
    with pytest.raises(Unreadable):
        probe_image_input(path, MediaLimits())
    assert not started
