"""Our copies of the engine's rules against its own code, where a checkout is at hand: its pure parts, without torch."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_wan_types import made
from wan2gp.handlers.wan_frames import FrameRule
from wan2gp.handlers.wan_loras import read_loras, strengths_setting

ROOT = os.environ.get("WAN2GP_PATH", "")
pytestmark = pytest.mark.skipif(not ROOT, reason="WAN2GP_PATH names no Wan2GP")
MANY = settings(max_examples=300, deadline=None)
GRIDS = ((5, 4, 1), (17, 4, 1), (17, 8, 1), (26, 4, 1), (107, 17, 5), (121, 120, 1), (1, 1, 1))
NUMBERS = st.floats(-10, 10).map(lambda number: f"{number:.4f}")
PHASE = st.lists(NUMBERS, min_size=1, max_size=4).map(",".join)


@functools.cache
def engine(name: str) -> ModuleType:
    """A module of the engine by itself: it imports nothing but the standard library."""
    spec = importlib.util.spec_from_file_location(f"engine_{name}", Path(ROOT, "shared", "utils", f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@MANY
@given(grid=st.sampled_from(GRIDS), asked=st.integers(1, 10_000))
def test_the_engine_leaves_a_length_as_it_gets_it(grid: tuple[int, int, int], asked: int) -> None:
    lengths = engine("frame_scheduler")
    frames = FrameRule(*grid).nearest(asked)
    assert lengths.floor_frame_count(frames, *grid) == frames == lengths.normalize_output_frame_count(asked, *grid)


@MANY
@given(phases=st.integers(1, 3), strengths=st.data())
def test_the_engine_takes_every_strength_that_is_taken_here(phases: int, strengths: st.DataObject) -> None:
    one = st.one_of(PHASE, st.lists(PHASE, min_size=phases, max_size=phases).map(";".join))
    drawn = strengths.draw(st.lists(one, min_size=1, max_size=4))
    loras = read_loras({"loras": [{"name": f"l{number}", "strength": each} for number, each in enumerate(drawn)]})
    parse = engine("loras_mutipliers").parse_loras_multipliers
    _, _, error = parse(strengths_setting(loras), len(loras), 12, nb_phases=phases)
    assert not error


@MANY
@given(st.text(alphabet='#!ab \n\r\t\xa0[]/{}"=:,.', max_size=30))
def test_the_engine_reads_every_prompt_whole_and_as_one(text: str) -> None:
    parser, windows = engine("prompt_parser"), engine("frame_scheduler")
    prompt = made("qwen_image_style", prompt=text).settings["prompt"]
    lines, error = parser.process_template(prompt, keep_comments=False, keep_empty_lines=False)
    units = parser.split_prompt_units(lines if isinstance(lines, str) else "\n".join(lines), "FG")
    assert not error and len(units) == 1 and not windows.has_slash_commands(units)
    assert [line.strip() for line in units[0].split("\n")] == [
        line.strip() for line in prompt.split("\n") if line.strip()
    ]
