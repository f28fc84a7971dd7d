"""What must hold between the parameters of a generation task, as a table: the engine checks half of it, and late.

Most rules are one line of :data:`COMPANIONS` (a parameter that means nothing without another) or of :data:`LETTERS`
(a letter of a prompt type and the file that it needs). All look at the row as its author wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from wan2gp.handlers.wan_loras import Lora
from wan2gp.wan_types import IMAGE, TaskType

MAG_STEPS = 50
"""The most steps that the engine's `mag` cache knows."""


@dataclass(frozen=True)
class Draft:
    """A row whose single values are right. ``files``: the parameters that name files."""

    row: TaskType
    values: Mapping[str, Any]
    files: Collection[str] = ()
    loras: Collection[Lora] = field(default_factory=tuple)

    def has(self, name: str) -> bool:
        """Whether the row gives this parameter."""
        return name in self.files or name in self.values

    def letters(self, name: str) -> str | None:
        """The letters of a prompt type; None: the row leaves them to us."""
        return self.values.get(name)


@dataclass(frozen=True)
class Rule:
    """One rule. ``broken(draft)``: what is wrong and what to do, or None. It names at least one of ``keys``."""

    name: str
    keys: tuple[str, ...]
    broken: Callable[[Draft], str | None]


COMPANIONS: Mapping[str, tuple[str, ...]] = {
    "audio_guide2": ("audio_guide",),
    "control_net_weight": ("video_guide", "image_guide"),
    "control_net_weight2": ("video_guide", "image_guide"),
    "frames_positions": ("image_refs",),
    "image_end": ("image_start", "video_source"),
    "image_mask": ("image_guide",),
    "image_refs_relative_size": ("image_refs",),
    "keep_frames_video_guide": ("video_guide",),
    "keep_frames_video_source": ("video_source",),
    "mask_expand": ("video_mask", "image_mask"),
    "masking_strength": ("video_mask", "image_mask"),
    "scene_reference_strength": ("image",),
    "speakers_locations": ("audio_guide",),
    "style_reference_strength": ("image",),
    "subject_strength": ("image",),
    "switch_threshold2": ("switch_threshold",),
    "video_guide2": ("video_guide",),
    "video_guide_outpainting": ("video_guide", "image_guide"),
    "video_mask": ("video_guide",),
}
"""A parameter, and those of which one must be there for it to have an effect."""

LETTERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("video_prompt_type", "V", ("video_guide", "image_guide")),
    ("video_prompt_type", "A", ("video_mask", "image_mask")),
    ("video_prompt_type", "I", ("image_refs", "image")),
    ("video_prompt_type", "F", ("frames_positions",)),
    ("image_prompt_type", "S", ("image_start", "image")),
    ("image_prompt_type", "E", ("image_end",)),
    ("image_prompt_type", "V", ("video_source",)),
    ("audio_prompt_type", "A", ("audio_guide",)),
    ("audio_prompt_type", "B", ("audio_guide2",)),
)
"""A letter of a prompt type, and the files of which one goes with it: neither is of use without the other."""


def companion_rules() -> Iterator[Rule]:
    """``x`` without what it goes with."""
    for name, others in COMPANIONS.items():
        yield Rule(f"{name} alone", (name, *others), _alone(name, others))


def _alone(name: str, others: tuple[str, ...]) -> Callable[[Draft], str | None]:
    def broken(draft: Draft) -> str | None:
        if not draft.has(name) or any(draft.has(other) for other in others):
            return None
        return f"`{name}` has no effect without {_either(others)}: give it too, or leave `{name}` out"

    return broken


def letter_rules() -> Iterator[Rule]:
    """A letter without its file, and a file without its letter."""
    for key, letter, files in LETTERS:
        yield Rule(f"{key} {letter} without file", (key, *files), _letter_without_file(key, letter, files))
        yield Rule(f"file without {key} {letter}", (key, *files), _file_without_letter(key, letter, files))


def _letter_without_file(key: str, letter: str, files: tuple[str, ...]) -> Callable[[Draft], str | None]:
    def broken(draft: Draft) -> str | None:
        given = draft.letters(key) or ""
        # U: the mask is not looked at.
        if letter not in given or (letter == "A" and "U" in given) or any(draft.has(file) for file in files):
            return None
        return f"`{key}` {given!r} has the letter {letter}, which needs {_either(files)}"

    return broken


def _file_without_letter(key: str, letter: str, files: tuple[str, ...]) -> Callable[[Draft], str | None]:
    def broken(draft: Draft) -> str | None:
        given = draft.letters(key)
        found = next((file for file in files if draft.has(file)), None)
        if given is None or found is None or letter in given:
            return None
        return f"`{found}` has no effect unless `{key}` has the letter {letter}: it is {given!r}; or leave `{key}` out"

    return broken


# --- the others ------------------------------------------------------------------------------------------------------


def _prompt(draft: Draft) -> str | None:
    if draft.row.prompt_optional or str(draft.values.get("prompt", "")).strip():
        return None
    return f"`prompt` is missing: {draft.row.name} needs one"


def _needs(draft: Draft) -> str | None:
    for group in draft.row.needs:
        if not any(draft.has(name) for name in group):
            return f"{_either(group)} is missing: {draft.row.name} needs it"
    return None


def _switches(draft: Draft) -> str | None:
    first, second = draft.values.get("switch_threshold"), draft.values.get("switch_threshold2")
    if first is None or second is None or second <= first:
        return None
    return f"`switch_threshold2` ({second:g}) must not be above `switch_threshold` ({first:g}): the noise falls"


def _projected(draft: Draft) -> str | None:
    if not draft.values.get("cfg_star_switch") or not draft.values.get("apg_switch"):
        return None
    return "`cfg_star_switch` and `apg_switch` exclude each other: leave one out"


def _guided(draft: Draft) -> str | None:
    """The engine sets it to 1 in silence where nothing is led by a video or image."""
    strength = draft.values.get("denoising_strength")
    letters = draft.letters("video_prompt_type")
    if strength is None or strength == 1 or draft.row.image == "image_start" or "G" in (letters or ""):
        return None
    if letters is None and draft.has("video_guide"):
        return None  # the letters that we choose have it, where the model takes them
    return "`denoising_strength` has no effect unless `video_prompt_type` has the letter G, with a guide"


def _image_count(draft: Draft) -> str | None:
    if draft.row.makes != IMAGE or draft.values.get("video_length", 1) == 1:
        return None
    return f"`video_length` is for videos, and {draft.row.name} makes images: use `batch_size`"


def _image_repeats(draft: Draft) -> str | None:
    if draft.row.makes != IMAGE or not draft.has("repeat_generation") or not draft.has("batch_size"):
        return None
    return "`repeat_generation` and `batch_size` mean the same for images: give one"


def _shape_name(draft: Draft) -> str | None:
    size = draft.values.get("resolution")
    if not isinstance(size, str) or size in draft.row.size.shapes:
        return None
    known = ", ".join(draft.row.size.shapes)
    return f"`resolution` {size!r} is no size: give WIDTHxHEIGHT" + (f", or one of {known}" if known else "")


def _hires(draft: Draft) -> str | None:
    scale = draft.values.get("hires_scale")
    if scale is None or (scale in (1, 2) and not draft.has("spatial_upsampling")):
        return None
    if scale in (1, 2):
        return "`hires_scale` and `spatial_upsampling` both enlarge: give one"
    return f"`hires_scale` is {scale:g}: the engine enlarges by 1 or 2 while it decodes; else use `spatial_upsampling`"


def _tea(draft: Draft) -> str | None:
    if not draft.has("tea_cache_setting") or not draft.has("skip_steps_cache_type"):
        return None
    return (
        "`tea_cache_setting` is the old name of `skip_steps_cache_type` with `skip_steps_multiplier`: give those alone"
    )


def _mag_steps(draft: Draft) -> str | None:
    steps = draft.values.get("num_inference_steps", 0)
    if draft.values.get("skip_steps_cache_type") != "mag" or steps <= MAG_STEPS:
        return None
    return f"`skip_steps_cache_type` mag works with at most {MAG_STEPS} `num_inference_steps`: they are {steps}"


def _perturbed(draft: Draft) -> str | None:
    start, end = draft.values.get("perturbation_start_perc"), draft.values.get("perturbation_end_perc")
    if start is None or end is None or start <= end:
        return None
    return f"`perturbation_start_perc` ({start}) must not be above `perturbation_end_perc` ({end})"


def _overlap(draft: Draft) -> str | None:
    size, overlap = draft.values.get("sliding_window_size"), draft.values.get("sliding_window_overlap")
    if size is None or overlap is None or overlap < size:
        return None
    return f"`sliding_window_overlap` ({overlap}) must be below `sliding_window_size` ({size})"


def _two_images(draft: Draft) -> str | None:
    if draft.row.image != "image_start" or not draft.has("image") or not draft.has("image_start"):
        return None
    return "`image` and `image_start` are the same for this type: give one"


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(f"`{name}`" for name in names)


RULES: tuple[Rule, ...] = (
    Rule("prompt missing", ("prompt",), _prompt),
    Rule("input missing", ("image_start", "video_source", "video_guide", "image_refs", "image", "mask"), _needs),
    *companion_rules(),
    *letter_rules(),
    Rule("thresholds rise", ("switch_threshold", "switch_threshold2"), _switches),
    Rule("two guidances", ("cfg_star_switch", "apg_switch"), _projected),
    Rule("strength of nothing", ("denoising_strength", "video_prompt_type"), _guided),
    Rule("length of an image", ("video_length", "batch_size"), _image_count),
    Rule("two counts of images", ("repeat_generation", "batch_size"), _image_repeats),
    Rule("shape without a name", ("resolution",), _shape_name),
    Rule("enlarged twice", ("hires_scale", "spatial_upsampling"), _hires),
    Rule("two names of one cache", ("tea_cache_setting", "skip_steps_cache_type"), _tea),
    Rule("too many steps for the cache", ("skip_steps_cache_type", "num_inference_steps"), _mag_steps),
    Rule("perturbation ends first", ("perturbation_start_perc", "perturbation_end_perc"), _perturbed),
    Rule("overlap eats the window", ("sliding_window_overlap", "sliding_window_size"), _overlap),
    Rule("two first images", ("image", "image_start"), _two_images),
)
"""Every rule; the first that is broken is what the row's error says."""


def first_broken(draft: Draft) -> tuple[Rule, str] | None:
    """The first rule that a row breaks, and the sentence."""
    for rule in RULES:
        sentence = rule.broken(draft)
        if sentence is not None:
            return rule, sentence
    return None
