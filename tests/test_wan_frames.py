"""Lengths and sizes: what a model makes is the nearest to what was asked, and the engine has nothing left to cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_wan_types import IMAGE, VIDEO, made
from wan2gp.handlers.wan_frames import FrameRule, at_most, frames_of, of_area, on_grid
from wan2gp.handlers.wan_values import Pixels, Seconds

RULES = st.builds(FrameRule, st.integers(1, 130), st.integers(0, 120), st.integers(0, 9))
SIDES = st.integers(1, 8192)


@given(rule=RULES, asked=st.integers(1, 10_000))
def test_a_length_is_on_the_grid_long_enough_and_the_nearest(rule: FrameRule, asked: int) -> None:
    made_of, step = rule.nearest(asked), max(1, rule.step)
    assert made_of >= rule.least and (step == 1 or (made_of - rule.offset) % step == 0)
    if made_of > max(rule.least, rule.offset) + step:
        assert abs(made_of - asked) * 2 <= step
    assert rule.nearest(made_of) == made_of


@pytest.mark.parametrize(
    ("asked", "made_of"),
    [(1, 5), (5, 5), (64, 65), (65, 65), (66, 65), (67, 65), (68, 69), (77, 77), (80, 81), (81, 81)],
)
def test_wan_makes_four_times_n_and_one(asked: int, made_of: int) -> None:
    assert FrameRule(5, 4, 1).nearest(asked) == made_of
    assert FrameRule(5, 4, 1).nearest(made_of) == made_of  # what the engine gets, it leaves as it is


def test_other_models_have_other_grids() -> None:
    assert FrameRule(17, 4).nearest(5) == 17
    assert FrameRule(17, 8).nearest(100) == 97
    assert FrameRule(107, 17, 5).nearest(100) == 107
    assert FrameRule(1, 1).nearest(42) == 42


def test_seconds_count_by_the_models_rate_or_by_the_one_that_is_asked_for() -> None:
    assert frames_of(Seconds(5), 16) == 80 and frames_of(81, 16) == 81 and frames_of(Seconds(0.01), 16) == 1
    assert made("t2v", video_length="5s").settings["video_length"] == 81
    assert made("t2v", video_length="5s", force_fps=24).settings["video_length"] == 121
    assert made("hunyuan", video_length="2.5 s").settings["video_length"] == 61
    assert made("t2v", video_length="5s", force_fps="control", video_guide=VIDEO).made["frames"] == {
        "asked": "5s",
        "made": 81,
    }


def test_a_result_says_what_was_asked_and_what_was_made() -> None:
    task = made("ltxv", num_frames=100, resolution="1280x720")
    assert task.made["frames"] == {"asked": 100, "made": 97}
    assert task.made["resolution"] == {"asked": "1280x720", "made": "1280x704"}
    assert made("ltxv").made["frames"] == {"made": 49}  # nothing was asked


@given(width=SIDES, height=SIDES, block=st.sampled_from([8, 16, 32, 64]), longest=st.integers(64, 4096))
def test_a_size_is_of_whole_blocks_and_within_its_limit(width: int, height: int, block: int, longest: int) -> None:
    size = on_grid(at_most(Pixels(width, height), longest), block)
    assert size.width % block == size.height % block == 0 and min(size.width, size.height) >= block
    assert max(size.width, size.height) <= max(longest, block)
    assert on_grid(size, block) == size and at_most(size, 0) == size


@given(width=st.integers(64, 8192), height=st.integers(64, 8192))
def test_an_area_keeps_the_shape(width: int, height: int) -> None:
    size = of_area(Pixels(width, height), 1024 * 1024)
    assert size.width * size.height == pytest.approx(1024 * 1024, rel=0.05)
    assert abs(size.width * height - size.height * width) <= max(width, height)


def test_an_edited_image_keeps_its_shape_unless_the_row_asks_for_another() -> None:
    assert made("qwen_image_edit", image=IMAGE).settings["resolution"] == "1200x800"
    assert made("qwen_image_edit", image=IMAGE, resolution="800x800").settings["resolution"] == "800x800"
    assert made("qwen_image_2512", resolution="3000x1500").settings["resolution"] == "2512x1248"
    both = made("z_image_turbo_i2i", image=IMAGE, image_size="auto", resolution="512x512")
    assert both.settings["resolution"] == "1248x832"
