"""What the engine says of one of its models, as far as a task's settings depend on it.

``get_model_def`` gives a large dict whose keys come and go; whatever is missing has the engine's own default.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from wan2gp.handlers.comfy_fields import close
from wan2gp.handlers.wan_frames import FrameRule
from wan2gp.wan_types import MODEL_NAMES


@dataclass(frozen=True)
class ModelFacts:
    """One model."""

    name: str
    architecture: str = ""
    images: bool = False
    """It makes images and nothing else."""
    images_too: bool = False
    """It makes videos, and single images when asked to."""
    sound_only: bool = False
    frames: FrameRule = FrameRule()
    locked_frames: int = 0
    """It makes videos of this length alone; 0: of any."""
    fps: float = 16.0
    block: int = 16
    """Width and height are multiples of this, pixels."""
    batch: int = 16
    """The most images at a time."""
    starts: str = ""
    """The letters of `image_prompt_type` that it takes."""
    references: tuple[str, ...] = ()
    """What `video_prompt_type` may say of references; empty: it takes none."""
    guides: tuple[str, ...] = ()
    """What it may say of guides."""
    guided: bool = False
    """It takes guides in the letters of processing (pose, depth …)."""
    inpaints: str = ""
    """What it may say of an image whose masked part is made anew; empty: the model has no such mode."""
    sounds: tuple[str, ...] = ()
    """What `audio_prompt_type` may say; empty: it takes no sound."""
    solvers: tuple[str, ...] = ()
    phases: int = 0
    """The most phases of guidance; 0: it has no guidance at all."""
    locked_steps: bool = False
    usual_phases: int = 1
    """How many it has when nobody says."""
    negative_prompt: bool = True
    loras: tuple[str, ...] = ()
    """Those that are part of it, as it names them."""


def facts_of(name: str, model_def: Mapping[str, Any]) -> ModelFacts:
    """From the engine's ``get_model_def(name)``."""

    def values(key: str) -> tuple[str, ...]:
        section = model_def.get(key) or {}
        choices = [*(section.get("choices") or ()), *(section.get("selection") or ())]
        return tuple(dict.fromkeys(str(one[1] if isinstance(one, (list, tuple)) else one or "") for one in choices))

    return ModelFacts(
        name=name,
        architecture=str(model_def.get("architecture", "")),
        images=bool(model_def.get("image_outputs")),
        images_too=bool(model_def.get("v2i_switch_supported")),
        sound_only=bool(model_def.get("audio_only")),
        frames=FrameRule(
            int(model_def.get("frames_minimum", 5)),
            int(model_def.get("latent_size", model_def.get("frames_steps", 4))),
            int(model_def.get("frames_offset", 1)),
        ),
        locked_frames=int(model_def.get("video_length_locked") or 0),
        fps=float(model_def.get("fps", 16)),
        block=int(model_def.get("vae_block_size", 16)),
        batch=max(1, int(model_def.get("image_batch_size_max", 16))),
        starts=str(model_def.get("image_prompt_types_allowed") or ""),
        references=values("image_ref_choices"),
        guides=values("guide_custom_choices"),
        guided=bool(model_def.get("guide_preprocessing")),
        inpaints=str(model_def.get("inpaint_video_prompt_type", "VA")) if model_def.get("inpaint_support") else "",
        sounds=values("audio_prompt_type_sources") or _voices(model_def),
        solvers=tuple(str(one[1]) for one in model_def.get("sample_solvers") or ()),
        phases=int(model_def.get("guidance_max_phases", 0)),
        locked_steps=bool(model_def.get("lock_inference_steps")),
        usual_phases=_usual_phases(model_def),
        negative_prompt=not model_def.get("no_negative_prompt", False),
        loras=tuple(str(one) for one in _list(model_def.get("loras"))),
    )


def _usual_phases(model_def: Mapping[str, Any]) -> int:
    if model_def.get("lock_guidance_phases"):
        return int(model_def.get("guidance_max_phases", 0)) or 1
    settings = model_def.get("settings") or {}
    return int(settings.get("guidance_phases", 2 if "URLs2" in model_def else 1))


def _voices(model_def: Mapping[str, Any]) -> tuple[str, ...]:
    """Where a model takes sound and lists no choices, the engine's own form has these."""
    if not model_def.get("any_audio_prompt"):
        return ()
    one = () if model_def.get("multi_speakers_only") else ("A",)
    return one if model_def.get("one_speaker_only") else (*one, "XA", "CAB", "PAB")


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []


def known_model(asked: str, known: Collection[str]) -> tuple[str, str | None]:
    """The engine's name of a model, and None; or the name asked for, and a sentence on what there is instead."""
    if asked in known:
        return asked, None
    other = MODEL_NAMES.get(asked)
    if other in known:
        return str(other), None
    return asked, f"the engine lists no model {asked[:100]!r}{close(asked, sorted(known))}"
