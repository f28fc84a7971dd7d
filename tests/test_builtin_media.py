"""What the built-in engine's nodes make: pictures, films and sound, decoded and looked at."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.builtin_prompts import FPS, FRAMES, SIZE, STEP, TONE_HZ, Probe, made, saved_image, vhs

if TYPE_CHECKING:
    from tests.conftest_comfy import BuiltinServer


@pytest.mark.parametrize(
    ("load", "combine", "expected"),
    [
        ({"frame_load_cap": 10}, {}, list(range(10))),
        ({"skip_first_frames": 50}, {}, list(range(50, 60))),
        ({"select_every_nth": 7}, {}, list(range(0, 60, 7))),
        ({"skip_first_frames": 5, "select_every_nth": 10, "frame_load_cap": 3}, {}, [5, 15, 25]),
        ({"force_rate": 10, "frame_load_cap": 5}, {}, [0, 3, 6, 9, 12]),
        ({"force_rate": 60, "frame_load_cap": 6}, {}, [0, 1, 1, 2, 2, 3]),
        ({"frame_load_cap": 4}, {"pingpong": True}, [0, 1, 2, 3, 2, 1]),
        ({"frame_load_cap": 3}, {"loop_count": 2}, [0, 1, 2] * 3),
    ],
)
def test_frames_taken(
    server: BuiltinServer, load: dict[str, Any], combine: dict[str, Any], expected: list[int]
) -> None:
    assert Probe(made(server, vhs(load, **combine))).indices() == expected


def test_sound_is_as_long_as_the_video_and_the_silent_file_stays_beside_it(server: BuiltinServer) -> None:
    path = made(server, vhs({"frame_load_cap": 15}, audio=["1", 2]))
    result = Probe(path)
    assert (result.audio, len(result.greys)) == (["aac"], 15)
    assert 0.45 < result.sound_s < 0.6
    assert sorted(os.listdir(path.parent)) == ["out_00001-audio.mp4", "out_00001.mp4", "out_00001.png"]
    prompt = json.loads(result.metadata["prompt"])
    assert prompt["1"]["inputs"]["video"] == "input.mp4"
    assert len(prompt["1"]["is_changed"][0]) == 64


def test_no_sound_in_the_input_is_no_sound_in_the_output(server: BuiltinServer) -> None:
    path = made(server, vhs({"video": "input_noaudio.mp4"}, audio=["1", 2]))
    assert (path.name, Probe(path).audio) == ("out_00001.mp4", [])


def test_client_can_ask_for_the_one_file_only(server: BuiltinServer) -> None:
    """94: both settings travel in the workflow of the front end."""
    settings = {"VHS_KeepIntermediate": False, "VHS_MetadataImage": False}
    extra = {"extra_pnginfo": {"workflow": {"extra": settings}}}
    path = made(server, vhs(audio=["1", 2]), extra_data=extra)
    assert os.listdir(path.parent) == ["out_00001-audio.mp4"]


@pytest.mark.parametrize(("custom", "size"), [((160, 0), (160, 120)), ((0, 120), (160, 120)), ((100, 100), (100, 100))])
def test_custom_size(server: BuiltinServer, custom: tuple[int, int], size: tuple[int, int]) -> None:
    load = {"custom_width": custom[0], "custom_height": custom[1], "frame_load_cap": 2}
    assert Probe(made(server, vhs(load))).size == size


@pytest.mark.parametrize(
    ("name", "suffix", "codec", "sound"),
    [
        ("image/gif", "gif", "gif", None),
        ("video/ffmpeg-gif", "gif", "gif", None),
        ("video/webm", "webm", "vp9", "opus"),
        ("video/av1-webm", "webm", "libdav1d", "opus"),
        ("video/h264-mp4", "mp4", "h264", "aac"),
        ("video/h265-mp4", "mp4", "hevc", "aac"),
        ("video/ProRes", "mov", "prores", "pcm_s16le"),
        ("video/ffv1-mkv", "mkv", "ffv1", "flac"),
    ],
)
def test_every_format_with_and_without_sound(
    server: BuiltinServer, name: str, suffix: str, codec: str, sound: str | None
) -> None:
    silent = made(server, vhs({"frame_load_cap": 5}, format=name))
    assert silent.name == f"out_00001.{suffix}"
    heard = made(server, vhs({"frame_load_cap": 5}, format=name, audio=["1", 2]))
    assert heard.name == f"out_00002.{suffix}" if name == "image/gif" else f"out_00002-audio.{suffix}"
    for path, audio in ((silent, None), (heard, sound)):
        result = Probe(path)
        assert (result.codec, result.indices(), result.audio) == (codec, [0, 1, 2, 3, 4], [audio] if audio else [])
        assert suffix == "gif" or result.rate == FPS


@pytest.mark.parametrize(("name", "mode"), [("video/8bit-png", "RGB"), ("video/16bit-png", "RGBA")])
def test_a_picture_for_each_frame(server: BuiltinServer, name: str, mode: str) -> None:
    """The entry names no file of its own, except when there is but one."""
    from PIL import Image

    path = made(server, vhs({"frame_load_cap": 3}, format=name))
    assert path.name == "out_00001.%03d.png"
    pictures = [path.with_name(f"out_00001.00{number}.png") for number in (1, 2, 3)]
    for index, picture in enumerate(pictures):
        with Image.open(picture) as opened:
            assert (opened.size, opened.mode) == (SIZE, mode)
            assert abs(opened.convert("RGB").getpixel((SIZE[0] - 9, 9))[0] - STEP * index) < 4
    entry = server.run(vhs({"frame_load_cap": 1}, format=name, filename_prefix="one"))["outputs"]["2"]["gifs"][0]
    assert (entry["filename"], entry["format"]) == ("one_00001.001.png", "image/png")


def test_format_for_a_gpu_is_refused_with_a_way_out(server: BuiltinServer) -> None:
    event, data = server.run(vhs(format="video/nvenc_h264-mp4"))["status"]["messages"][-1]
    assert event == "execution_error"
    assert "video/h264-mp4 always works" in data["exception_message"]


def test_sound_keeps_its_rate_and_channels(server: BuiltinServer) -> None:
    import av

    path = made(server, vhs({"frame_load_cap": 15}, audio=["1", 2]))
    with av.open(str(path)) as container:
        context = container.streams.audio[0].codec_context
        assert (context.sample_rate, context.layout.name) == (TONE_HZ, "mono")


def test_film_is_cut_to_its_sound_when_asked(server: BuiltinServer) -> None:
    """At half speed the two seconds of sound are half as long as the film."""
    padded = Probe(made(server, vhs(frame_rate=15, audio=["1", 2])))
    trimmed = Probe(made(server, vhs(frame_rate=15, audio=["1", 2], trim_to_audio=True)))
    assert (len(padded.greys), len(trimmed.greys)) == (FRAMES, FRAMES // 2)
    assert padded.sound_s > 3.9 > 2.1 > trimmed.sound_s


def test_literal_in_place_of_the_sound_is_no_sound(server: BuiltinServer) -> None:
    assert Probe(made(server, vhs({"frame_load_cap": 2}, audio="x"))).audio == []


@pytest.mark.parametrize(
    ("matrix", "side"),
    [
        ((0, 1, -1, 0), "top"),  # a quarter turn to the right: what was left is above
        ((-1, 0, 0, -1), "right"),
        ((0, -1, 1, 0), "bottom"),
    ],
)
def test_film_of_a_phone_comes_out_upright(server: BuiltinServer, matrix: tuple[int, int, int, int], side: str) -> None:
    """The film says how to turn it; the last frames are light on the left half and dark on the other."""
    turn(server.input / "input.mp4", matrix)
    path = made(server, vhs({"skip_first_frames": 56, "frame_load_cap": 1}, VHS_MetadataImage=False))
    assert Probe(path).size == (SIZE if matrix[0] else SIZE[::-1])
    picture = first_picture(path)
    light = {
        "top": picture[: len(picture) // 2],
        "bottom": picture[len(picture) // 2 :],
        "right": picture[:, picture.shape[1] // 2 :],
    }[side]
    assert light.mean() > 200
    assert picture.mean() < 130


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Writes the display matrix of the first track: 40 bytes into its header."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def first_picture(path: Path) -> Any:
    import av

    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def test_going_back_keeps_few_frames_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three frames fit: the way back takes as many passes as that needs."""
    import numpy as np

    from wan2gp.comfy_sidecar.builtin import media

    monkeypatch.setattr(media, "HELD_BYTES", 3 * 12)
    passes = 0

    def read() -> Iterator[Any]:
        nonlocal passes
        passes += 1
        return (np.full((2, 2, 3), index, np.uint8) for index in range(9))

    there_and_back = media.Frames(9, 2, 2, read).back_and_forth()
    shown = [int(picture[0, 0, 0]) for picture in there_and_back.read()]
    assert shown == [*range(9), *range(7, 0, -1)]
    assert there_and_back.count == len(shown)
    assert passes == 1 + 3


@pytest.mark.long
@pytest.mark.timeout(300)
def test_long_clip_is_not_held_in_memory(builtin_server: BuiltinServer) -> None:
    """300 pictures of 1280x720 are 830 MB; loaded and played back and forth they need less than half of it."""
    clip = saved_image(0x336699, width=1280, height=720, batch_size=300)
    clip["2"] = {"class_type": "VHS_VideoCombine", "inputs": vhs()["2"]["inputs"] | {"filename_prefix": "long"}}
    source = made(builtin_server, clip)
    shutil.copy(source, builtin_server.input / "long.mp4")
    path = made(builtin_server, vhs({"video": "long.mp4"}, pingpong=True))
    assert len(Probe(path).greys) == 598
    assert builtin_server.peak_mib() < 700


@pytest.mark.parametrize("video", ["../secret.mp4", "/etc/hostname", "job/../../secret.mp4"])
def test_a_name_outside_the_input_folder_is_refused(server: BuiltinServer, video: str) -> None:
    """The real one reads it."""
    (server.path / "secret.mp4").write_bytes(b"x")
    name = str(server.path / "secret.mp4") if video.startswith("/") else video
    answer = server.post(vhs({"video": name}))
    assert answer.status_code == 400
    assert answer.json()["node_errors"]["1"]["errors"][0]["type"] == "custom_validation_failed"


def test_images_are_scaled_inverted_batched_and_become_a_video(server: BuiltinServer) -> None:
    (server.input / "red.png").write_bytes(b"")
    red = saved_image(0xFF0000, prefix="red", width=40, height=20)
    server.run(red)
    shutil.copy(server.output / "red_00001_.png", server.input / "red.png")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "red.png"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["2", 0]}},
        "4": {
            "class_type": "ImageScale",
            "inputs": {
                "image": ["3", 0],
                "upscale_method": "lanczos",
                "width": 64,
                "height": 64,
                "crop": "center",
            },
        },
        "5": {"class_type": "CreateVideo", "inputs": {"images": ["4", 0], "fps": 4}},
        "6": {"class_type": "GetVideoComponents", "inputs": {"video": ["5", 0]}},
        "7": {"class_type": "CreateVideo", "inputs": {"images": ["6", 0], "fps": ["6", 2]}},
        "8": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["7", 0], "filename_prefix": "v", "format": "auto", "codec": "auto"},
        },
    }
    entry = server.run(prompt)
    assert entry["outputs"]["8"]["animated"] == [True], entry
    result = Probe(server.output / entry["outputs"]["8"]["images"][0]["filename"])
    assert (result.size, result.rate) == ((64, 64), Fraction(4))
    assert [left > 128 for left, _ in result.greys] == [True, False]


def test_prefix_that_leaves_the_output_folder_fails_the_prompt(server: BuiltinServer) -> None:
    event, data = server.run(saved_image(prefix="../../escape"))["status"]["messages"][-1]
    assert event == "execution_error"
    assert "Saving image outside the output folder is not allowed." in data["exception_message"]
