"""What the engine gets of a row's media: upright, whole, in the size that is made, and none of the user's bytes."""

from __future__ import annotations

import contextlib
import random
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from tests.test_wan_handler import Told
from tests.wan_models import MODEL_DEFS
from wan2gp.handlers.api import Interrupted, Job, TaskFailure
from wan2gp.handlers.media_probe import Unreadable, probe
from wan2gp.handlers.wan_files import WanFiles
from wan2gp.handlers.wan_fit import Fit, fit_picture, paint_picture, size_of
from wan2gp.handlers.wan_fit_film import fit_film, fit_sound
from wan2gp.handlers.wan_models import facts_of
from wan2gp.handlers.wan_options import WanSettings
from wan2gp.handlers.wan_request import read_request
from wan2gp.handlers.wan_settings import engine_task
from wan2gp.handlers.wan_values import Pixels

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def quiet() -> None:
    """A tick that ends nothing."""


def halves(path: Path, width: int = 40, height: int = 80, **saved: Any) -> Path:
    """Red above, blue below."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (0, height // 2, width, height))
    image.save(path, **saved)
    return path


def fitted(source: Path, size: tuple[int, int] | None, how: str = "crop", *, mask: bool = False) -> Image.Image:
    target = source.with_name("fitted.png")
    fit_picture(source, target, Fit(Pixels(*size) if size else None, how), mask=mask)
    with Image.open(target) as image:
        image.load()
        return image.copy()


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "corner", "middle"),
    [("crop", RED, BLUE), ("stretch", RED, BLUE), ("pad", (0, 0, 0), BLUE)],
)
def test_a_picture_of_another_shape_is_cropped_padded_or_stretched(
    tmp_path: Path, how: str, corner: tuple[int, ...], middle: tuple[int, ...]
) -> None:
    image = fitted(halves(tmp_path / "a.png"), (64, 64), how)
    assert (image.size, image.mode) == ((64, 64), "RGB")
    assert (image.getpixel((1, 1)), image.getpixel((32, 40))) == (corner, middle)


def test_a_telephones_picture_is_turned_by_its_exif_entry(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    source = halves(tmp_path / "a.jpg", exif=exif, quality=95)
    assert size_of(source) == Pixels(80, 40)
    left, right = (fitted(source, None).getpixel(place) for place in ((5, 20), (75, 20)))
    assert isinstance(left, tuple) and isinstance(right, tuple)
    assert left[2] > 200 > right[2] and right[0] > 200 > left[0]


def test_what_is_transparent_is_white_in_a_picture_and_unmarked_in_a_mask(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    Image.new("RGBA", (8, 8), (255, 255, 0, 0)).save(source)
    assert fitted(source, None).getpixel((2, 2)) == (255, 255, 255)
    assert fitted(source, None, mask=True).getpixel((2, 2)) == 0
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([9, 9, 9, 255, 255, 255])
    palette.save(source, transparency=1)
    assert fitted(source, None, mask=True).getpixel((2, 2)) == 0


def test_a_picture_of_sixteen_bits_does_not_turn_white(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    Image.new("I;16", (8, 8), 0x8000).save(source)
    assert fitted(source, None).getpixel((2, 2)) == (127, 127, 127)
    assert fitted(source, None, mask=True).getpixel((2, 2)) == 127
    source = tmp_path / "a.tif"
    Image.new("F", (8, 8), 0.5).save(source)
    assert fitted(source, None, mask=True).getpixel((2, 2)) == 127


def test_a_mask_is_painted_in_pure_green_also_where_it_is_of_another_size(tmp_path: Path) -> None:
    source, mask, target = halves(tmp_path / "a.png"), tmp_path / "m.png", tmp_path / "t.png"
    marks = Image.new("L", (20, 40), 100)
    marks.paste(200, (0, 0, 20, 20))
    marks.save(mask)
    assert paint_picture(source, mask, target, Fit(Pixels(40, 80)))
    with Image.open(target) as image:
        assert (image.getpixel((20, 10)), image.getpixel((20, 70))) == (GREEN, BLUE)
    Image.new("L", (40, 80), 0).save(mask)
    assert not paint_picture(source, mask, target, Fit())


def test_a_spoilt_picture_is_an_error_and_not_half_a_picture(tmp_path: Path) -> None:
    source = halves(tmp_path / "a.png", 200, 200)
    source.write_bytes(source.read_bytes()[:200])
    for spoil in (lambda: fitted(source, None), lambda: fitted(tmp_path / "nothing.png", None)):
        with pytest.raises(Unreadable):
            spoil()


def test_the_size_of_a_picture_that_no_memory_takes_is_not_asked_twice(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    Image.new("L", (4, 4)).save(source)
    head = bytearray(source.read_bytes())
    head[16:24] = struct.pack(">II", 40_000, 40_000)
    head[29:33] = struct.pack(">I", zlib.crc32(bytes(head[12:29])))
    source.write_bytes(head)
    for ask in (lambda: size_of(source), lambda: fitted(source, (64, 64))):
        with pytest.raises(Unreadable, match="decompression bomb"):
            ask()


# --- films and sounds -------------------------------------------------------------------------------------------------


def film(path: Path, frames: int, fps: Fraction | int = 16, *, sound: bool = False, width: int = 96) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, 64, "yuv420p"
        voice = output.add_stream("aac", rate=44100, layout="stereo") if sound else None
        for number in range(frames):
            picture = av.VideoFrame(width, 64, "rgb24")
            picture.planes[0].update(bytes([number * 5 % 256]) * picture.planes[0].buffer_size)
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
        if voice is not None:
            for number in range(int(frames / fps * 44100 / 1024)):
                silence = av.AudioFrame("fltp", "stereo", 1024)
                for plane in silence.planes:
                    plane.update(bytes(plane.buffer_size))
                silence.rate, silence.pts = 44100, number * 1024
                output.mux(voice.encode(silence))
            output.mux(voice.encode(None))
    return path


@pytest.mark.parametrize(("frames", "fps"), [(1, 16), (33, 16), (50, Fraction(30000, 1001)), (81, 24)])
@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
def test_a_film_keeps_its_frames_its_rate_and_its_sound(
    tmp_path: Path, frames: int, fps: Fraction | int, how: str
) -> None:
    target = tmp_path / "b.mp4"
    made = fit_film(film(tmp_path / "a.mp4", frames, fps, sound=True), target, Fit(Pixels(64, 80), how), quiet)
    found = probe(target)
    assert (made.frames, found.frames, found.width, found.height) == (frames, frames, 64, 80)
    with av.open(str(target)) as written:
        assert written.streams.video[0].average_rate == fps
        sound = written.streams.audio[0]
        assert sound.duration is not None and sound.time_base is not None
        assert abs(float(sound.duration * sound.time_base) - float(frames / fps)) < 0.1


def test_no_more_of_a_film_is_taken_than_is_needed(tmp_path: Path) -> None:
    made = fit_film(
        film(tmp_path / "a.mp4", 81), tmp_path / "b.mp4", Fit(), quiet, mask=True, most=lambda rate: int(rate) + 4
    )
    assert made.frames == probe(tmp_path / "b.mp4").frames == 20


def test_a_film_that_breaks_off_is_taken_as_far_as_it_goes(tmp_path: Path) -> None:
    source = tmp_path / "a.mkv"
    film(source, 60)
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    made = fit_film(source, tmp_path / "b.mp4", Fit(Pixels(64, 64)), quiet)
    assert 0 < made.frames < 60 and probe(tmp_path / "b.mp4").frames == made.frames


def test_what_is_no_film_or_sound_is_an_error(tmp_path: Path) -> None:
    text = tmp_path / "a.mp4"
    text.write_text("#EXTM3U\nfile:///etc/passwd\n")
    with pytest.raises(Unreadable):
        fit_film(text, tmp_path / "b.mp4", Fit(), quiet)
    with pytest.raises(Unreadable):
        fit_sound(film(tmp_path / "silent.mp4", 5), tmp_path / "b.wav", quiet)


def test_the_sound_of_a_film_serves_as_sound(tmp_path: Path) -> None:
    fit_sound(film(tmp_path / "a.mp4", 16, sound=True), tmp_path / "b.wav", quiet)
    found = probe(tmp_path / "b.wav")
    assert found.kind == "audio" and found.duration_s == pytest.approx(1.0, abs=0.1)


@pytest.mark.filterwarnings("ignore")  # of the libraries: they say more or less of it by their release
def test_whatever_is_wrong_with_a_file_is_said_of_the_file(tmp_path: Path) -> None:
    """No error of a library's own reaches the row, whatever a byte of the file was changed to."""
    chance = random.Random(7)
    files = [halves(tmp_path / f"a{ending}") for ending in (".png", ".jpg", ".webp", ".gif", ".bmp")]
    files.append(film(tmp_path / "a.mp4", 12, sound=True))
    spoilt = tmp_path / "spoilt"
    for _ in range(90):
        source = chance.choice(files)
        content = bytearray(source.read_bytes())
        for _ in range(chance.randint(1, 12)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        spoilt.write_bytes(content[: chance.randint(len(content) // 3, len(content))])
        with contextlib.suppress(Unreadable):
            fit_picture(spoilt, tmp_path / "o.png", Fit(Pixels(64, 64)))
        with contextlib.suppress(Unreadable):
            fit_film(spoilt, tmp_path / "o.mp4", Fit(Pixels(64, 64)), quiet, most=lambda rate: 100)
        with contextlib.suppress(Unreadable):
            fit_sound(spoilt, tmp_path / "o.wav", quiet)


def test_a_cancel_does_not_wait_for_the_end_of_a_film(tmp_path: Path) -> None:
    def stop() -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        fit_film(film(tmp_path / "a.mp4", 40), tmp_path / "b.mp4", Fit(), stop)


# --- a task's files ---------------------------------------------------------------------------------------------------


def taken(place: Path, task_type: str, params: dict[str, Any]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Where a row's files are for the engine, and the warnings."""
    told = Told()
    work = place / "work"
    job = Job("t", task_type, 1, "l", params, work, dict, told.report, told.fact, lambda: False)  # type: ignore[arg-type]
    request = read_request(task_type, params)
    facts = facts_of(request.model, MODEL_DEFS[request.model])
    files = WanFiles(job, WanSettings(allow_paths=[str(place)]), request)
    files.take_local()
    files.take_remote()
    loras = {lora.url: lora.url for lora in request.row.loras}
    task = engine_task(request, facts, files.planned, loras, input_size=files.input_size)
    return dict(files.planned), files.fit(task.settings, facts)


def vace(**more: Any) -> dict[str, Any]:
    return {"prompt": "x", "resolution": "64x64", "video_length": 33, **more}


def test_the_engine_reads_nothing_into_a_files_name(tmp_path: Path) -> None:
    """It takes a part behind a bar for the frames that are meant."""
    source = halves(tmp_path / "a|start_frame=5,end_frame=9.png")
    files, _ = taken(tmp_path, "i2v", {"prompt": "x", "image_start": str(source), "resolution": "64x64"})
    assert files["image_start"].name == "image_start-0.png" and files["image_start"].is_file()


def test_a_guide_is_cut_and_one_that_is_too_short_is_told_of(tmp_path: Path) -> None:
    long, short = film(tmp_path / "long.mp4", 120), film(tmp_path / "short.mp4", 20)
    files, warnings = taken(tmp_path, "vace", vace(video_guide=str(long)))
    assert probe(files["video_guide"]).frames == 34 and warnings == ()
    files, warnings = taken(tmp_path, "vace", vace(video_guide=str(short)))
    assert probe(files["video_guide"]).frames == 20
    assert len(warnings) == 1 and "`video_guide` is 1.25 s long" in warnings[0]


def test_a_mask_that_does_not_go_with_its_guide_is_refused(tmp_path: Path) -> None:
    guide = film(tmp_path / "guide.mp4", 33)
    for mask, words in ((film(tmp_path / "m.mp4", 30), "30 frames"), (film(tmp_path / "n.mp4", 33, 24), "24 frames")):
        with pytest.raises(TaskFailure) as caught:
            taken(tmp_path, "vace", vace(video_guide=str(guide), video_mask=str(mask)))
        assert caught.value.code == "input.bad_params" and words in caught.value.message
    # What the video does not need may differ.
    longer, longest = film(tmp_path / "o.mp4", 40), film(tmp_path / "p.mp4", 90)
    taken(tmp_path, "vace", vace(video_guide=str(longer), video_mask=str(longest)))
    taken(tmp_path, "vace", vace(video_guide=str(guide), video_mask=str(longest)))


def test_references_keep_their_shape_but_for_those_that_are_frames(tmp_path: Path) -> None:
    pictures = [str(halves(tmp_path / f"{name}.png")) for name in "ab"]
    params = vace(image_refs=pictures, frames_positions="1")
    files, _ = taken(tmp_path, "vace", params)
    assert size_of(files["image_refs[0]"]) == Pixels(64, 64)
    assert size_of(files["image_refs[1]"]) == Pixels(40, 80)


def test_a_picture_that_is_edited_gets_the_size_of_the_result(tmp_path: Path) -> None:
    source, mask = halves(tmp_path / "a.png", 600, 400), tmp_path / "m.png"
    Image.new("L", (600, 400), 0).save(mask)
    files, warnings = taken(
        tmp_path, "image_inpaint", {"image": str(source), "mask": str(mask), "resolution": "256x128"}
    )
    assert size_of(files["image"]) == Pixels(256, 128)
    assert warnings == ("`mask` marks nothing: nowhere is it brighter than half",)


def test_a_file_that_is_none_of_its_kind_is_refused_by_the_parameters_name(tmp_path: Path) -> None:
    text = tmp_path / "a.png"
    text.write_text("<html>")
    with pytest.raises(TaskFailure) as caught:
        taken(tmp_path, "i2v", {"prompt": "x", "image_start": str(text)})
    assert caught.value.code == "input.not_media" and "`image_start`" in caught.value.message
