"""The parameters of generation tasks: no key is dropped in silence, and every refusal names the key it is about."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.test_wan_types import GOLDEN, IMAGE, VIDEO, made, refusal
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.wan_foreign_keys import CARRIED, GONE
from wan2gp.handlers.wan_parameters import (
    FLAG,
    FPS,
    FRAMES,
    LETTERS,
    LORAS,
    MODE,
    MULTIPLIERS,
    NUMBER,
    NUMBERS,
    OBJECT,
    PARAMETERS,
    SIZE,
    TEXT,
    WHOLE,
    Parameter,
    allowed,
    names_for,
)
from wan2gp.handlers.wan_request import read_request
from wan2gp.handlers.wan_rules import COMPANIONS, RULES, Draft, Rule
from wan2gp.handlers.wan_rules import LETTERS as LETTER_ROWS
from wan2gp.wan_sources import MEDIA, MOST_FILES, sources_of
from wan2gp.wan_types import IMAGE as IMAGES
from wan2gp.wan_types import TYPES

BOUNDED = [row for row in PARAMETERS.values() if row.kind in (WHOLE, NUMBER) and row.highest is not None]
READ = [row for row in PARAMETERS.values() if row.kind not in (LORAS, MULTIPLIERS)]
EVERY_DAY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FILES = {"video": VIDEO, "image": IMAGE, "audio": "https://example.org/in.wav", "any": "https://example.org/in.npy"}


def type_for(row: Parameter) -> str:
    """A type whose rows may have this parameter."""
    return next(one.name for one in TYPES.values() if allowed(row, one.name, one.makes))


def complete(task_type: str) -> dict[str, Any]:
    """The least that a type needs."""
    needed = [group[0] for group in TYPES[task_type].needs]
    return {"prompt": "a cat", **{name: FILES[MEDIA[name].kind] for name in needed}}


def said(task_type: str, params: Any) -> str:
    with pytest.raises(TaskFailure) as failure:
        read_request(task_type, params)
    assert failure.value.code in ("input.bad_params", "input.bad_url")
    return failure.value.message


def keys_in(message: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", message))


# --- single values


@pytest.mark.parametrize("row", BOUNDED, ids=[row.name for row in BOUNDED])
def test_a_number_out_of_range_is_refused_by_its_key_with_the_range(row: Parameter) -> None:
    kind = type_for(row)
    for wrong in (row.lowest - 1, row.highest + 1):  # type: ignore[operator]
        message = said(kind, {**complete(kind), row.name: wrong})
        assert message.startswith(f"`{row.name}` must be") and f"from {row.lowest:g} to {row.highest:g}" in message
        assert not row.unit or row.unit in message


WRONG = {
    WHOLE: ("many", 1.5, True, [], float("nan")),
    NUMBER: ("many", {}, False, float("inf")),
    TEXT: (5, [], {}),
    MODE: (1.5, [], True),
    FLAG: ("yes", 2, []),
    LETTERS: (5, "?", "V" * 1000),
    NUMBERS: ("9", [1.5], [True], [0] * 1000),
    SIZE: ("832", "832*480*2", "1x1", 832, "99999x480"),
    FRAMES: ("abcs", "0s", "601s", 1.5, 0, 10_001, []),
    FPS: ("23.976", 23.976, "fast", 0, 1000, True, []),
    OBJECT: ("{}", [], 5),
}


@pytest.mark.parametrize("row", READ, ids=[row.name for row in READ])
def test_a_value_of_the_wrong_kind_is_refused_by_its_key(row: Parameter) -> None:
    kind = type_for(row)
    for wrong in WRONG[row.kind]:
        assert keys_in(said(kind, {**complete(kind), row.name: wrong})) & {row.name, f"{row.name}[0]"}


def test_every_parameter_says_what_it_is_and_in_which_unit() -> None:
    for row in PARAMETERS.values():
        assert row.text.endswith(".") and not row.text[0].islower(), row.name
        assert row.kind in (
            WHOLE,
            NUMBER,
            TEXT,
            MODE,
            FLAG,
            LETTERS,
            NUMBERS,
            SIZE,
            FRAMES,
            FPS,
            OBJECT,
            LORAS,
            MULTIPLIERS,
        )
        assert row.kind not in (WHOLE, NUMBER) or None not in (row.lowest, row.highest), row.name
    names = [name for row in PARAMETERS.values() for name in (row.name, *row.aliases)]
    names += [name for media in MEDIA.values() for name in (media.name, *media.aliases)]
    assert len(names) == len(set(names)) and not set(names) & ({*CARRIED} | {*GONE})


def test_the_text_that_a_parameter_can_be_is_named_when_it_is_another() -> None:
    message = refusal("t2v", temporal_upsampling="rife3")
    assert message.startswith("`temporal_upsampling` is 'rife3'") and "'rife2'" in message
    assert "`resolution` must be WIDTHxHEIGHT" in refusal("t2v", resolution="big")
    assert made("t2v", resolution="832*480").settings["resolution"] == "832x480"
    assert (
        made("t2v", force_fps=24.0).settings["force_fps"] == made("t2v", force_fps="24").settings["force_fps"] == "24"
    )


def test_a_name_of_a_shape_is_one_only_where_the_type_has_it() -> None:
    assert made("qwen_image_hires", resolution="9:16").settings["resolution"] == "928x1664"
    assert "`resolution` '9:16' is no size" in refusal("t2v", resolution="9:16")
    assert "16:9" in refusal("qwen_image_hires", resolution="5:4")


# --- keys


@EVERY_DAY
@given(task_type=st.sampled_from(sorted(TYPES)), data=st.data())
def test_a_misspelt_key_is_refused_with_the_key_that_was_meant(task_type: str, data: st.DataObject) -> None:
    row = TYPES[task_type]
    known = names_for(row.name, row.makes, bool(row.image))
    name = data.draw(st.sampled_from([one for one in known if len(one) > 8]))
    cut = data.draw(st.integers(1, len(name) - 2))
    misspelt = name[:cut] + name[cut + 1 :]
    if misspelt in known or misspelt in CARRIED or misspelt in GONE:
        return
    message = said(task_type, {**complete(task_type), misspelt: 1})
    assert misspelt in keys_in(message) and keys_in(message) & set(known), message


def test_a_key_that_is_like_none_is_refused_all_the_same() -> None:
    message = said("t2v", {"prompt": "a cat", "xyzzy": 1})
    assert "`xyzzy`" in message and "`prompt`" in message


def test_a_key_of_another_type_says_of_which() -> None:
    assert "`subject_strength` is not for t2v, but for qwen_image_style" in said(
        "t2v", {"prompt": "a", "subject_strength": 1}
    )
    assert "types that make a video" in said("flux", {"prompt": "a", "force_fps": 24})
    assert "did you mean `video_mask`" in said("t2v", {"prompt": "a", "mask_url": IMAGE})
    assert "did you mean `image_start`" in said("i2v", {"prompt": "a", "image_url": IMAGE})


@pytest.mark.parametrize("row", [row for row in PARAMETERS.values() if row.aliases], ids=lambda row: row.name)
def test_an_alias_is_the_same_parameter_and_errors_name_what_the_row_says(row: Parameter) -> None:
    kind = type_for(row)
    for alias in row.aliases:
        assert alias in keys_in(said(kind, {**complete(kind), alias: {}}))
        if row.kind in (WHOLE, NUMBER):
            one, same = (read_request(kind, {**context(kind, row), name: row.highest}) for name in (row.name, alias))
            assert one.values == same.values


def context(task_type: str, row: Parameter) -> dict[str, Any]:
    """A row in which this parameter has an effect."""
    if row.name == "denoising_strength":
        return {**complete(task_type), "video_guide": VIDEO}
    return complete(task_type)


def test_two_names_of_one_parameter_must_agree() -> None:
    assert made("t2v", steps=20, num_inference_steps=20).settings["num_inference_steps"] == 20
    message = refusal("t2v", steps=20, num_inference_steps=30)
    assert {"steps", "num_inference_steps"} <= keys_in(message)


def test_what_rows_carry_for_their_producers_passes_and_what_has_no_effect_is_told() -> None:
    carried = {key: "x" for key in CARRIED if key != "orchestrator_details"}
    warnings = read_request("t2v", {"prompt": "a cat", **carried}).warnings
    assert {key for warning in warnings for key in keys_in(warning)} == {key for key, why in CARRIED.items() if why}
    assert not made("t2v", seed=None, xyzzy=None, project_id="p").warnings


@pytest.mark.parametrize("key", sorted(GONE))
def test_what_would_make_another_result_than_was_asked_for_is_refused(key: str) -> None:
    assert f"`{key}`" in refusal("t2v", **{key: True})
    assert not made("t2v", **{key: False}).warnings


def test_the_rest_of_uni3c_is_told_when_it_is_off_and_refused_when_it_is_on() -> None:
    assert "`uni3c_strength` is not used" in made("t2v", use_uni3c=False, uni3c_strength=1).warnings[0]
    assert "uni3c" in refusal("t2v", uni3c_strength=1, use_uni3c=True)


def test_an_order_gives_its_parameters_to_its_rows_but_neither_its_files_nor_its_model() -> None:
    details = {"steps": 12, "guidance_scale": 4, "model": "flux", "image_start": IMAGE, "run_id": 5}
    task = made("t2v", guidance_scale=3, orchestrator_details=details)
    assert (task.settings["num_inference_steps"], task.settings["guidance_scale"]) == (12, 3)
    assert task.settings["model_type"] == "t2v" and "image_start" not in task.settings
    assert "`orchestrator_details.steps`" in refusal("t2v", orchestrator_details={"steps": 0})


# --- files


def test_a_file_is_a_url_a_storage_address_or_an_absolute_path() -> None:
    for good in (IMAGE, "storage://bucket/in.png", "/media/in.png"):
        assert read_request("i2v", {"prompt": "a", "image_start": good}).files[0].name == "image_start"
    for wrong in ("in.png", "../in.png", "file:///etc/passwd", "ftp://a/b", "storage://bucket", 5, {}, " ", "https://"):
        assert "`image_start`" in said("i2v", {"prompt": "a", "image_start": wrong})
    assert "`image_refs[1]`" in said("vace", {"prompt": "a", "image_refs": [IMAGE, "in.png"]})


def test_one_file_is_one_and_many_are_not_without_end() -> None:
    assert read_request("i2v", {"prompt": "a", "image_start": [IMAGE]}).files[0].url == IMAGE
    assert "`image_start` names 2 files" in said("i2v", {"prompt": "a", "image_start": [IMAGE, IMAGE]})
    assert f"1 to {MOST_FILES}" in said("vace", {"prompt": "a", "image_refs": [IMAGE] * 65})
    assert "names 0 files" in said("vace", {"prompt": "a", "image_refs": []})
    assert "`image_start` or `video_source` is missing" in said("i2v", {"prompt": "a", "image_start": ""})


# --- rules


def candidates(rule: Rule) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows that may break a rule: each of its keys alone and in pairs, with values that mean something."""
    for task_type in TYPES:
        for part in SAMPLES.get(rule.name, ()):
            yield task_type, {**complete(task_type), **part}
        for first in rule.keys:
            for value in values_for(first):
                yield task_type, {**complete(task_type), first: value}
                for second in rule.keys:
                    for other in values_for(second) if second != first else ():
                        yield task_type, {**complete(task_type), first: value, second: other}


def values_for(name: str) -> list[Any]:
    if name in MEDIA:
        return [FILES[MEDIA[name].kind]]
    row = PARAMETERS[name]
    if row.kind == LETTERS:
        return ["", *(letter for _, letter, _ in LETTER_ROWS)]
    if row.kind in (WHOLE, NUMBER, FRAMES):
        return [row.highest if row.kind == NUMBER else int(row.highest or 0), row.lowest]
    return [row.choices[-1]] if row.choices else ["1"] if row.kind == TEXT else []


SAMPLES: dict[str, list[dict[str, Any]]] = {
    "prompt missing": [{"prompt": " "}],
    "input missing": [dict.fromkeys(MEDIA)],
    "strength of nothing": [{"denoising_strength": 0.5}],
    "shape without a name": [{"resolution": "7:5"}],
    "enlarged twice": [{"hires_scale": 1.5}],
    "overlap eats the window": [{"sliding_window_overlap": 50, "sliding_window_size": 50}],
    "length of an image": [{"video_length": 81}],
    "thresholds rise": [{"switch_threshold": 500, "switch_threshold2": 900}],
    "too many steps for the cache": [{"skip_steps_cache_type": "mag", "num_inference_steps": 51}],
    "file without video_prompt_type F": [{"image_refs": IMAGE, "frames_positions": "1", "video_prompt_type": "I"}],
    "file without audio_prompt_type B": [
        {**dict.fromkeys(("audio_guide", "audio_guide2"), IMAGE), "audio_prompt_type": "A"}
    ],
    "two names of one cache": [{"tea_cache_setting": 2, "skip_steps_cache_type": "tea"}],
}


@pytest.mark.parametrize("rule", RULES, ids=[rule.name for rule in RULES])
def test_every_rule_can_be_broken_and_names_one_of_its_keys(rule: Rule) -> None:
    for task_type, params in candidates(rule):
        try:
            read_request(task_type, params)
        except TaskFailure as failure:
            if broken_sentence(rule, task_type, params) == failure.message:
                assert keys_in(failure.message) & set(rule.keys), failure.message
                return
    pytest.fail(f"no row breaks the rule {rule.name!r} first")


def broken_sentence(rule: Rule, task_type: str, params: dict[str, Any]) -> str | None:
    """What this rule alone says of a row whose single values are right."""
    files = {name for name in params if name in MEDIA and params[name]}
    sizes = {"resolution": params["resolution"]} if "resolution" in params else {}
    values = {name: value for name, value in params.items() if name in PARAMETERS and value is not None}
    return rule.broken(Draft(TYPES[task_type], {**values, **sizes}, files))


@pytest.mark.parametrize("case", GOLDEN, ids=[case["type"] for case in GOLDEN])
def test_no_rule_stands_in_the_way_of_a_good_row(case: dict[str, Any]) -> None:
    assert not [word for word in read_request(case["type"], case["params"]).warnings if "not used" in word]


def test_the_tables_of_rules_name_only_parameters_that_there_are() -> None:
    known = set(PARAMETERS) | set(MEDIA)
    assert set(COMPANIONS) | {other for others in COMPANIONS.values() for other in others} <= known
    assert {name for key, _, files in LETTER_ROWS for name in (key, *files)} <= known
    assert {name for rule in RULES for name in rule.keys} <= known
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert any(row.makes == IMAGES for row in TYPES.values())


# --- anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from([*PARAMETERS, *MEDIA, *CARRIED, *GONE]) | st.text(max_size=10)


@EVERY_DAY
@given(
    task_type=st.sampled_from(sorted(TYPES)), params=st.dictionaries(KEYS, JSON, max_size=6) | JSON, whole=st.booleans()
)
def test_whatever_a_row_says_it_is_read_or_refused_by_a_key(task_type: str, params: Any, whole: bool) -> None:
    row = {**complete(task_type), **params} if whole and isinstance(params, dict) else params
    sources_of(row)
    try:
        read_request(task_type, row)
    except TaskFailure as failure:
        assert failure.code in ("input.bad_params", "input.bad_url")
        assert "`" in failure.message and len(failure.message) < 2000
        json.dumps(failure.message)
