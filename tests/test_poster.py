"""Posters of videos: real files of every shape, and that none of them costs the task its result."""

from __future__ import annotations

import hashlib
import os
import wave
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.comfy_jobs import Bench, bench, make_video, picture
from wan2gp.handlers import poster
from wan2gp.handlers.media_probe import probe, sha256_of
from wan2gp.handlers.poster import NoPoster, add_posters, has_poster, make_poster
from wan2gp.protocol import Artifact
from wan2gp.supervisor.publish import Staged
from wan2gp.supervisor.publish import poster as poster_of

__all__ = ["bench"]
Rgb = tuple[int, int, int]
BLACK, RED, GREEN, BLUE = (0, 0, 0), (200, 40, 60), (20, 180, 40), (30, 50, 210)
SIZE = (64, 48)


def solid(color: Rgb, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    return np.full((size[1], size[0], 3), color, np.uint8)


def film(path: Path, frames: Iterable[NDArray[np.uint8]], codec: str = "libx264", **context: Any) -> Path:
    """A video of these pictures; `context` are attributes of the encoder."""
    pictures = list(frames)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for pixels in pictures:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=context.get("colorspace"))))
        container.mux(stream.encode())
    return path


def near(found: Any, wanted: Rgb) -> bool:
    return all(abs(one - other) < 12 for one, other in zip(found, wanted, strict=True))


def made(path: Path) -> tuple[Any, tuple[int, int]]:
    """The colour in the middle of the poster, and its size, after checking what was said of it."""
    still = make_poster(path, path.with_name("still.jpg"))
    with Image.open(still.path) as image:
        assert image.format == "JPEG" and image.size == (still.width, still.height)
        return image.getpixel((image.width // 2, image.height // 2)), image.size


def artifact(path: Path, root: Path, **changes: Any) -> Artifact:
    info = probe(path)
    fields = {"kind": info.kind, "mime": info.mime, "width": info.width, "height": info.height, **changes}
    size, digest = path.stat().st_size, sha256_of(path)
    return Artifact(str(path.relative_to(root)), path.name, bytes=size, sha256=digest, node_id="9", **fields)


# --- the picture ---------------------------------------------------------------------------------------------------


def test_a_video_in_colour_keeps_its_colours_and_its_size(tmp_path: Path) -> None:
    color, size = made(film(tmp_path / "a.mp4", [solid(RED)] * 3))
    assert near(color, RED) and size == SIZE


def test_a_video_in_the_colours_of_television_is_not_tinted(tmp_path: Path) -> None:
    color, _ = made(film(tmp_path / "a.mp4", [solid(GREEN)] * 3, colorspace=1))
    assert near(color, GREEN)


def test_a_video_that_begins_in_black_shows_what_comes_then(tmp_path: Path) -> None:
    color, _ = made(film(tmp_path / "a.mp4", [solid(BLACK)] * 20 + [solid(GREEN)] * 3 + [solid(RED)] * 3))
    assert near(color, GREEN)


def test_a_video_that_fades_in_is_not_shown_while_it_is_all_but_black(tmp_path: Path) -> None:
    color, _ = made(film(tmp_path / "a.mp4", [solid((grey, grey, grey)) for grey in (0, 4, 9, 15, 90, 200)]))
    assert near(color, (90, 90, 90))


def test_a_small_bright_thing_in_the_dark_is_not_black(tmp_path: Path) -> None:
    night = solid(BLACK)
    night[18:30, 24:40] = 255
    color, _ = made(film(tmp_path / "a.mp4", [night, solid(RED)]))
    assert near(color, (255, 255, 255))


def test_a_video_that_is_all_black_has_a_black_poster(tmp_path: Path) -> None:
    color, size = made(film(tmp_path / "a.mp4", [solid(BLACK)] * 5))
    assert near(color, BLACK) and size == SIZE


def test_a_long_black_video_is_not_decoded_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[av.VideoFrame] = []
    is_black = poster._is_black
    monkeypatch.setattr(poster, "FRAMES_SEARCHED", 10)
    monkeypatch.setattr(poster, "_is_black", lambda frame: looked.append(frame) or is_black(frame))
    color, _ = made(film(tmp_path / "a.mp4", [solid(BLACK)] * 40 + [solid(RED)] * 3))
    assert near(color, BLACK) and len(looked) == 10


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((1080, 1920), (720, 1280)), ((2560, 1440), (1280, 720)), ((3840, 16), (1280, 5)), ((1280, 720), (1280, 720))],
)
def test_the_long_side_is_capped_whichever_it_is(
    tmp_path: Path, size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    color, found = made(film(tmp_path / "a.mp4", [solid(BLUE, size)], codec="mpeg4"))
    assert near(color, BLUE) and found == wanted


def test_one_frame_is_enough(tmp_path: Path) -> None:
    assert near(made(film(tmp_path / "a.mp4", [solid(RED)]))[0], RED)


def test_a_webm_has_one_too(tmp_path: Path) -> None:
    assert near(made(film(tmp_path / "a.webm", [solid(BLUE)] * 3, codec="libvpx-vp9"))[0], BLUE)


def test_pixels_that_are_not_square_are_shown_as_a_player_shows_them(tmp_path: Path) -> None:
    _, size = made(film(tmp_path / "a.mkv", [solid(RED)], sample_aspect_ratio=2))
    assert size == (128, 48)


def test_a_video_from_a_telephone_stands_upright(tmp_path: Path) -> None:
    """Its index says that it is to be turned by a quarter, clockwise: what is left in the file is above."""
    pixels = solid(RED)
    pixels[:, 32:] = BLUE
    path = film(tmp_path / "a.mp4", [pixels])
    content = path.read_bytes()
    upright, turned = (b"".join(number.to_bytes(4, "big") for number in numbers) for numbers in (UPRIGHT, TURNED))
    begin = content.index(upright, content.index(b"tkhd"))
    path.write_bytes(content[:begin] + turned + content[begin + len(upright) :])
    still = make_poster(path, tmp_path / "still.jpg")
    with Image.open(still.path) as image:
        assert image.size == (48, 64)
        assert near(image.getpixel((24, 10)), RED) and near(image.getpixel((24, 54)), BLUE)


UPRIGHT = (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
TURNED = (0, 0x10000, 0, 0xFFFF0000, 0, 0, 0, 0, 0x40000000)


# --- none ----------------------------------------------------------------------------------------------------------


def sound(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\0\0" * 8000)
    return path


def cut(path: Path) -> Path:
    whole = make_video(path, frames=60).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def noise(path: Path) -> Path:
    path.write_bytes(bytes(range(256)) * 40)
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize("make", [sound, cut, noise, empty])
def test_what_has_no_frame_says_so_and_leaves_nothing(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / ("a.wav" if make is sound else "a.mp4"))
    with pytest.raises(NoPoster) as raised:
        make_poster(path, tmp_path / "still.jpg")
    assert str(raised.value) and str(tmp_path) not in str(raised.value)
    assert os.listdir(tmp_path) == [path.name]


def test_a_video_with_a_hole_shows_what_comes_before_it(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", [solid(BLACK)] * 4 + [solid(RED)] * 4, codec="mpeg4")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    assert near(made(path)[0], BLACK) or near(made(path)[0], RED)


def test_frames_that_would_fill_the_memory_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poster, "LARGEST_PIXELS", 1000)
    with pytest.raises(NoPoster, match="64 x 48 are too large"):
        make_poster(film(tmp_path / "a.mp4", [solid(RED)]), tmp_path / "still.jpg")


def test_pictures_that_move_have_no_poster_and_neither_has_a_sound(tmp_path: Path) -> None:
    frames = [Image.fromarray(solid(color)) for color in (RED, BLUE)]
    for name in ("a.gif", "a.webp", "a.apng"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100)
    names = ["a.gif", "a.webp", "a.apng", sound(tmp_path / "a.wav").name]
    artifacts = [artifact(tmp_path / name, tmp_path) for name in names]
    assert add_posters(tmp_path, artifacts) == (tuple(artifacts), ())
    assert not has_poster(artifact(sound(tmp_path / "b.wav"), tmp_path, kind="video", mime="audio/mpeg"))


# --- all that a run made -------------------------------------------------------------------------------------------


def test_each_video_names_its_poster_and_whatever_else_there_is_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    clip = artifact(film(tmp_path / "out" / "clip.mp4", [solid(RED)] * 3), tmp_path, primary=True)
    other = artifact(film(tmp_path / "out" / "clip.webm", [solid(BLUE)] * 3, codec="libvpx-vp9"), tmp_path)
    Image.fromarray(solid(RED)).save(tmp_path / "out" / "pic.png")
    pic = artifact(tmp_path / "out" / "pic.png", tmp_path)
    found, warnings = add_posters(tmp_path, [clip, pic, other])
    assert not warnings and len(found) == 5 and found[1] == pic
    assert [each.poster for each in found] == ["clip.poster.jpg", None, "clip-2.poster.jpg", None, None]
    for still, video in zip(found[3:], (found[0], found[2]), strict=True):
        content = (tmp_path / still.path).read_bytes()
        assert (still.kind, still.mime, still.name, still.node_id) == ("poster", "image/jpeg", video.poster, "9")
        assert (still.width, still.height, still.primary, still.bytes) == (*SIZE, False, len(content))
        assert still.sha256 == hashlib.sha256(content).hexdigest()
        assert Path(still.path).parent == Path(video.path).parent
    assert found[0].primary


def test_a_poster_overwrites_nothing(tmp_path: Path) -> None:
    clip = artifact(film(tmp_path / "clip.mp4", [solid(RED)]), tmp_path)
    Image.fromarray(solid(BLUE)).save(tmp_path / "clip.poster.jpg")
    users = artifact(tmp_path / "clip.poster.jpg", tmp_path)
    found, warnings = add_posters(tmp_path, [clip, users])
    assert not warnings and found[0].poster == "clip-2.poster.jpg" and found[1] == users
    assert sha256_of(tmp_path / "clip.poster.jpg") == users.sha256


def test_one_that_cannot_be_made_is_a_warning_and_the_others_are_made(tmp_path: Path) -> None:
    clip = artifact(film(tmp_path / "clip.mp4", [solid(RED)]), tmp_path)
    spoilt = artifact(film(tmp_path / "spoilt.mp4", [solid(RED)]), tmp_path, primary=True)
    noise(tmp_path / "spoilt.mp4")
    found, warnings = add_posters(tmp_path, [spoilt, clip])
    assert [each.name for each in found] == ["spoilt.mp4", "clip.mp4", "clip.poster.jpg"]
    assert len(warnings) == 1 and warnings[0].startswith("no poster of spoilt.mp4: ")


def test_a_file_that_is_gone_and_a_name_that_is_too_long_end_nothing(tmp_path: Path) -> None:
    long = artifact(film(tmp_path / f"{'ä' * 120}.mp4", [solid(RED)]), tmp_path)
    gone = artifact(film(tmp_path / "gone.mp4", [solid(RED)]), tmp_path)
    (tmp_path / "gone.mp4").unlink()
    found, warnings = add_posters(tmp_path, [long, gone])
    assert len(warnings) == 1 and [each.kind for each in found] == ["video", "video", "poster"]


def test_a_task_of_many_videos_gets_so_many_posters_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poster, "MOST_POSTERS", 2)
    clips = [artifact(film(tmp_path / f"{index}.mp4", [solid(RED)]), tmp_path) for index in range(4)]
    found, warnings = add_posters(tmp_path, clips)
    assert len(found) == 6 and warnings == ("no poster of 2 of the videos: a task gets 2 at most",)


def test_a_cancelled_task_gets_none(tmp_path: Path) -> None:
    clip = artifact(film(tmp_path / "clip.mp4", [solid(RED)]), tmp_path)
    assert add_posters(tmp_path, [clip], lambda: True) == ((clip,), ())


# --- the handler ---------------------------------------------------------------------------------------------------


def clip_graph() -> dict[str, Any]:
    """Two pictures become a video, one more is saved as it is."""
    graph = picture()
    graph["1"]["inputs"].update(batch_size=4, color=0x20B428)
    combine = {"images": ["1", 0], "frame_rate": 8, "format": "video/h264-mp4", "save_output": True, "pingpong": False}
    return {**graph, "3": {"class_type": "VHS_VideoCombine", "inputs": combine}}


def test_a_comfy_task_gets_a_poster_where_results_go_to_storage(bench: Callable[..., Bench]) -> None:
    one = bench(posters=True)
    outcome = one.succeeds({"workflow": clip_graph()})
    main = next(each for each in outcome.artifacts if each.primary)
    still = next(each for each in outcome.artifacts if each.kind == "poster")
    assert main.kind == "video" and main.poster == still.name and still.node_id == main.node_id == "3"
    with Image.open(one.work_dir / still.path) as image:
        assert near(image.getpixel((8, 8)), (0x20, 0xB4, 0x28))


def test_on_this_machine_a_comfy_task_makes_only_what_its_graph_makes(bench: Callable[..., Bench]) -> None:
    outcome = bench().succeeds({"workflow": clip_graph()})
    assert {each.kind for each in outcome.artifacts} == {"video", "image"}
    assert all(each.poster is None for each in outcome.artifacts)


def test_of_several_videos_of_one_node_the_rows_thumbnail_is_the_primarys(tmp_path: Path) -> None:
    """Also when that one has none: another video's would be a lie."""
    first = artifact(film(tmp_path / "a.mp4", [solid(BLUE)]), tmp_path)
    main = artifact(film(tmp_path / "b.mp4", [solid(RED)]), tmp_path, primary=True)
    for spoil, wanted in ((False, "b.poster.jpg"), (True, None)):
        if spoil:
            noise(tmp_path / "b.mp4")
        found, _ = add_posters(tmp_path, [first, main])
        still = poster_of([Staged(each, tmp_path / each.path) for each in found])
        assert (still.artifact.name if still else None) == wanted
        for path in tmp_path.glob("*.jpg"):
            path.unlink()
