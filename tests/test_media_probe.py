"""Files that look like results: whole ones are described, broken ones are found out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.comfy_jobs import make_video
from wan2gp.handlers.comfy_input_probe import probe_video_input
from wan2gp.handlers.media_probe import Unreadable, probe, sha256_of


def test_a_whole_video_is_described(tmp_path: Path) -> None:
    info = probe(make_video(tmp_path / "x.mp4", frames=30, rate=10))
    assert (info.kind, info.mime, info.width, info.height, info.frames) == ("video", "video/mp4", 64, 48, 30)
    assert info.duration_s == pytest.approx(3.0)


@pytest.mark.parametrize("suffix", [".mkv", ".mov"])
def test_other_containers_are_read_too(tmp_path: Path, suffix: str) -> None:
    info = probe(make_video(tmp_path / f"x{suffix}", frames=10))
    assert (info.kind, info.frames) == ("video", 10)


def faststart(path: Path) -> Path:
    """An mp4 whose index is at its beginning: cut, it still opens."""
    plain = make_video(path.with_suffix(".plain.mp4"), frames=60)
    with av.open(str(plain)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as sink:
        copied = sink.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copied
                sink.mux(packet)
    return path


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BREAK: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b"") and None,
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 40) and None,
    "no index": half,
    "only a header": lambda path: path.write_bytes(path.read_bytes()[:40]) and None,
    "text": lambda path: path.write_text("<html>not found</html>") and None,
}


@pytest.mark.parametrize("how", BREAK)
def test_a_broken_video_is_found_out(tmp_path: Path, how: str) -> None:
    path = make_video(tmp_path / "x.mp4", frames=60)
    BREAK[how](path)
    with pytest.raises(Unreadable):
        probe(path)


def test_a_video_cut_off_behind_its_index_is_found_out(tmp_path: Path) -> None:
    path = faststart(tmp_path / "x.mp4")
    assert probe(path).frames == 60
    half(path)
    with pytest.raises(Unreadable, match="cut off|Invalid|decoded"):
        probe(path)


def test_a_video_without_frames_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(Unreadable):
        probe(path)


def test_pictures_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.effect_noise((80, 60), 50).save(path)
    info = probe(path)
    assert (info.kind, info.mime, info.width, info.height, info.frames) == ("image", "image/png", 80, 60, 1)
    half(path)
    with pytest.raises(Unreadable):
        probe(path)


def test_an_animation_counts_its_frames(tmp_path: Path) -> None:
    path = tmp_path / "x.gif"
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 100, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    info = probe(path)
    assert (info.kind, info.frames, info.duration_s) == ("image", 3, pytest.approx(0.3))


def test_a_large_picture_makes_no_noise(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("1", (10_000, 10_000)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probe(path).width == 10_000


def test_sound_has_a_length(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    info = probe(path)
    assert (info.kind, info.duration_s) == ("audio", pytest.approx(0.5))


def sound(path: Path, codec: str, seconds: float = 8.0, rate: int = 48_000) -> Path:
    """Noise, so that half of the file is half of the time."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        samples = np.random.default_rng(1).normal(0, 0.2, (1, int(rate * seconds))).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


SOUNDS = {
    ".flac": "flac",
    ".mp3": "libmp3lame",
    ".opus": "libopus",
    ".m4a": "aac",
    ".wav": "pcm_s16le",
    ".ogg": "libopus",
}


@pytest.mark.parametrize("suffix", SOUNDS)
def test_every_kind_of_sound_is_decoded(tmp_path: Path, suffix: str) -> None:
    info = probe(sound(tmp_path / f"x{suffix}", SOUNDS[suffix]))
    assert info.kind == "audio" and info.duration_s == pytest.approx(8.0, abs=0.1)


@pytest.mark.long
@pytest.mark.parametrize("suffix", SOUNDS)
@pytest.mark.parametrize("how", ["empty", "noise", "only a header", "text"])
def test_broken_sound_is_found_out(tmp_path: Path, suffix: str, how: str) -> None:
    path = sound(tmp_path / f"x{suffix}", SOUNDS[suffix])
    BREAK[how](path)
    with pytest.raises(Unreadable):
        probe(path)


@pytest.mark.parametrize("suffix", [".flac", ".m4a"])
def test_sound_cut_off_in_the_middle_is_found_out(tmp_path: Path, suffix: str) -> None:
    path = sound(tmp_path / f"x{suffix}", SOUNDS[suffix])
    half(path)
    with pytest.raises(Unreadable):
        probe(path)


@pytest.mark.parametrize(
    ("name", "kind", "mime"),
    [
        ("x.glb", "file", "model/gltf-binary"),
        ("x.latent", "file", "application/octet-stream"),
        ("x.svg", "image", "image/svg+xml"),
        ("x.vtt", "text", "text/vtt"),
    ],
)
def test_what_cannot_be_decoded_must_at_least_not_be_empty(tmp_path: Path, name: str, kind: str, mime: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"x")
    assert (probe(path).kind, probe(path).mime) == (kind, mime)
    path.write_bytes(b"")
    with pytest.raises(Unreadable, match="empty"):
        probe(path)


def test_what_is_no_media_is_taken_as_it_is(tmp_path: Path) -> None:
    for name, kind in (("x.latent", "file"), ("x.txt", "text")):
        (tmp_path / name).write_bytes(b"abc")
        assert probe(tmp_path / name).kind == kind


def test_an_input_needs_a_picture(tmp_path: Path) -> None:
    probe_video_input(make_video(tmp_path / "without_extension.bin.mp4"))
    cut = faststart(tmp_path / "cut.mp4")
    half(cut)
    probe_video_input(cut)  # what its user has of it is the user's to judge
    (tmp_path / "noise").write_bytes(b"\x00" * 5000)
    with pytest.raises(Unreadable):
        probe_video_input(tmp_path / "noise")


def test_the_digest_is_the_files(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
