"""LoRAs and phases of generation tasks: read whole or refused, never dropped; and each phase gets its steps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_wan_types import IMAGE, made, refusal
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.wan_loras import MOST_LORAS, read_loras
from wan2gp.handlers.wan_phases import KEYS, SOLVERS, noise_levels, read_phases
from wan2gp.lora_names import BadLora, checked, file_name, is_url, resolved, stored_at

HUB = "https://huggingface.co/some/repository"
HIGH, LOW = f"{HUB}/resolve/main/high_noise_model.safetensors", f"{HUB}/resolve/main/low_noise_model.safetensors"
MORE = settings(max_examples=200, deadline=None)


def listed(**params: Any) -> list[tuple[str, str]]:
    return [(lora.source, lora.strength) for lora in read_loras(params)]


def refused(**params: Any) -> str:
    with pytest.raises(TaskFailure) as failure:
        read_loras(params)
    assert failure.value.code == "input.bad_params"
    return failure.value.message


# --- how they are written


def test_the_four_ways_to_write_a_lora_are_one() -> None:
    assert listed(activated_loras=["a", HIGH], loras_multipliers="0.5 1;0") == [("a.safetensors", "0.5"), (HIGH, "1;0")]
    assert listed(activated_loras="a,b.safetensors") == [("a.safetensors", "1"), ("b.safetensors", "1")]
    assert listed(additional_loras={HIGH: 0.7, "a": "1,0.5"}) == [(HIGH, "0.7"), ("a.safetensors", "1,0.5")]
    entries = ["a", {"url": HIGH, "multiplier": 2}, {"name": "b", "strength": "0;1"}, {"path": "c/d", "weight": -1}]
    assert listed(loras=entries) == [
        ("a.safetensors", "1"),
        (HIGH, "2"),
        ("b.safetensors", "0;1"),
        ("c/d.safetensors", "-1"),
    ]


def test_strengths_are_read_as_the_engine_writes_them() -> None:
    notation = "# the first two\n1 0.8|\n0;1,0.5"
    assert [one for _, one in listed(activated_loras=["a", "b", "c"], loras_multipliers=notation)] == [
        "1",
        "0.8",
        "0;1,0.5",
    ]
    assert listed(activated_loras=["a"], loras_multipliers=0.00001) == [("a.safetensors", "0.00001")]
    assert listed(activated_loras=["a"], loras_multipliers=[0.3]) == [("a.safetensors", "0.3")]


@pytest.mark.parametrize("strength", ["strong", "1;;0", "1,", "nan", "1e3", "11", True, [], "1;0;0;0", "", "--1"])
def test_a_strength_that_is_none_is_refused_where_it_stands(strength: Any) -> None:
    assert refused(loras=[{"url": HIGH, "multiplier": strength}]).startswith("`loras[0]`")


def test_strengths_for_other_loras_than_there_are_would_fall_to_the_wrong_one() -> None:
    assert "`loras_multipliers` has 1 strengths for 2 `activated_loras`" in refused(
        activated_loras=["a", "b"], loras_multipliers="1"
    )
    assert "for 0 `activated_loras`" in refused(loras_multipliers="1")


def test_one_lora_with_two_strengths_is_refused_and_with_one_it_is_one() -> None:
    assert listed(activated_loras=[HIGH], additional_loras={HIGH: 1}) == [(HIGH, "1")]
    message = refused(activated_loras=[HIGH], additional_loras={HIGH: 0.5})
    assert "`activated_loras[0]`" in message and "`additional_loras[" in message
    page = HIGH.replace("/resolve/", "/blob/")
    assert listed(activated_loras=[page], additional_loras={HIGH: 1}) == [(HIGH, "1")]


@pytest.mark.parametrize(
    "params",
    [
        {"loras": {"url": HIGH}},
        {"loras": [5]},
        {"loras": [{"multiplier": 1}]},
        {"loras": [{"url": HIGH, "name": "a"}]},
        {"loras": [{"url": HIGH, "strength": 1, "scale": 1}]},
        {"loras": [{"url": HIGH, "multiplyer": 1}]},
        {"activated_loras": {"a": 1}},
        {"additional_loras": [HIGH]},
        {"additional_loras": {HIGH: None}},
        {"activated_loras": ["a"], "loras_multipliers": {"a": 1}},
        {"loras": [f"l{number}" for number in range(MOST_LORAS + 1)]},
    ],
)
def test_loras_that_cannot_be_read_are_refused_by_their_key(params: dict[str, Any]) -> None:
    assert any(f"`{key}" in refused(**params) for key in params)


# --- what they are called


@pytest.mark.parametrize(
    "source",
    ["", "/etc/passwd", "../up", "a/../../b", "~/a", "C:\\a", "a\nb", "file:///etc/passwd", "ftp://a/b", "https://",
     "https://a:port/b.safetensors", "a.ckpt", f"{HUB}/resolve/main/model.pt", "https://a/b.bin?x=1"],
)  # fmt: skip
def test_what_is_no_lora_or_could_run_code_is_refused(source: str) -> None:
    with pytest.raises(BadLora):
        checked(source)
    assert "`loras[0]`" in refused(loras=[source])


def test_files_of_one_name_from_two_places_do_not_become_one_file() -> None:
    other = HIGH.replace("some", "other")
    assert file_name(HIGH) == file_name(other) == "high_noise_model.safetensors"
    assert stored_at(HIGH) != stored_at(other) and stored_at(HIGH).name == file_name(HIGH)


def test_a_page_of_the_hub_is_the_file_and_a_fresh_signature_makes_no_other_file() -> None:
    assert resolved(f"{HUB}/blob/main/dir/a.safetensors") == f"{HUB}/resolve/main/dir/a.safetensors"
    assert resolved("https://example.org/a/b/blob/c.safetensors") == "https://example.org/a/b/blob/c.safetensors"
    signed = "https://s3.example.org/a.safetensors?X-Amz-Signature=1&X-Amz-Expires=60"
    assert stored_at(signed) == stored_at(signed.replace("=1", "=2")) == stored_at(signed.partition("?")[0])
    sold = "https://example.org/api/download/models/12345?type=Model&format=SafeTensor"
    assert stored_at(f"{sold}&token=secret") == stored_at(sold) != stored_at(sold.replace("Model", "Config"))
    assert file_name(sold) == "12345.safetensors"


@MORE
@given(st.text(max_size=300))
def test_the_name_of_a_file_is_one_safe_part_of_a_path(tail: str) -> None:
    for source in (f"https://example.org/{tail}", tail):
        try:
            name = file_name(checked(source))
        except BadLora:
            continue
        assert name.endswith(".safetensors") and len(name) <= 120 and not set(name) & set("/\\\0\n%:?")
        assert name not in (".safetensors", "..safetensors") and not name.startswith((".", "-.."))
        assert not is_url(source) or stored_at(source).parts[1:] == (name,)


# --- phases


def plan(**more: Any) -> dict[str, Any]:
    """A `phase_config` as pages send it, of three phases."""
    phases = [
        {"phase": 1, "guidance_scale": 3, "loras": [{"url": HIGH, "multiplier": "0.75"}]},
        {"phase": 2, "loras": [{"url": HIGH, "multiplier": "1.0"}, {"url": "", "multiplier": "1"}]},
        {"phase": 3, "guidance_scale": 1.5, "loras": [{"url": LOW, "multiplier": "1,0.5"}]},
    ]
    return {"num_phases": 3, "steps_per_phase": [2, 2, 2], "flow_shift": 5.0, "phases": phases, **more}


def test_a_plan_of_phases_becomes_thresholds_guidance_and_loras_by_phase() -> None:
    task = made("i2v_22", image_start=IMAGE, phase_config=plan(), num_inference_steps=30)
    wanted = {
        "num_inference_steps": 6,
        "guidance_phases": 3,
        "switch_threshold": 917.482,
        "switch_threshold2": 663.231,
        "model_switch_phase": 2,
        "guidance_scale": 3,
        "guidance2_scale": 1.0,
        "guidance3_scale": 1.5,
        "sample_solver": "euler",
        "flow_shift": 5.0,
        "loras_multipliers": "0.75;1.0;0 0;0;1,0.5",
    }
    assert {name: task.settings[name] for name in wanted} == wanted
    assert "`phase_config` overrules `num_inference_steps`" in task.warnings


@MORE
@given(
    steps=st.lists(st.integers(1, 12), min_size=2, max_size=3),
    shift=st.floats(0.5, 20),
    solver=st.sampled_from(SOLVERS),
)
def test_every_phase_gets_the_steps_that_were_asked_for(steps: list[int], shift: float, solver: str) -> None:
    phases = [{"guidance_scale": 1}] * len(steps)
    config = {"steps_per_phase": steps, "phases": phases, "flow_shift": shift, "sample_solver": solver}
    made_of = read_phases(config).settings
    levels = noise_levels(solver, sum(steps), shift)
    assert levels[0] == pytest.approx(1000) and levels == sorted(levels, reverse=True) and len(levels) == sum(steps)
    # The engine enters a phase at the first step whose noise is not above its threshold.
    bounds = [made_of["switch_threshold"], made_of.get("switch_threshold2", -1)]
    second = next(number for number, level in enumerate(levels) if level <= bounds[0])
    third = next((number for number, level in enumerate(levels) if level <= bounds[1]), sum(steps))
    assert [second, third - second, sum(steps) - third][: len(steps)] == steps


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"steps_per_phase": [2, 2]}, "phase_config.steps_per_phase"),
        ({"steps_per_phase": [6]}, "phase_config.steps_per_phase"),
        ({"steps_per_phase": [0, 3, 3]}, "phase_config.steps_per_phase[0]"),
        ({"steps_per_phase": [90, 9, 9]}, "phase_config.steps_per_phase"),
        ({"steps_per_phase": "2,2,2"}, "phase_config.steps_per_phase"),
        ({"phases": None}, "phase_config.phases"),
        ({"phases": [1, 2, 3]}, "phase_config.phases"),
        ({"phases": [{}]}, "phase_config.phases"),
        ({"phases": [{}, {}, {"guidence_scale": 1}]}, "phase_config.phases[2]"),
        ({"phases": [{}, {}, {"guidance_scale": 99}]}, "phase_config.phases[2].guidance_scale"),
        ({"phases": [{"loras": HIGH}, {}, {}]}, "phase_config.phases[0].loras"),
        ({"phases": [{"loras": [{"url": HIGH, "multiplier": "1,1,1"}]}, {}, {}]}, "phase_config.phases[0].loras[0]"),
        ({"phases": [{"loras": [{"url": HIGH, "multiplier": "1;1"}]}, {}, {}]}, "phase_config.phases[0].loras[0]"),
        ({"phases": [{"loras": [{"url": HIGH}, {"url": HIGH}]}, {}, {}]}, "phase_config.phases[0].loras[1]"),
        ({"sample_solver": "causvid"}, "phase_config.sample_solver"),
        ({"flow_shift": 0}, "phase_config.flow_shift"),
        ({"model_switch_phase": 3}, "phase_config.model_switch_phase"),
        ({"step_per_phase": [2, 2, 2]}, "step_per_phase"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused_by_the_part_that_is_wrong(wrong: dict[str, Any], key: str) -> None:
    assert f"`{key}`" in refusal("i2v_22", image_start=IMAGE, phase_config=plan(**wrong))


def test_two_phases_have_one_place_to_change_the_model() -> None:
    two = {"steps_per_phase": [3, 3], "phases": [{}, {}], "model_switch_phase": 2}
    assert read_phases(two).settings["model_switch_phase"] == 1
    assert "switch_threshold2" not in read_phases(two).settings
    assert read_phases({**two, "svi2pro": True}).continuous and "svi2pro" in KEYS


def test_more_phases_than_the_model_has_are_refused() -> None:
    assert "`phase_config.phases` are 3: the model ltxv_13B" in refusal("ltxv", phase_config=plan())


def test_loras_that_a_page_gives_twice_count_as_the_phases_say() -> None:
    task = made("i2v_22", image_start=IMAGE, phase_config=plan(), additional_loras={HIGH: 0.75, "mine": 1})
    assert task.settings["loras_multipliers"] == "0.75;1.0;0 0;0;1,0.5 1"
