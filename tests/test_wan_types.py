"""From the row of each generation type to the exact settings that the engine gets: one reviewed example per type."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.wan_models import MODEL_DEFS, facts
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.wan_models import known_model
from wan2gp.handlers.wan_parameters import PARAMETERS
from wan2gp.handlers.wan_request import WanRequest, read_request
from wan2gp.handlers.wan_settings import EngineTask, engine_task, loras_of
from wan2gp.handlers.wan_values import Pixels
from wan2gp.protocol import Source
from wan2gp.wan_sources import MEDIA, sources_of
from wan2gp.wan_types import MODEL_NAMES, OWN_URLS, TYPES, model_of

GOLDEN: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "wan_golden.json").read_text())
SEED = 4711
IMAGE, VIDEO = "https://example.org/in.png", "https://example.org/in.mp4"
PREDECESSOR = (
    "wan_2_2_t2i vace vace_21 vace_22 flux t2v t2v_22 i2v i2v_22 hunyuan ltxv generate_video qwen_image_edit "
    "qwen_image_hires qwen_image_style image_inpaint annotated_image_edit qwen_image qwen_image_2512 z_image_turbo "
    "z_image_turbo_i2i"
).split()
ENGINE_ONLY = ("model_type", "image_mode", "multi_prompts_gen_type", "activated_loras", "loras_multipliers", "seed")
"""Settings that no parameter of that name sets."""
# `model_type` is the task's, the others are in the engine's `models/_settings.json`: it drops other names in silence.
SETTINGS = set(
    "model_type prompt alt_prompt image_mode image_prompt_type model_mode keep_frames_video_source video_prompt_type "
    "denoising_strength input_video_strength keep_frames_video_guide video_guide_outpainting masking_strength "
    "mask_expand frames_positions image_refs_relative_size remove_background_images_ref audio_prompt_type "
    "speakers_locations prompt_enhancer custom_settings resolution batch_size video_length force_fps "
    "num_inference_steps seed guidance_phases model_switch_phase switch_threshold switch_threshold2 guidance_scale "
    "guidance2_scale guidance3_scale audio_guidance_scale audio_scale embedded_guidance_scale alt_guidance_scale "
    "sample_solver flow_shift control_net_weight control_net_weight2 control_net_weight_alt negative_prompt NAG_scale "
    "NAG_tau NAG_alpha repeat_generation multi_images_gen_type multi_prompts_gen_type skip_steps_cache_type "
    "skip_steps_multiplier skip_steps_start_step_perc temporal_upsampling spatial_upsampling film_grain_intensity "
    "film_grain_saturation perturbation_switch perturbation_layers perturbation_start_perc perturbation_end_perc "
    "apg_switch cfg_star_switch cfg_zero_step motion_amplitude sliding_window_size sliding_window_overlap "
    "sliding_window_color_correction_strength sliding_window_overlap_noise sliding_window_discard_last_frames "
    "RIFLEx_setting override_profile activated_loras loras_multipliers image_start image_end image_refs image_guide "
    "image_mask video_guide video_guide2 video_mask video_source audio_guide audio_guide2 custom_guide "
    "audio_source".split()
)


def made_of(request: WanRequest, **more: Any) -> EngineTask:
    """What a request becomes when every file has arrived; LoRAs from URLs lie in /loras, inputs in /in."""
    model = facts(request.model)
    files = {file.name: Path("/in", file.name.replace("[", "-").replace("]", "")) for file in request.files}
    loras, _ = loras_of(request, model)
    lora_files = {one.source: f"/loras/{one.source.rpartition('/')[2]}" if one.is_url else one.source for one in loras}
    return engine_task(request, model, files, lora_files, **{"seed": SEED, "input_size": Pixels(3000, 2000), **more})


def made(task_type: str, **params: Any) -> EngineTask:
    return made_of(read_request(task_type, {"prompt": "a cat", **params}))


def refusal(task_type: str, **params: Any) -> str:
    with pytest.raises(TaskFailure) as failure:
        made(task_type, **params)
    assert failure.value.code == "input.bad_params" and not failure.value.engine_down
    return failure.value.message


@pytest.mark.parametrize("case", GOLDEN, ids=[case["type"] for case in GOLDEN])
def test_each_type_becomes_exactly_these_settings(case: dict[str, Any]) -> None:
    task = made_of(read_request(case["type"], case["params"]))
    assert dict(task.settings) == case["settings"]
    assert dict(task.made) == case["made"]
    assert task.results == case.get("results", 1)
    assert dict(task.afterwards) == case.get("afterwards", {})
    assert list(task.warnings) == case.get("warnings", [])


def test_no_type_is_without_an_example_and_none_of_the_old_ones_is_missing() -> None:
    assert sorted(case["type"] for case in GOLDEN) == sorted(TYPES) == sorted(PREDECESSOR)


def test_the_engine_knows_every_setting_that_it_may_get() -> None:
    names = {row.key for row in PARAMETERS.values() if row.key} | set(ENGINE_ONLY) | (set(MEDIA) - {"image", "mask"})
    assert names <= SETTINGS
    assert all(set(case["settings"]) <= SETTINGS for case in GOLDEN)


@pytest.mark.skipif(not os.environ.get("WAN2GP_PATH"), reason="WAN2GP_PATH names no Wan2GP")
def test_the_engine_at_hand_still_knows_them() -> None:
    known = json.loads(Path(os.environ["WAN2GP_PATH"], "models/_settings.json").read_text())
    assert SETTINGS - {"model_type"} <= set(known)


@pytest.mark.skipif(not os.environ.get("WAN2GP_PATH"), reason="WAN2GP_PATH names no Wan2GP")
def test_the_engine_at_hand_still_lists_the_models_of_the_types() -> None:
    listed = {path.stem for path in Path(os.environ["WAN2GP_PATH"], "defaults").glob("*.json")}
    assert {row.model for row in TYPES.values()} - listed <= {"z_image_img2img"}  # which is not the engine's own


@pytest.mark.parametrize("case", GOLDEN, ids=[case["type"] for case in GOLDEN])
def test_the_supervisor_fetches_what_the_handler_will_ask_for(case: dict[str, Any]) -> None:
    request = read_request(case["type"], case["params"])
    assert sources_of(case["params"]) == {one.name: Source(one.url, one.kind) for one in request.files if one.url}
    assert model_of(case["type"], case["params"]) == request.model


def test_an_unknown_type_renders_no_text_to_video() -> None:
    with pytest.raises(TaskFailure, match="there is no task type `t2w`: did you mean `t2v`") as failure:
        read_request("t2w", {"prompt": "a cat"})
    assert failure.value.code == "input.bad_params"
    assert model_of("t2w", {}) == "" and model_of("t2v", None) == "t2v" and model_of("t2v", {"model": 3}) == "t2v"


def test_a_model_of_the_row_gets_its_own_defaults_and_not_those_of_the_type() -> None:
    task = made("t2v", model="hunyuan")
    assert task.settings["model_type"] == "hunyuan"
    assert not {"resolution", "video_length"} & set(task.settings)
    other = made("qwen_image", model="qwen_image_2512_20B")
    assert not {"num_inference_steps", "guidance_scale", "resolution"} & set(other.settings)
    assert other.settings["activated_loras"] == []  # the type's were trained on another model


def test_a_model_that_the_engine_does_not_list_is_named_with_what_is_near() -> None:
    assert known_model("t2v", MODEL_DEFS) == ("t2v", None)
    assert known_model("i2v_14B", MODEL_DEFS) == ("i2v", None)
    assert known_model("i2v_14B", [*MODEL_DEFS, "i2v_14B"]) == ("i2v_14B", None)
    name, sentence = known_model("t2v_2_3", MODEL_DEFS)
    assert name == "t2v_2_3" and sentence is not None and "'t2v_2_2'" in sentence
    assert not set(MODEL_NAMES) & set(TYPES)


def test_the_same_seed_in_every_result_would_make_the_same_video_so_each_gets_the_next() -> None:
    task = made("t2v", seed=4_294_967_295, repeat_generation=3)
    assert task.results == 3 and task.settings["repeat_generation"] == 1
    assert [task.settings_of(number)["seed"] for number in range(3)] == [4_294_967_295, 0, 1]
    assert made("t2v", seed=-1).settings["seed"] == made("t2v").settings["seed"] == SEED
    assert made("t2v", seed=0).settings["seed"] == 0


def test_several_images_come_from_one_run_however_they_are_asked_for() -> None:
    for name in ("batch_size", "num_images", "repeat_generation"):
        task = made("flux", **{name: 3})
        assert (task.results, task.settings["batch_size"], task.settings["repeat_generation"]) == (1, 3, 1)
    assert "`batch_size` is 3" not in str(made("flux", batch_size=3).warnings)


def test_what_could_cost_the_result_is_done_when_the_result_is_safe() -> None:
    task = made("t2v", spatial_upsampling="flashvsr2", film_grain_intensity=0.2, temporal_upsampling="rife4")
    assert not {"spatial_upsampling", "temporal_upsampling", "film_grain_intensity"} & set(task.settings)
    assert task.afterwards == {
        "spatial_upsampling": "flashvsr2",
        "film_grain_intensity": 0.2,
        "temporal_upsampling": "rife4",
    }
    decoded = made("qwen_image", hires_scale=2)
    assert decoded.settings["spatial_upsampling"] == "vae2" and not decoded.afterwards
    assert "spatial_upsampling" not in made("qwen_image_hires", hires_scale=1).settings
    assert not made("t2v", film_grain_saturation=0.5).afterwards  # the colour of no grain


def test_every_url_of_a_types_own_lora_is_known_to_whoever_allows_downloads() -> None:
    brought = {one.url for row in TYPES.values() for one in row.loras}
    assert brought == OWN_URLS and all(url.startswith("https://huggingface.co/") for url in OWN_URLS)


def test_a_strength_of_nothing_leaves_a_types_lora_out_and_a_strength_brings_it_to_another_model() -> None:
    assert made("qwen_image", lightning_lora_strength=0).settings["activated_loras"] == []
    asked = made("qwen_image", model="qwen_image_2512_20B", lightning_lora_strength=0.5)
    assert asked.settings["loras_multipliers"] == "0.5"
    old = made("qwen_image_edit", image=IMAGE, lightning_lora_strength_phase_1=0.6)
    assert old.settings["loras_multipliers"] == "0.6"


# --- what the engine would do without a word ------------------------------------------------------------------------


def test_a_picture_that_the_model_does_not_begin_with_is_refused_and_not_dropped() -> None:
    assert refusal("t2v", image_start=IMAGE).startswith("`image_start`: the model t2v does not take it")
    assert "`image_end`" in refusal("t2v", video_source=VIDEO, image_end=IMAGE)


def test_a_video_that_begins_with_nothing_does_not_begin_with_a_black_picture() -> None:
    assert refusal("t2v", model="i2v_2_2").startswith("`image_start` is missing: the model i2v_2_2")


def test_references_guides_and_sound_that_a_model_has_no_use_for_are_refused() -> None:
    assert "`image_refs`: the model hunyuan takes no references" in refusal("hunyuan", image_refs=[IMAGE])
    assert "`video_guide`: the model hunyuan takes no guide" in refusal("hunyuan", video_guide=VIDEO)
    assert "`audio_guide`: the model t2v takes no sound" in refusal("t2v", audio_guide="https://example.org/a.wav")
    sound = made("i2v", model="multitalk", image_start=IMAGE, audio_guide="https://example.org/a.wav")
    assert sound.settings["audio_prompt_type"] == "A"
    two = {"audio_guide": "https://example.org/a.wav", "audio_guide2": "https://example.org/b.wav"}
    assert made("i2v", model="multitalk", image_start=IMAGE, **two).settings["audio_prompt_type"] == "CAB"
    assert made("t2v", audio_prompt_type="R").settings["audio_prompt_type"] == "R"  # the guide's own sound is kept


def test_a_guide_without_letters_is_used_as_its_model_uses_guides() -> None:
    assert made("t2v", video_guide=VIDEO, denoising_strength=0.6).settings["video_prompt_type"] == "GUV"
    assert made("t2v", video_guide=VIDEO, video_mask=VIDEO).settings["video_prompt_type"] == "GVA"
    assert made("ltxv", video_guide=VIDEO).settings["video_prompt_type"] == "V"
    assert made("vace", image_refs=[IMAGE], frames_positions="1").settings["video_prompt_type"] == "IF"
    assert made("i2v", video_source=VIDEO).settings["image_prompt_type"] == "V"


def test_the_letter_of_an_earlier_tasks_video_does_not_exist() -> None:
    assert "`image_prompt_type` has the letter 'L'" in refusal("i2v", image_start=IMAGE, image_prompt_type="L")


def test_images_from_a_model_of_videos_and_videos_from_one_of_images_name_the_model() -> None:
    assert refusal("flux", model="hunyuan") == "`model` hunyuan makes videos: flux needs images"
    assert refusal("t2v", model="flux") == "`model` flux makes images, and t2v is for videos"
    assert "`model` ace_step_v1 makes sound" in refusal("t2v", model="ace_step_v1")


def test_what_a_model_cannot_do_is_said_by_the_parameters_name() -> None:
    assert "there is 'dpm++'" in refusal("t2v", sample_solver="dpm+")
    assert "`guidance_phases` are 2: the model ltxv_13B has at most 1" in refusal("ltxv", guidance_phases=2)
    assert "`num_inference_steps` is 8: the model ltxv_13B needs at least 20" in refusal("ltxv", steps=8)
    assert "`video_length`: the model recam_1.3B makes 81" in refusal("t2v", model="recam_1.3B", video_length=49)
    lora = {"name": "a", "strength": "1;0;0"}
    three = made("vace", video_guide=VIDEO, model="vace_14B_lightning_3p_2_2", loras=[lora])
    assert three.settings["loras_multipliers"] == "1;0;0"
    assert "`loras[0]` has strengths for 3 phases" in refusal("t2v_22", loras=[lora])


def test_what_a_model_does_not_look_at_is_told_on_the_row() -> None:
    told = made("ltxv", model="ltxv_distilled", steps=8, negative_prompt="x", guidance_scale=3, sample_solver="euler")
    assert [warning.split("`")[1] for warning in told.warnings] == [
        "guidance_scale",
        "negative_prompt",
        "num_inference_steps",
        "sample_solver",
    ]


def test_a_lora_that_is_part_of_the_model_is_not_added_a_second_time() -> None:
    again = made("vace", video_guide=VIDEO, loras=["DetailEnhancerV1.safetensors", "other"])
    assert again.settings["activated_loras"] == ["other.safetensors"]
    assert "DetailEnhancerV1.safetensors is part of the model" in again.warnings[0]


def test_an_inpainted_image_goes_painted_and_its_mask_stays_here() -> None:
    task = made("image_inpaint", image=IMAGE, mask=IMAGE)
    assert task.settings["image_refs"] == ["/in/image"] and "image_mask" not in task.settings
    several = made("qwen_image_edit", image_refs=[VIDEO, VIDEO], image=IMAGE)
    assert several.settings["image_refs"] == ["/in/image", "/in/image_refs-0", "/in/image_refs-1"]
    masked = made("flux", image_guide=IMAGE, image_mask=IMAGE)
    assert (masked.settings["image_mode"], masked.settings["video_prompt_type"]) == (2, "VA")
    assert "takes no guide" in refusal("flux", image_guide=IMAGE)


def test_a_style_without_a_picture_asks_for_no_reference() -> None:
    task = made("qwen_image_style")
    assert task.settings["video_prompt_type"] == "" and "image_refs" not in task.settings


# --- the prompt -----------------------------------------------------------------------------------------------------


def test_no_line_of_a_prompt_is_taken_for_a_comment_or_a_command() -> None:
    task = made("t2v", prompt="#1 fan\r\n\r\n! {a}=b\n[/duration 5s] runs\nof 5 # 6")
    assert task.settings["prompt"] == "1 fan\n\n(a)=b\n(/duration 5s] runs\nof 5 # 6"
    assert len(task.warnings) == 1 and "`prompt`" in task.warnings[0]
    assert made("t2v", prompt="\xa0# ! #\n# two # {").settings["prompt"] == "two # ("
    assert made("t2v", prompt=" two\n\nparagraphs ").settings["prompt"] == "two\n\nparagraphs"


def test_an_image_that_says_all_needs_no_words() -> None:
    assert made("qwen_image_edit", image=IMAGE, prompt="").settings["prompt"] == "."
    assert refusal("annotated_image_edit", image=IMAGE, mask=IMAGE, prompt=" ").startswith("`prompt` is missing")
