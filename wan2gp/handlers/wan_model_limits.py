"""What a model cannot do, or would do without a word: said before it is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wan2gp.handlers.comfy_fields import bad, close
from wan2gp.handlers.wan_loras import Lora
from wan2gp.handlers.wan_models import ModelFacts
from wan2gp.handlers.wan_phases import SCALES
from wan2gp.handlers.wan_request import WanRequest
from wan2gp.wan_types import IMAGE

VIDEOS, IMAGES, INPAINT = 0, 1, 2
"""The engine's ``image_mode``."""
LTXV_STEPS = 20
"""The engine refuses fewer with its LTX Video model that is not distilled."""


def image_mode(request: WanRequest, facts: ModelFacts) -> int:
    """What the model is to make. Without it the engine looks for a control video where an image is given."""
    wants = request.row.makes
    if facts.sound_only or (wants == IMAGE and not facts.images and not facts.images_too):
        raise bad(
            f"`model` {facts.name} makes {'sound' if facts.sound_only else 'videos'}: {request.row.name} needs {wants}s"
        )
    if wants != IMAGE and facts.images:
        raise bad(f"`model` {facts.name} makes images, and {request.row.name} is for videos")
    if wants != IMAGE:
        return VIDEOS
    return INPAINT if request.has_files("image_mask") else IMAGES


def check_model(request: WanRequest, facts: ModelFacts, settings: Mapping[str, Any], loras: Sequence[Lora]) -> None:
    """Raises :class:`~wan2gp.handlers.api.TaskFailure` with ``input.bad_params``, naming the parameter."""
    for sentence in _refused(request, facts, settings, loras):
        raise bad(sentence)


def _refused(
    request: WanRequest, facts: ModelFacts, settings: Mapping[str, Any], loras: Sequence[Lora]
) -> Iterator[str]:
    solver = settings.get("sample_solver", "")
    if facts.solvers and solver and solver not in facts.solvers:
        yield f"`sample_solver` is {solver!r}: the model {facts.name} has no such sampler{close(solver, facts.solvers)}"
    phases = settings.get("guidance_phases", facts.usual_phases)
    if phases > max(1, facts.phases):
        key = "phase_config.phases" if request.phases is not None else "guidance_phases"
        yield f"`{key}` are {phases}: the model {facts.name} has at most {max(1, facts.phases)}"
    batch = settings.get("batch_size", 1)
    if batch > facts.batch:
        yield f"`batch_size` is {batch}: the model {facts.name} makes at most {facts.batch} at a time"
    steps = settings.get("num_inference_steps", LTXV_STEPS)
    if facts.architecture == "ltxv_13B" and not facts.locked_steps and steps < LTXV_STEPS:
        yield f"`num_inference_steps` is {steps}: the model {facts.name} needs at least {LTXV_STEPS}"
    for lora in loras:
        if lora.phases > phases:
            yield f"`{lora.label}` has strengths for {lora.phases} phases: this run has {phases} (`guidance_phases`)"


def not_used(request: WanRequest, facts: ModelFacts) -> Iterator[str]:
    """Warnings for what the row gives and the model does not look at."""
    for name in SCALES:
        if name in request.values and not facts.phases:
            yield f"`{name}` is not used: the model {facts.name} has no guidance of this kind"
    if "negative_prompt" in request.values and request.values["negative_prompt"] and not facts.negative_prompt:
        yield f"`negative_prompt` is not used: the model {facts.name} has none"
    if "num_inference_steps" in request.values and facts.locked_steps:
        yield f"`num_inference_steps` is not used: the model {facts.name} has its own"
    if "sample_solver" in request.values and not facts.solvers:
        yield f"`sample_solver` is not used: the model {facts.name} has its own"
