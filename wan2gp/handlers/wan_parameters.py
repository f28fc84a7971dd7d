"""The parameters of a generation task, one row each: what it is called, what it may be, and in which unit.

Rules that concern one parameter alone are in its row; those between several are in :mod:`wan2gp.handlers.wan_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wan2gp.wan_sources import MEDIA
from wan2gp.wan_types import IMAGE, VIDEO

WHOLE, NUMBER, TEXT, FLAG, LETTERS, NUMBERS = "whole number", "number", "text", "true or false", "letters", "numbers"
MODE = "text or whole number"
SIZE, FRAMES, FPS, OBJECT, LORAS, MULTIPLIERS = "size", "frames", "rate", "object", "LoRAs", "multipliers"
MOST_SECONDS = 600.0
"""The longest video that may be asked for in seconds."""
LONGEST_PROMPT = 20_000
"""Characters."""


@dataclass(frozen=True)
class Parameter:
    """One parameter. ``lowest`` and ``highest`` are inclusive; of a text ``highest`` is its length in characters."""

    name: str
    kind: str
    text: str
    unit: str = ""
    lowest: float | None = None
    highest: float | None = None
    choices: tuple[str, ...] = ()
    """The values of a text, or of letters the ones there are."""
    aliases: tuple[str, ...] = ()
    setting: str | None = None
    """The engine's name for it; None: the same; empty: it is not for the engine."""
    makes: str = ""
    """Only for types that make this: ``video`` or ``image``; empty: for both."""
    types: tuple[str, ...] = ()
    """Only for these types; empty: for all that ``makes`` allows."""

    @property
    def key(self) -> str:
        """The engine's name for it, or empty."""
        return self.name if self.setting is None else self.setting


def _scale(name: str, text: str, highest: float = 30, **more: object) -> Parameter:
    return Parameter(name, NUMBER, text, lowest=0, highest=highest, **more)  # type: ignore[arg-type]


def _percent(name: str, text: str, *aliases: str) -> Parameter:
    return Parameter(name, WHOLE, text, "%", 0, 100, aliases=aliases)


QWEN = ("qwen_image", "qwen_image_2512", "qwen_image_hires", "qwen_image_edit", "qwen_image_style")
PAINTED = ("image_inpaint", "annotated_image_edit")
STYLE = ("qwen_image_style",)
UPSCALERS = ("lanczos", "flashvsr", "flashvsr2pass", "seedvr2")
FACTORS = ("1.5", "2", "2.5", "3", "3.5", "4")

_PROMPT = (
    Parameter("prompt", TEXT, "What is to be seen.", "characters", 0, LONGEST_PROMPT),
    Parameter("negative_prompt", TEXT, "What is not to be seen.", "characters", 0, LONGEST_PROMPT),
    Parameter("alt_prompt", TEXT, "A second prompt, for models that take one.", "characters", 0, LONGEST_PROMPT),
    Parameter(
        "prompt_enhancer",
        LETTERS,
        "Let a language model write the prompt out; off if empty.",
        choices=("T", "I", "K", "1"),
    ),
    Parameter(
        "model", TEXT, "Any model that the engine lists, instead of the type's own.", "characters", 1, 200, setting=""
    ),
    Parameter("model_mode", MODE, "A model's own mode.", "characters", 0, 100),
    Parameter(
        "seed",
        WHOLE,
        "The same seed makes the same result; -1 or none: one is drawn.",
        "",
        -1,
        4_294_967_295,
        setting="",
    ),
)
_SHAPE = (
    Parameter("resolution", SIZE, "WIDTHxHEIGHT.", "pixels", 64, 8192),
    Parameter(
        "fit", TEXT, "How inputs of another shape are made to fit.", choices=("crop", "pad", "stretch"), setting=""
    ),
    Parameter(
        "video_length", FRAMES, "How long: frames, or seconds as `5s`.", "frames", 1, 10_000, aliases=("num_frames",)
    ),
    Parameter(
        "force_fps",
        FPS,
        "Pictures per second: a whole number, or `control` or `source`.",
        "frames/s",
        1,
        120,
        ("auto", "control", "source"),
        makes=VIDEO,
    ),
    Parameter("batch_size", WHOLE, "How many images.", "images", 1, 16, aliases=("num_images",), makes=IMAGE),
    Parameter("repeat_generation", WHOLE, "How many results, each with the next seed.", "results", 1, 25, setting=""),
)
_SAMPLING = (
    Parameter("num_inference_steps", WHOLE, "Denoising steps.", "steps", 1, 100, aliases=("steps",)),
    Parameter("sample_solver", TEXT, "The sampler, of those that the model has.", "characters", 0, 40),
    _scale("guidance_scale", "How closely the prompt is followed, in the first phase."),
    _scale("guidance2_scale", "The same in the second phase."),
    _scale("guidance3_scale", "The same in the third phase."),
    _scale("embedded_guidance_scale", "The same, for models that were taught it (Flux, Hunyuan)."),
    _scale("audio_guidance_scale", "How closely the sound is followed."),
    _scale("alt_guidance_scale", "How closely a second condition is followed."),
    _scale("flow_shift", "How the steps lean to the coarse side.", 100),
    Parameter("guidance_phases", WHOLE, "Phases of the sampling.", "phases", 1, 3),
    Parameter("switch_threshold", NUMBER, "The noise level at which phase 2 begins.", "of 1000", 0, 1000),
    Parameter("switch_threshold2", NUMBER, "The noise level at which phase 3 begins.", "of 1000", 0, 1000),
    Parameter("model_switch_phase", WHOLE, "After which phase the second model takes over.", "phase", 1, 2),
    Parameter("phase_config", OBJECT, "Phases, their steps, guidance and LoRAs, in one object.", setting=""),
    Parameter(
        "denoising_strength",
        NUMBER,
        "How much of the leading picture is made anew.",
        "",
        0,
        1,
        aliases=("denoise_strength", "strength"),
    ),
    Parameter("masking_strength", NUMBER, "For how much of the steps the mask holds.", "", 0, 1),
    Parameter("input_video_strength", NUMBER, "How strongly the start holds.", "", 0, 1),
    _scale("NAG_scale", "Negative guidance for models without guidance; 1: off.", 20),
    _scale("NAG_tau", "Its limit.", 20),
    Parameter("NAG_alpha", NUMBER, "Its share.", "", 0, 1),
    Parameter("cfg_star_switch", WHOLE, "1: optimised guidance.", "", 0, 1),
    Parameter("cfg_zero_step", WHOLE, "Steps without guidance at the start; -1: none.", "steps", -1, 39),
    Parameter("apg_switch", WHOLE, "1: projected guidance.", "", 0, 1),
    Parameter("perturbation_switch", WHOLE, "1: guidance by skipped layers.", "", 0, 4, aliases=("slg_switch",)),
    Parameter("perturbation_layers", NUMBERS, "The layers that are skipped.", "", 0, 100, aliases=("slg_layers",)),
    _percent("perturbation_start_perc", "From where they are.", "slg_start_perc"),
    _percent("perturbation_end_perc", "Until where they are.", "slg_end_perc"),
    Parameter("skip_steps_cache_type", TEXT, "Skip steps that change little.", choices=("", "tea", "mag")),
    Parameter("skip_steps_multiplier", NUMBER, "How much faster that is to be.", "times", 1, 5),
    _percent("skip_steps_start_step_perc", "From where steps may be skipped.", "tea_cache_start_step_perc"),
    Parameter(
        "tea_cache_setting",
        NUMBER,
        "The same as `skip_steps_multiplier` with `tea`; 0: off.",
        "times",
        0,
        5,
        setting="",
    ),
    Parameter("RIFLEx_setting", WHOLE, "For long videos: 0 by itself, 1 on, 2 off.", "", 0, 2, makes=VIDEO),
    Parameter("motion_amplitude", NUMBER, "How much moves.", "times", 1, 1.4, makes=VIDEO),
    Parameter("override_profile", NUMBER, "The engine's memory profile; -1: the worker's.", "", -1, 5),
    Parameter("custom_settings", OBJECT, "A model's own settings, by their names."),
)
_LEADING = (
    Parameter(
        "image_prompt_type",
        LETTERS,
        "What the video starts from: S start, E end, V continue, T text.",
        choices=("S", "E", "V", "T"),
    ),
    Parameter(
        "video_prompt_type",
        LETTERS,
        "How guides, masks and references are used.",
        choices=tuple("VGUPODESLCMBHANXYWZIKFJTRQ0123456789#&+"),
    ),
    Parameter("audio_prompt_type", LETTERS, "How sound is used.", choices=tuple("ABXCPKOFVLNR12")),
    Parameter("control_net_weight", NUMBER, "How strongly the guide leads.", "", 0, 2),
    Parameter("control_net_weight2", NUMBER, "How strongly a second guide leads.", "", 0, 2),
    Parameter("control_net_weight_alt", NUMBER, "How strongly a model's other guide leads.", "", 0, 2),
    Parameter(
        "keep_frames_video_guide", TEXT, "Which pictures of the guide are used, as `1:20 -1`.", "characters", 0, 1000
    ),
    Parameter(
        "keep_frames_video_source", TEXT, "How many pictures are kept; negative: from the end.", "characters", 0, 10
    ),
    Parameter(
        "video_guide_outpainting", TEXT, "Percent added at top, bottom, left, right: `0 0 30 30`.", "characters", 0, 40
    ),
    Parameter("mask_expand", WHOLE, "Grow the mask, or shrink it.", "pixels", -10, 50),
    Parameter(
        "frames_positions", TEXT, "Where `image_refs` stand in the video: `1 L`.", "characters", 0, 1000, makes=VIDEO
    ),
    _percent("image_refs_relative_size", "How large references are beside the result."),
    Parameter("remove_background_images_ref", WHOLE, "1: references lose their background.", "", 0, 1),
    Parameter("multi_images_gen_type", WHOLE, "What several start images mean.", "", 0, 1),
    Parameter("speakers_locations", TEXT, "Where speakers are, percent: `0:45 55:100`.", "characters", 0, 100),
    _scale("audio_scale", "How strongly the sound counts.", 10),
)
_WINDOWS = (
    Parameter("sliding_window_size", WHOLE, "Frames of one window of a long video.", "frames", 5, 2000, makes=VIDEO),
    Parameter("sliding_window_overlap", WHOLE, "Frames that two windows share.", "frames", 0, 200, makes=VIDEO),
    Parameter("sliding_window_overlap_noise", WHOLE, "Noise on those.", "", 0, 150, makes=VIDEO),
    Parameter(
        "sliding_window_discard_last_frames", WHOLE, "Frames dropped at a window's end.", "frames", 0, 200, makes=VIDEO
    ),
    Parameter(
        "sliding_window_color_correction_strength",
        NUMBER,
        "Keep colours from one window to the next.",
        "",
        0,
        1,
        makes=VIDEO,
    ),
)
_AFTER = (
    Parameter(
        "temporal_upsampling",
        TEXT,
        "More pictures per second, by the engine's RIFE.",
        choices=("", "rife2", "rife4"),
        makes=VIDEO,
    ),
    Parameter(
        "spatial_upsampling",
        TEXT,
        "Enlarge the result; `vae2` while it is decoded, the others afterwards.",
        choices=("", "vae1", "vae2", *(one + factor for one in UPSCALERS for factor in FACTORS)),
    ),
    Parameter("film_grain_intensity", NUMBER, "Grain; 0: none.", "", 0, 1),
    Parameter("film_grain_saturation", NUMBER, "Its colour.", "", 0, 1),
)
_LORAS = (
    Parameter("activated_loras", LORAS, "LoRAs by file name or URL.", setting=""),
    Parameter(
        "loras_multipliers",
        MULTIPLIERS,
        "Their strengths: `,` between steps, `;` between phases, a space between LoRAs.",
        setting="",
    ),
    Parameter("loras", LORAS, "The same as a list of `{url, multiplier}`.", setting=""),
    Parameter("additional_loras", LORAS, "The same as `{url: multiplier}`.", setting=""),
)
_OWN = (
    Parameter(
        "lightning_lora_strength",
        NUMBER,
        "Strength of the type's LoRA for few steps; 0: without.",
        "",
        0,
        2,
        aliases=("lightning_lora_strength_phase_1",),
        setting="",
        types=(*QWEN, *PAINTED),
    ),
    Parameter(
        "edit_lora_strength", NUMBER, "Strength of the LoRA that reads the mask.", "", 0, 2, setting="", types=PAINTED
    ),
    Parameter(
        "style_reference_strength",
        NUMBER,
        "How strongly the image's style is taken.",
        "",
        0,
        2,
        setting="",
        types=STYLE,
    ),
    Parameter(
        "subject_strength", NUMBER, "How strongly the image's subject is taken.", "", 0, 2, setting="", types=STYLE
    ),
    Parameter(
        "scene_reference_strength",
        NUMBER,
        "How strongly the image's scene is taken.",
        "",
        0,
        2,
        setting="",
        types=STYLE,
    ),
    Parameter("subject_description", TEXT, "What the subject is.", "characters", 0, 1000, setting="", types=STYLE),
    Parameter("in_this_scene", FLAG, "Whether the subject stays in its scene.", setting="", types=STYLE),
    Parameter(
        "hires_scale",
        NUMBER,
        "Enlarge the image while it is decoded: 1 or 2.",
        "times",
        1,
        2,
        setting="",
        types=(*QWEN, *PAINTED),
    ),
    Parameter(
        "image_size",
        TEXT,
        "`auto`: as the input image.",
        choices=("auto", ""),
        setting="",
        types=("z_image_turbo_i2i",),
    ),
)

PARAMETERS: Mapping[str, Parameter] = {
    row.name: row for part in (_PROMPT, _SHAPE, _SAMPLING, _LEADING, _WINDOWS, _AFTER, _LORAS, _OWN) for row in part
}
"""Every parameter that names no files, by its name; those that do are :data:`wan2gp.wan_sources.MEDIA`."""


def names_for(task_type: str, makes: str, image: bool) -> list[str]:
    """Every key that a row of the type may use, aliases too."""
    plain = [(row.name, row.aliases) for row in PARAMETERS.values() if allowed(row, task_type, makes)]
    media = [(row.name, row.aliases) for row in MEDIA.values() if row.name not in ("image", "mask") or image]
    return [name for own, aliases in (*plain, *media) for name in (own, *aliases)]


def allowed(row: Parameter, task_type: str, makes: str) -> bool:
    """Whether rows of the type may use it."""
    return row.makes in ("", makes) and (not row.types or task_type in row.types)
