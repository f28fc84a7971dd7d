"""Frames between pictures: exactly as many as are asked for, of the size that is asked for, the inputs at both ends."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest_db import PgServer
from tests.rife_stand_in import FILES, make_root, runs, write_weights
from tests.shared_worker import shared_worker
from wan2gp.config import load_config
from wan2gp.demo_stage import InputServer
from wan2gp.handlers.api import HandlerContext, Job, TaskFailure
from wan2gp.handlers.classify import classify
from wan2gp.handlers.media import MediaHandler
from wan2gp.handlers.media_between import Cuts, by_ffmpeg
from wan2gp.handlers.media_make import upsample
from wan2gp.handlers.media_request import read_request
from wan2gp.handlers.media_scenes import places
from wan2gp.handlers.media_settings import MediaSettings
from wan2gp.media_sources import RIFE_URL, sources_of
from wan2gp.model_places import place_of
from wan2gp.protocol import Cancelled, Failed, Outcome, Source, Succeeded
from wan2gp.supervisor.registry import media_spec
from wan2gp.wan_sidecar.rife_weights import find_rife

SIZE = (96, 64)
Json = dict[str, Any]
Pixels = Any


def scene(left: int, size: tuple[int, int] = SIZE, colour: tuple[int, int, int] = (220, 180, 30)) -> Pixels:
    """A textured square on a plain ground."""
    width, height = size
    picture = np.full((height, width, 3), (40, 60, 80), np.uint8)
    picture[height // 4 : 3 * height // 4, left : left + 32] = colour
    picture[height // 4 : 3 * height // 4 : 4, left : left + 32] //= 2
    return picture


def read(path: Path) -> list[Pixels]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def make_film(path: Path, count: int = 12, rate: int = 12, *, sound: bool = False, cut_at: int | None = None) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv444p"
        heard = container.add_stream("aac", rate=48000, layout="mono") if sound else None
        for index in range(count):
            other = cut_at is not None and index >= cut_at
            picture = 255 - scene(60 - 2 * index) if other else scene(2 * index)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        if heard is not None:
            for at in range(0, count * 48000 // rate, 1024):
                wave = (0.3 * np.sin(np.arange(at, at + 1024) / 9)).astype(np.float32)[None]
                frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                frame.rate, frame.pts = 48000, at
                container.mux(heard.encode(frame))
            container.mux(heard.encode(None))
        container.mux(stream.encode(None))
    return path


def streams(path: Path) -> dict[str, float]:
    """Seconds, by kind."""
    with av.open(str(path)) as container:
        return {each.type: float(each.duration * each.time_base) for each in container.streams}


@dataclass
class Bench:
    """A handler without a supervisor. `files` are what the courier would bring."""

    path: Path
    settings: Json
    files: dict[str, Path] = field(default_factory=dict)
    fetched: list[Mapping[str, Source]] = field(default_factory=list)
    states: list[tuple[str, Json]] = field(default_factory=list)
    steps: list[tuple[int | None, int | None]] = field(default_factory=list)
    cancel: threading.Event = field(default_factory=threading.Event)
    heard: Callable[[int | None], None] = lambda step: None
    runs: int = 0

    def __post_init__(self) -> None:
        home = self.path / "home"
        home.mkdir(parents=True)
        given = {"allow_paths": [str(self.path)], **self.settings}
        self.handler = MediaHandler(HandlerContext("media", home, given, lambda *_, **__: None, self._state))

    def _state(self, state: str, **detail: Any) -> None:
        self.states.append((state, detail))

    def _report(self, fraction: float | None, phase: str, step: int | None, steps: int | None, *_: Any) -> None:
        assert fraction is not None and 0 <= fraction <= 1
        if step is not None:
            self.steps.append((step, steps))
            self.heard(step)

    def _obtain(self, sources: Mapping[str, Source]) -> dict[str, Path]:
        self.fetched.append(sources)
        for name in sources:
            if name not in self.files:
                raise TaskFailure("input.not_found", "there is nothing")
        return {name: self.files[name] for name in sources}

    @property
    def clip(self) -> Path:
        return self.path / f"work{self.runs}" / "interpolated.mp4"

    def run(self, params: Any) -> Outcome:
        self.runs += 1
        job = Job(
            task_id="11111111-2222-3333-4444-555555555555",
            task_type="rife_interpolate_images",
            attempt=1,
            lease_id="aaaaaaaa",
            params=params,
            place=self.path / f"work{self.runs}",
            obtain=self._obtain,
            report=self._report,
            fact=lambda *_, **__: None,
            cancel_flag=self.cancel.is_set,
        )
        try:
            return self.handler.run(job)
        except Exception as error:
            return classify(error)

    def makes(self, **params: Any) -> Succeeded:
        outcome = self.run(params)
        assert isinstance(outcome, Succeeded), outcome
        return outcome

    def fails(self, **params: Any) -> Failed:
        outcome = self.run(params)
        assert isinstance(outcome, Failed), outcome
        return outcome

    def pictures(self, *lefts: int, size: tuple[int, int] = SIZE) -> list[str]:
        paths = [self.path / f"{left}-{size[0]}x{size[1]}.png" for left in lefts]
        for path, left in zip(paths, lefts, strict=True):
            Image.fromarray(scene(left, size)).save(path)
        return [str(path) for path in paths]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(*versions: str, fault: str = "", **settings: Any) -> Bench:
        path = tmp_path / f"bench{len(made)}"
        given: Json = {"python": sys.executable, **settings}
        if versions:
            given["checkout"] = str(make_root(tmp_path / f"root{len(made)}", *filter(None, versions), fault=fault))
        made.append(Bench(path, given))
        return made[-1]

    yield make
    for one in made:
        one.handler.close()
        assert not any(runs(state["pid"]) for _, state in one.states if "pid" in state)


# --- counts, sizes, ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rife", "ffmpeg"])
def test_two_pictures_become_exactly_the_frames_asked_for(bench: Callable[..., Bench], method: str) -> None:
    """The predecessor made nine whatever was asked, and repeated the last one up to the number."""
    one = bench(*(["v4"] if method == "rife" else []))
    first, last = one.pictures(4, 20)
    for frames in (2, 3, 9, 10, 33, 130):
        done = one.makes(images=[first, last], frames=frames, fps=24, method=method, lossless=True)
        made, artifact = read(one.clip), done.artifacts[0]
        assert len(made) == frames == artifact.frames and {each.shape for each in made} == {(64, 96, 3)}
        assert artifact.primary and (artifact.width, artifact.height) == SIZE
        assert artifact.duration_s == pytest.approx(frames / 24, abs=0.01)
        assert (made[0] == scene(4)).all() and (made[-1] == scene(20)).all()
        assert len({each.tobytes() for each in made}) >= min(frames, 12), "frames are repeated"
        assert done.data["made"] == {"frames": frames, "fps": 24.0, "resolution": "96x64", "sources": 2, "cuts": 0}
    assert one.steps[-1] == (130, 130)
    assert len([state for state, _ in one.states if state == "ready"]) == (6 if method == "rife" else 0)
    assert len({detail["pid"] for _, detail in one.states}) == (1 if method == "rife" else 0), "not kept warm"


def test_the_clip_that_browsers_show_begins_and_ends_with_the_inputs(bench: Callable[..., Bench]) -> None:
    one = bench()
    paths = [str(one.path / name) for name in ("a.png", "b.png")]
    ends = [np.full((64, 96, 3), colour, np.uint8) for colour in ((200, 40, 90), (20, 130, 220))]
    for path, picture in zip(paths, ends, strict=True):
        Image.fromarray(picture).save(path)
    done = one.makes(images=paths, frames=10, method="ffmpeg")
    made = read(one.clip)
    for shown, picture in ((made[0], ends[0]), (made[-1], ends[1])):
        assert np.abs(shown.astype(int) - picture).max() <= 3
    with av.open(str(one.clip)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.pix_fmt, stream.average_rate) == ("yuv420p", 16)
    assert done.artifacts[0].mime == "video/mp4"


def test_what_moves_is_halfway_in_the_middle(bench: Callable[..., Bench]) -> None:
    """A cross-fade would show both squares at once."""
    one = bench()
    one.makes(images=one.pictures(8, 24), frames=9, method="ffmpeg", lossless=True)
    middle = read(one.clip)[4].astype(int)
    assert np.abs(middle - scene(16)).mean() < 0.5 * np.abs((scene(8).astype(int) + scene(24)) / 2 - scene(16)).mean()


@pytest.mark.parametrize("most", [3, 64])
def test_a_long_way_between_two_pictures_is_not_made_at_once(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The filter makes all frames between two of its inputs before anybody can take one: too many for the memory."""
    monkeypatch.setattr("wan2gp.handlers.media_between.MOST_AT_ONCE", most)
    given = [(0, scene(16)), (61, scene(28)), (200, scene(40))]
    seen = list(by_ffmpeg(iter(given), Cuts(False)))
    assert len(seen) == 201 and all((seen[place] == picture).all() for place, picture in given)
    likest = min(range(60), key=lambda left: float(np.abs(seen[30].astype(int) - scene(left)).mean()))
    assert 20 <= likest <= 24, "the way is not gone evenly"


def test_more_pictures_are_all_passed_through(bench: Callable[..., Bench]) -> None:
    one = bench("v4")
    one.makes(images=one.pictures(0, 30, 10), frames=8, method="rife", lossless=True)
    made = read(one.clip)
    assert len(made) == 8 and (made[0] == scene(0)).all() and (made[-1] == scene(10)).all()
    assert any((frame == scene(30)).all() for frame in made[3:5])


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_every_rule_of_fitting_gives_the_size_that_was_asked_for(bench: Callable[..., Bench], fit: str) -> None:
    one = bench()
    tall = np.full((90, 60, 3), 200, np.uint8)
    tall[:10], tall[-10:] = 20, 20
    path = one.path / "tall.png"
    Image.fromarray(tall).save(path)
    done = one.makes(images=[str(path)] * 2, frames=3, resolution="128x64", fit=fit, method="ffmpeg", lossless=True)
    first = read(one.clip)[0]
    assert first.shape == (64, 128, 3) and done.data["made"]["resolution"] == "128x64"
    edge, corner = int(first[32, 2, 0]), int(first[1, 64, 0])
    assert {"crop": edge > 190 and corner > 190, "pad": edge == 0, "stretch": edge > 190 and corner < 40}[fit]


def test_fractional_rates_are_what_they_stand_for(bench: Callable[..., Bench]) -> None:
    one = bench()
    for asked, meant in ((23.976, Fraction(24000, 1001)), (12.5, Fraction(25, 2)), (120, Fraction(120)), (1, 1)):
        one.makes(images=one.pictures(0, 8), frames=4, fps=asked, method="ffmpeg")
        with av.open(str(one.clip)) as container:
            assert container.streams.video[0].average_rate == meant


def test_a_picture_of_odd_sides_becomes_a_clip_and_a_word(bench: Callable[..., Bench]) -> None:
    one = bench()
    done = one.makes(images=one.pictures(0, 8, size=(97, 65)), frames=3, method="ffmpeg")
    assert (done.artifacts[0].width, done.artifacts[0].height) == (96, 64)
    assert any("96x64, not 97x65" in warning for warning in done.warnings)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([0.001, 0.04, 0.04, 0.5]), min_size=1, max_size=40), st.integers(2, 90))
def test_every_source_has_its_place_however_uneven_the_times(steps: list[float], frames: int) -> None:
    times = [sum(steps[:count]) for count in range(len(steps) + 1)]
    found = places(times, frames)
    assert found[0] == (0, 0) and found[-1] == (frames - 1, len(times) - 1)
    assert len(found) == min(frames, len(times))
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in zip(found, found[1:], strict=False))


# --- videos ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rife", "ffmpeg"])
def test_a_video_gets_more_frames_keeps_its_own_and_its_sound(bench: Callable[..., Bench], method: str) -> None:
    one = bench("v4")
    film = make_film(one.path / "film.mp4", 12, 12, sound=True)
    done = one.makes(video=str(film), multiplier=3, method=method, lossless=True)
    made, sources = read(one.clip), read(film)
    assert len(made) == 34 and done.data["made"]["fps"] == 36.0
    for index, source in enumerate(sources):
        assert np.abs(made[3 * index].astype(int) - source).max() <= 4, f"source frame {index} was altered"
    lasting = streams(one.clip)
    assert lasting["audio"] == pytest.approx(lasting["video"], abs=0.06)


@pytest.mark.parametrize("frames", [2, 5, 12, 13, 29])
def test_a_video_can_be_made_of_any_number_of_frames(bench: Callable[..., Bench], frames: int) -> None:
    one = bench()
    film = make_film(one.path / "film.mp4")
    done = one.makes(video=str(film), frames=frames, method="ffmpeg", lossless=True)
    made, sources = read(one.clip), read(film)
    assert len(made) == frames
    assert np.abs(made[0].astype(int) - sources[0]).max() <= 4 and np.abs(made[-1].astype(int) - sources[-1]).max() <= 4
    assert (frames - 1) / done.data["made"]["fps"] == pytest.approx(11 / 12, abs=0.01)


def test_slow_motion_has_no_sound_and_says_so(bench: Callable[..., Bench]) -> None:
    one = bench()
    film = make_film(one.path / "film.mp4", sound=True)
    done = one.makes(video=str(film), multiplier=2, fps=12, method="ffmpeg")
    assert list(streams(one.clip)) == ["video"]
    assert any("sound is left out" in warning for warning in done.warnings)


def test_scenes_are_not_melted_into_each_other_where_a_video_cuts(bench: Callable[..., Bench]) -> None:
    one = bench()
    film = make_film(one.path / "film.mp4", 12, cut_at=6)
    done = one.makes(video=str(film), multiplier=4, method="ffmpeg", lossless=True)
    made, sources = read(one.clip), read(film)
    assert done.data["made"]["cuts"] == 1 and any("cuts" in warning for warning in done.warnings)
    for index in (21, 22):
        assert np.abs(made[index].astype(int) - sources[5]).max() <= 4
    assert np.abs(made[23].astype(int) - sources[6]).max() <= 4


def test_a_video_with_uneven_times_keeps_them(bench: Callable[..., Bench]) -> None:
    """Phones and screen recorders write such files: one frame after another would run too fast, then too slow."""
    one = bench()
    film = one.path / "uneven.mkv"
    with av.open(str(film), "w") as container:
        stream = container.add_stream("libx264", rate=100, options={"crf": "1", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv444p"
        stream.codec_context.time_base = Fraction(1, 100)
        for at in (0, 10, 20, 80, 100):
            frame = av.VideoFrame.from_ndarray(scene(at // 2), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    one.makes(video=str(film), frames=11, method="ffmpeg", lossless=True)
    made = read(one.clip)
    for place, left in ((0, 0), (1, 5), (2, 10), (8, 40), (10, 50)):
        assert np.abs(made[place].astype(int) - scene(left)).max() <= 4


def test_a_video_held_upright_stays_upright(bench: Callable[..., Bench]) -> None:
    one = bench()
    film, turned = make_film(one.path / "film.mp4", 4), one.path / "turned.mp4"
    data = bytearray(film.read_bytes())
    upright = b"".join(each.to_bytes(4, "big") for each in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    quarter = b"".join(
        each.to_bytes(4, "big", signed=True) for each in (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    )
    at = data.rindex(upright)  # of the track, not of the film
    data[at : at + len(upright)] = quarter
    turned.write_bytes(data)
    done = one.makes(video=str(turned), frames=7, method="ffmpeg", lossless=True)
    assert done.data["made"]["resolution"] == "64x96"
    assert np.abs(read(one.clip)[0].astype(int) - np.rot90(scene(0), -1)).max() <= 4


def test_a_video_of_one_frame_is_refused(bench: Callable[..., Bench]) -> None:
    one = bench()
    failure = one.fails(video=str(make_film(one.path / "one.mp4", 1)), frames=9, method="ffmpeg")
    assert failure.code == "input.bad_params" and "one frame only" in failure.message


def test_a_generation_can_be_upsampled_with_the_same_hands(tmp_path: Path) -> None:
    film = make_film(tmp_path / "made.mp4", 10, 16, sound=True)
    told: list[tuple[int, int]] = []
    made = upsample(
        film, tmp_path / "more.mp4", 2, None, written=lambda *each: told.append(each), abandoned=lambda: False
    )
    assert made.info.frames == 19 and told[-1] == (19, 19) and "audio" in streams(tmp_path / "more.mp4")


# --- which way -------------------------------------------------------------------------------------------------------


def test_ffmpeg_is_never_taken_in_silence(bench: Callable[..., Bench]) -> None:
    one = bench()
    failure = one.fails(images=one.pictures(0, 8), frames=9)
    assert failure.code == "media.no_rife" and not failure.retryable and one.fetched == []
    for word in ("WAN2GP_PATH", '"method": "ffmpeg"', "wan.interpolation=auto"):
        assert word in failure.message


def test_the_missing_weights_and_their_place_are_named(bench: Callable[..., Bench]) -> None:
    one = bench("", python=sys.executable)
    failure = one.fails(images=one.pictures(0, 8), frames=9, method="rife")
    assert failure.code == "media.no_rife"
    assert "rife4.26.pkl" in failure.message and f"{one.settings['checkout']}/ckpts" in failure.message


def test_a_worker_set_up_for_it_takes_ffmpeg_and_the_row_says_so(bench: Callable[..., Bench]) -> None:
    for setting in ("auto", "ffmpeg"):
        one = bench(interpolation=setting)
        done = one.makes(images=one.pictures(0, 8), frames=9)
        assert done.engine == {"interpolation": "ffmpeg minterpolate"}
        assert any("made by ffmpeg minterpolate, not by RIFE" in warning for warning in done.warnings)
    asked = one.makes(images=one.pictures(0, 8), frames=9, method="ffmpeg")
    assert asked.warnings == () and asked.engine == {"interpolation": "ffmpeg minterpolate"}


def test_the_row_says_which_rife_made_it_and_whose_it_is(bench: Callable[..., Bench]) -> None:
    one = bench("v3", interpolation="auto")
    done = one.makes(images=one.pictures(0, 8), frames=4)
    assert done.engine["interpolation"] == "RIFE HDv3" and done.engine["name"] == "WanGP"
    assert done.engine["device"] == "cpu" and done.engine["version"]


def test_missing_weights_are_fetched_where_weights_may_be(bench: Callable[..., Bench], tmp_path: Path) -> None:
    one = bench("", download=True)
    one.files["weights"] = tmp_path / "kept" / FILES["v4"]
    write_weights(one.files["weights"])
    done = one.makes(images=one.pictures(0, 8), frames=4)
    assert done.engine["interpolation"] == "RIFE v4.26"
    assert one.fetched == [{"weights": Source(RIFE_URL, "weights")}]
    del one.files["weights"]
    failure = one.fails(images=one.pictures(0, 8), frames=4)
    assert failure.code == "media.no_rife" and "cannot be fetched: there is nothing" in failure.message


@pytest.mark.parametrize(
    ("fault", "code", "again"),
    [
        ("memory", "engine.out_of_memory", True),
        pytest.param("die", "media.rife_failed", True, marks=pytest.mark.long),
        pytest.param("nan", "media.rife_failed", False, marks=pytest.mark.long),
    ],
)
def test_a_rife_that_fails_is_not_replaced_by_ffmpeg(
    bench: Callable[..., Bench], fault: str, code: str, again: bool
) -> None:
    one = bench("v4", fault=fault, interpolation="auto")
    failure = one.fails(images=one.pictures(0, 8), frames=9)
    assert (failure.code, failure.retryable, failure.recycle) == (code, again, False)
    assert one.makes(images=one.pictures(0, 8), frames=3).engine["interpolation"] == "RIFE v4.26"


# --- cancel and idle -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rife", "ffmpeg"])
def test_a_cancel_ends_the_clip_at_the_next_frame(bench: Callable[..., Bench], method: str) -> None:
    one = bench("v4")
    one.heard = lambda step: one.cancel.set() if step == 3 else None
    assert one.run({"images": one.pictures(0, 8), "frames": 60, "method": method}) == Cancelled()
    assert one.steps[-1] == (3, 60)
    one.cancel.clear()
    one.heard = lambda step: None
    one.makes(images=one.pictures(0, 8), frames=4, method=method)


def test_an_idle_rife_gives_its_memory_back(bench: Callable[..., Bench]) -> None:
    one = bench("v4", idle_stop_s=0.2)
    ended = threading.Event()
    one.makes(images=one.pictures(0, 8), frames=3)
    pid = one.states[0][1]["pid"]
    for _ in range(200):
        if one.states[-1][0] == "stopped":
            break
        ended.wait(0.1)
    assert one.states[-1][0] == "stopped" and not runs(pid)
    one.makes(images=one.pictures(0, 8), frames=3)
    one.handler.unload()
    assert one.states[-1][0] == "stopped"


# --- rows ------------------------------------------------------------------------------------------------------------

TWO = {"images": ["https://example.com/a.png", "https://example.com/b.png"]}
VIDEO = {"video": "https://example.com/a.mp4"}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ([], "`params` must be an object"),
        ({"frames": 9}, "exactly one of `images`, `image_start` with `image_end`, and `video`: it has none"),
        ({**TWO, **VIDEO, "frames": 9}, "it has `images` and `video`"),
        ({"image_start": "https://example.com/a.png", "frames": 9}, "`image_start` needs `image_end`"),
        ({"images": ["https://example.com/a.png"], "frames": 9}, "there must be two at least"),
        ({"images": ["https://example.com/a.png", 7], "frames": 9}, "`images[1]` must be a URL or a path"),
        ({"images": ["a.png", "b.png"], "frames": 9}, "`images[0]` is 'a.png': give a URL"),
        ({"images": ["ftp://example.com/a", "https://example.com/b"], "frames": 9}, "`images[0]` is no http"),
        (TWO, "`frames` is missing"),
        (VIDEO, "`frames` is missing, or `multiplier`"),
        ({**TWO, "multiplier": 2}, "`multiplier` is for a `video`"),
        ({**VIDEO, "multiplier": 2, "frames": 9}, "`frames` and `multiplier` both"),
        ({**TWO, "frames": 1}, "`frames` must be from 2 to 10000"),
        ({**TWO, "num_frames": "many"}, "`num_frames` must be a whole number"),
        ({**TWO, "frames": 9, "num_frames": 10}, "`frames` and `num_frames` are the same parameter"),
        ({"images": TWO["images"] * 2, "frames": 3}, "there are 4 `images`"),
        ({**TWO, "frames": 9, "fps": 0}, "`fps` must be from 1 to 120"),
        ({**TWO, "frames": 9, "fps": float("nan")}, "`fps` must be"),
        ({**TWO, "frames": 9, "resolution": "65x64"}, "`resolution` is 65x64: videos have even sides, as 66x64 has"),
        ({**TWO, "frames": 9, "resolution": "16x64"}, "`resolution` must be from 64 to 8192"),
        ({**TWO, "frames": 9, "resolution": "8192x8192"}, "the largest frame has"),
        ({**TWO, "frames": 9, "resolution": "16:9"}, "`resolution` '16:9' is no size"),
        ({**TWO, "frames": 9, "fit": "croop"}, "`fit` is 'croop'"),
        ({**TWO, "frames": 9, "method": "film"}, "`method` is 'film'"),
        ({**TWO, "frames": 9, "lossless": "yes"}, "`lossless` must be true or false"),
        ({**TWO, "farmes": 9}, "there is no parameter `farmes` for rife_interpolate_images: did you mean `frames`?"),
    ],
)
def test_a_wrong_row_is_told_which_key_is_wrong(params: Any, said: str) -> None:
    with pytest.raises(TaskFailure) as caught:
        read_request(params)
    assert said in caught.value.message
    assert caught.value.code in ("input.bad_params", "input.bad_url")


def test_rows_of_old_keep_their_names() -> None:
    found = read_request(
        {
            "input_image_path1": "https://example.com/a.png",
            "input_image_path2": "https://example.com/b.png",
            "frames": 9,
            "resolution": "512x512",
            "output_path": "/tmp/x.mp4",
            "output_dir": "x",
            "project_id": "p",
        }
    )
    assert [file.label for file in found.files] == ["input_image_path1", "input_image_path2"]
    assert found.frames == 9 and str(found.size) == "512x512" and found.method == "auto"
    assert len(found.warnings) == 2 and all("the worker decides" in warning for warning in found.warnings)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from(["images", "image_start", "image_end", "video", "video_url", "frames", "fps", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(TWO["images"][0]),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        ),
    )
)
def test_no_row_breaks_what_reads_it(params: Json) -> None:
    sources = sources_of(params)
    try:
        request = read_request(params)
    except TaskFailure as failure:
        assert failure.code in ("input.bad_params", "input.bad_url")
        return
    assert {file.source for file in request.files if file.url} == set(sources)


def test_urls_come_through_the_courier_and_are_looked_at(bench: Callable[..., Bench]) -> None:
    one = bench()
    first, last = one.pictures(0, 8)
    one.files = {"images[0]": Path(first), "images[1]": Path(last)}
    one.makes(**TWO, frames=4, method="ffmpeg")
    assert one.fetched == [sources_of(TWO)]
    one.files["images[1]"] = make_film(one.path / "film.mp4")
    assert one.fails(**TWO, frames=4, method="ffmpeg").code == "input.not_media"
    (one.path / "broken.png").write_bytes(Path(last).read_bytes()[:60])
    one.files["images[1]"] = one.path / "broken.png"
    failure = one.fails(**TWO, frames=4, method="ffmpeg")
    assert failure.code == "input.corrupt" and "images[1]" in failure.message


def test_paths_are_only_those_that_the_operator_allows(bench: Callable[..., Bench], tmp_path: Path) -> None:
    one = bench()
    shutil.copy(one.pictures(0)[0], tmp_path / "outside.png")
    failure = one.fails(images=[str(tmp_path / "outside.png")] * 2, frames=4, method="ffmpeg")
    assert failure.code == "input.bad_params" and "inputs.allow_paths" in failure.message


def test_too_many_pixels_are_refused_before_they_are_decoded(bench: Callable[..., Bench]) -> None:
    one = bench(max_pixels=1000)
    assert one.fails(images=one.pictures(0, 8), frames=4, method="ffmpeg").code == "input.too_large"


def test_settings_of_others_do_no_harm() -> None:
    assert MediaSettings.of({"ports": [1], "device": "cuda", "interpolation": None}).device == "cuda"


# --- through a worker ------------------------------------------------------------------------------------------------


def test_a_row_becomes_a_clip_by_a_sandboxed_rife(tmp_path: Path, _pg_session: PgServer) -> None:
    """The checkout is read and nothing is written there; the row says who made the clip."""
    root = make_root(tmp_path / "Wan2GP", "v4")
    path = tmp_path / "input.png"
    Image.fromarray(scene(4)).save(path)
    environ = {"WAN2GP_PATH": str(root), "WAN2GP_PYTHON": sys.executable, "WAN2GP_ALLOW_PRIVATE_URLS": "1"}
    before = sorted(os.listdir(root / "postprocessing" / "rife"))
    with InputServer(path) as server, shared_worker(tmp_path / "w", _pg_session, **environ) as worker:
        row = worker.ended(
            worker.insert("rife_interpolate_images", {"images": [server.url] * 2, "frames": 10, "fps": 30})
        )
        assert row["status"] == "Complete", (row, worker.log[-2000:])
        result = row["result_data"]
        assert result["engine"]["interpolation"] == "RIFE v4.26" and result["engine"]["name"] == "WanGP"
        clip = Path(result["artifacts"][0]["path"])
        assert len(read(clip)) == 10 and "rife_interpolate_images" in str(clip)
        by_ffmpeg_ = worker.insert(
            "rife_interpolate_images", {"images": [server.url] * 2, "frames": 5, "method": "ffmpeg"}
        )
        assert worker.ended(by_ffmpeg_)["result_data"]["engine"] == {"interpolation": "ffmpeg minterpolate"}
        wrong = worker.ended(worker.insert("rife_interpolate_images", {"images": [server.url] * 2}))
        assert wrong["status"] == "Failed" and wrong["error_message"].startswith("input.bad_params: `frames`")
    assert sorted(os.listdir(root / "postprocessing" / "rife")) == before


# --- the worker's set-up ---------------------------------------------------------------------------------------------


def test_claiming_stops_only_where_rife_alone_is_wanted_and_is_not_there(tmp_path: Path) -> None:
    def unable(**environ: str) -> str:
        return media_spec().unable(load_config(flags={"data_dir": tmp_path}, environ=environ)) or ""

    assert [unable(WAN2GP_INTERPOLATION=how) for how in ("ask", "auto", "ffmpeg")] == ["", "", ""]
    assert "set WAN2GP_PATH" in unable(WAN2GP_INTERPOLATION="rife")
    alone = {"WAN2GP_INTERPOLATION": "rife", "WAN2GP_DOWNLOAD": "0"}
    assert "it holds no postprocessing/rife" in unable(WAN2GP_PATH=str(tmp_path), **alone)
    root = make_root(tmp_path / "root")
    assert f"put rife4.26.pkl into {root}/ckpts" in unable(WAN2GP_PATH=str(root), **alone)
    assert unable(WAN2GP_PATH=str(root), WAN2GP_INTERPOLATION="rife") == ""
    write_weights(root / FILES["v3"], "v3")
    assert unable(WAN2GP_PATH=str(root), **alone) == ""


def test_rife_takes_turns_at_the_gpu_only_where_it_computes_there(tmp_path: Path) -> None:
    for device, turns in (("cpu", False), ("cuda", True)):
        environ = {"WAN2GP_INTERPOLATION_DEVICE": device}
        assert media_spec().gpu(load_config(flags={"data_dir": tmp_path}, environ=environ)) is turns


def test_fetched_weights_lie_where_they_are_looked_for(tmp_path: Path) -> None:
    """The courier chooses the place by the address."""
    found = media_spec().settings(load_config(flags={"data_dir": tmp_path}, environ={}))
    weights = tmp_path / "models" / "weights" / "DeepBeepMeep" / "Wan2.1" / FILES["v4"]
    assert tmp_path / "models" / "weights" / place_of("weights", RIFE_URL) == weights
    write_weights(weights)
    assert find_rife(str(make_root(tmp_path / "root")), found["stores"]).weights == weights
