"""From a task's request to the exact settings that the engine gets, and to what the result says of them.

Only what the row, its type, or a trap of the engine asks for is set; the rest is left to the model's own defaults. In
order: ``phase_config``, the row, its type, the type's defaults for its own model, the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wan2gp.handlers.comfy_fields import bad
from wan2gp.handlers.wan_letters import choose_letters
from wan2gp.handlers.wan_loras import Lora, strengths_setting
from wan2gp.handlers.wan_model_limits import check_model, image_mode, not_used
from wan2gp.handlers.wan_models import ModelFacts
from wan2gp.handlers.wan_parameters import PARAMETERS
from wan2gp.handlers.wan_prompt import prompt_of
from wan2gp.handlers.wan_request import WanRequest
from wan2gp.handlers.wan_shape import Shape, shape_of
from wan2gp.handlers.wan_values import Pixels
from wan2gp.lora_names import file_name
from wan2gp.wan_types import OwnLora

SEEDS = 2**32
FIXED: Mapping[str, Any] = {
    # Its default takes every paragraph for a task of its own.
    "multi_prompts_gen_type": "FG",
    # A second sample would get a random seed: results are made one by one.
    "repeat_generation": 1,
}
AFTERWARDS = ("temporal_upsampling", "spatial_upsampling", "film_grain_intensity", "film_grain_saturation")
"""Done by a task of the engine's own when the result is safe: a failure there would cost the result."""
WHILE_DECODING = ("", "vae1", "vae2")
LETTERS = ("image_prompt_type", "video_prompt_type", "audio_prompt_type")
SHAPES = ("resolution", "video_length")


@dataclass(frozen=True)
class EngineTask:
    """What the engine is to do."""

    settings: Mapping[str, Any]
    """Of the first result."""
    results: int = 1
    """How many are made, each with the seed after the one before."""
    afterwards: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the engine's postprocessing, for each file that was made; empty: none."""
    made: Mapping[str, Any] = field(default_factory=dict)
    """For ``result_data``: the model, the seed, and length and size as asked for and as made."""
    warnings: tuple[str, ...] = ()

    def settings_of(self, result: int) -> dict[str, Any]:
        """The settings of the result with that number, from 0."""
        return {**self.settings, "seed": (self.settings["seed"] + result) % SEEDS}


def loras_of(request: WanRequest, facts: ModelFacts) -> tuple[tuple[Lora, ...], tuple[str, ...]]:
    """The type's LoRAs and the row's, and warnings: what is part of the model is not added to it once more."""
    own = [lora for each in request.row.loras if (lora := _own_lora(each, request)) is not None]
    named = {lora.source for lora in request.loras}
    wanted = [*(lora for lora in own if lora.source not in named), *request.loras]
    parts = {file_name(name) for name in facts.loras}
    kept = tuple(lora for lora in wanted if file_name(lora.source) not in parts)
    left = (file_name(lora.source) for lora in wanted if lora not in kept)
    return kept, tuple(f"{name} is part of the model {facts.name}: it is not added again" for name in left)


def _own_lora(own: OwnLora, request: WanRequest) -> Lora | None:
    """A type's LoRAs were trained on its own model: with another one only when the row asks for them."""
    given = request.values.get(own.key)
    if given is None and not (own.always and request.own_model):
        return None
    strength = own.strength if given is None else given
    return Lora(own.url, f"{strength:g}", "") if strength > 0 else None


def engine_task(
    request: WanRequest,
    facts: ModelFacts,
    files: Mapping[str, Path],
    lora_files: Mapping[str, str],
    *,
    input_size: Pixels | None = None,
    seed: int = 0,
) -> EngineTask:
    """``files``: by the names of the request's files, absolute. ``lora_files``: what the engine is given for the source
    of each of :func:`loras_of`. ``input_size``: of the type's input image. ``seed``: where the row gives none.

    Raises :class:`~wan2gp.handlers.api.TaskFailure` with ``input.bad_params`` where the model cannot do it.
    """
    mode = image_mode(request, facts)
    values = _values(request)
    shape = shape_of(request, facts, values, input_size)
    prompt, prompt_warnings = prompt_of(request)
    loras, lora_warnings = loras_of(request, facts)
    plain = {row.key: values[name] for name, row in PARAMETERS.items() if row.key and name in values}
    settings = {
        **{key: value for key, value in plain.items() if key not in (*AFTERWARDS, *LETTERS, *SHAPES)},
        **FIXED,
        "model_type": facts.name,
        "image_mode": mode,
        "prompt": prompt,
        "seed": values["seed"] if values.get("seed", -1) >= 0 else seed % SEEDS,
        **shape.settings,
        **choose_letters(request, facts),
        **_media(request, files),
        **_cache(values),
        "activated_loras": [lora_files[lora.source] for lora in loras],
        "loras_multipliers": strengths_setting(list(loras)),
    }
    enlarged, afterwards = _enlarged(values)
    settings |= enlarged
    _count(settings, values, mode)
    check_model(request, facts, settings, loras)
    warnings = (*request.warnings, *prompt_warnings, *lora_warnings, *not_used(request, facts))
    results = 1 if mode else int(values.get("repeat_generation", 1))
    return EngineTask(settings, results, afterwards, _made(settings, shape), warnings)


def _values(request: WanRequest) -> dict[str, Any]:
    """By the parameters' names, each from the first of the places that say something."""
    found: dict[str, Any] = dict(request.row.defaults) if request.own_model else {}
    found |= {**request.row.settings, **request.values}
    if request.phases is not None:
        found |= request.phases.settings
    return found


def _media(request: WanRequest, files: Mapping[str, Path]) -> dict[str, Any]:
    """The engine's media settings. A mask that was painted over its image has gone into it."""
    found: dict[str, Any] = {}
    for file in sorted(request.files, key=lambda file: file.parameter != "image"):
        setting = request.row.image if file.parameter == "image" else file.parameter
        if setting == "image_refs":
            found.setdefault(setting, []).append(str(files[file.name]))
        elif setting != "mask":
            found[setting] = str(files[file.name])
    return found


def _cache(values: Mapping[str, Any]) -> dict[str, Any]:
    """The old way to skip steps, in the words of the new one."""
    factor = values.get("tea_cache_setting")
    if factor is None:
        return {}
    return (
        {"skip_steps_cache_type": "tea", "skip_steps_multiplier": factor} if factor else {"skip_steps_cache_type": ""}
    )


def _enlarged(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is done while decoding, and what afterwards."""
    given = {name: values[name] for name in AFTERWARDS if values.get(name)}
    if "hires_scale" in values:
        given["spatial_upsampling"] = "vae2" if values["hires_scale"] == 2 else ""
    now = {}
    if given.get("spatial_upsampling") in WHILE_DECODING:
        now["spatial_upsampling"] = given.pop("spatial_upsampling")
    worth = any(given.get(name) for name in AFTERWARDS[:3])
    return {name: value for name, value in now.items() if value}, given if worth else {}


def _count(settings: dict[str, Any], values: Mapping[str, Any], mode: int) -> None:
    """Images come in one go, videos one after the other."""
    if mode:
        settings["batch_size"] = int(values.get("batch_size", values.get("repeat_generation", 1)))
    elif "batch_size" in values:
        raise bad("`batch_size` is for images: use `repeat_generation`")


def _made(settings: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    return {"model": settings["model_type"], "seed": settings["seed"], **shape.made}
