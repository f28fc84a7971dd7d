"""Which generation tasks there are, as data: the model of each, what it starts from, and what it needs.

A leaf without an engine: the supervisor learns here which types the ``wan`` handler takes and which model a row will
load; the handler builds the engine's settings from the same table. Names, models and numbers are those of the worker
that this one replaces, except where the engine has changed since: there the comment says what and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VIDEO, IMAGE = "video", "image"


@dataclass(frozen=True)
class OwnLora:
    """A LoRA that belongs to a type. ``key``: the parameter that sets its strength; without ``always`` it is used only
    when that parameter is above zero."""

    url: str
    strength: float
    key: str
    always: bool = True


@dataclass(frozen=True)
class Size:
    """How large a type's pictures are, in pixels. ``longest``: the longest side, larger ones are scaled down; 0: any.
    ``area``: without a `resolution`, as many pixels as this in the shape of the input image. ``shapes``: names for
    resolutions."""

    default: str = ""
    longest: int = 0
    area: int = 0
    shapes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskType:
    """One type of task. Everything here is plain JSON in the end: it is shown in the documentation."""

    name: str
    model: str
    """The engine's name of the model that is used when the row names none."""
    makes: str
    """``video`` or ``image``."""
    summary: str
    needs: tuple[tuple[str, ...], ...] = ()
    """Of each group at least one parameter must be given."""
    prompt_optional: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the type is, with any model; the row may still set it."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What suits the type's own model. A row that names another model gets that model's own defaults instead."""
    size: Size = Size()
    image: str = ""
    """The engine's setting that the parameter `image` is for; empty: the type has no such parameter."""
    guide: str = ""
    """The letters of `video_prompt_type` for a guide when the row gives none; empty: as the model has it."""
    painted: bool = False
    """The image goes to the engine with the mask painted over it in pure green, which its LoRA was trained on."""
    loras: tuple[OwnLora, ...] = ()


def _hub(repository: str, name: str) -> str:
    return f"https://huggingface.co/{repository}/resolve/main/{name}"


EDIT_LIGHTNING = _hub("lightx2v/Qwen-Image-Lightning", "Qwen-Image-Edit-Lightning-8steps-V1.0-bf16.safetensors")
LIGHTNING = _hub("lightx2v/Qwen-Image-Lightning", "Qwen-Image-Lightning-4steps-V2.0-bf16.safetensors")
LIGHTNING_2512 = _hub("lightx2v/Qwen-Image-2512-Lightning", "Qwen-Image-2512-Lightning-4steps-V1.0-bf16.safetensors")
INPAINT = _hub("ostris/qwen_image_edit_inpainting", "qwen_image_edit_inpainting.safetensors")
ANNOTATE = _hub("peteromallet/random_junk", "in_scene_pure_squares_flipped_450_lr_000006700.safetensors")
STYLE = _hub("peteromallet/ad_motion_loras", "style_transfer_qwen_edit_2_000011250.safetensors")
SUBJECT = _hub("peteromallet/mystery_models", "in_subject_qwen_edit_2_000006750.safetensors")
SCENE = _hub("peteromallet/random_junk", "in_scene_different_object_000010500.safetensors")

LIGHTNING_STRENGTH = "lightning_lora_strength"
_LED = (("video_guide", "image_refs", "video_source"),)
_START = (("image_start", "video_source"),)
_EDIT = {"num_inference_steps": 12, "guidance_scale": 1}
# The engine takes the image to edit as the first reference (K: it is the subject); it once took it as `image_guide`.
_EDITED = {"video_prompt_type": "KI"}
_QWEN_SHAPES = {
    "1:1": "1328x1328",
    "16:9": "1664x928",
    "9:16": "928x1664",
    "4:3": "1472x1104",
    "3:4": "1104x1472",
    "3:2": "1584x1056",
    "2:3": "1056x1584",
}
_EDIT_MODEL = "qwen_image_edit_20B"


def _edit_lightning(strength: float) -> OwnLora:
    return OwnLora(EDIT_LIGHTNING, strength, LIGHTNING_STRENGTH)


def _film(
    name: str,
    model: str,
    summary: str,
    needs: tuple[tuple[str, ...], ...] = (),
    *,
    size: Size = Size("1280x720"),
    guide: str = "",
) -> TaskType:
    """A type that makes videos. Its length and size are those of old rows that say nothing; how it is sampled is left
    to the model, which is tuned for it."""
    return TaskType(name, model, VIDEO, summary, needs, defaults={"video_length": 49}, size=size, guide=guide)


_ROWS = (
    _film("generate_video", "t2v", "a video from text"),
    _film("t2v", "t2v", "a video from text, Wan 2.1"),
    _film("t2v_22", "t2v_2_2", "a video from text, Wan 2.2"),
    # The engine lists no `i2v_14B` any more: its 14B model for 480p is `i2v`.
    _film("i2v", "i2v", "a video that begins with an image, Wan 2.1", _START),
    _film("i2v_22", "i2v_2_2", "a video that begins with an image, Wan 2.2", _START),
    _film("vace", "vace_14B_cocktail_2_2", "a video led by a video, VACE", _LED, guide="PV"),
    _film("vace_21", "vace_14B", "a video led by a video, VACE on Wan 2.1", _LED, guide="PV"),
    _film("vace_22", "vace_14B_cocktail_2_2", "a video led by a video, VACE on Wan 2.2", _LED, guide="PV"),
    _film("hunyuan", "hunyuan", "a video from text, Hunyuan Video"),
    # Its blocks are of 32 pixels: 720 lines cannot be made.
    _film("ltxv", "ltxv_13B", "a video from text or an image, LTX Video", size=Size("1280x704")),
    TaskType("flux", "flux", IMAGE, "images from text, Flux", size=Size("1280x720")),
    # The engine makes single images with this video model since it has an image mode; five frames are no longer needed.
    TaskType("wan_2_2_t2i", "t2v_2_2", IMAGE, "images from text, Wan 2.2", size=Size("1280x720")),
    TaskType(
        "qwen_image",
        _EDIT_MODEL,
        IMAGE,
        "images from text, Qwen",
        settings={"video_prompt_type": ""},
        defaults={"num_inference_steps": 4, "guidance_scale": 3.5},
        size=Size("1024x1024", longest=1200),
        loras=(OwnLora(LIGHTNING, 1.0, LIGHTNING_STRENGTH),),
    ),
    TaskType(
        "qwen_image_2512",
        "qwen_image_2512_20B",
        IMAGE,
        "images from text, Qwen of December 2025",
        defaults={"num_inference_steps": 4, "guidance_scale": 4.0},
        size=Size("1024x1024", longest=2512),
        loras=(OwnLora(LIGHTNING_2512, 1.0, LIGHTNING_STRENGTH),),
    ),
    TaskType(
        "qwen_image_hires",
        _EDIT_MODEL,
        IMAGE,
        "large images from text, Qwen",
        settings={"video_prompt_type": "", "spatial_upsampling": "vae2"},
        defaults={"num_inference_steps": 10, "guidance_scale": 1},
        size=Size("1328x1328", shapes=_QWEN_SHAPES),
        loras=(_edit_lightning(0.45),),
    ),
    TaskType(
        "qwen_image_edit",
        _EDIT_MODEL,
        IMAGE,
        "an image changed as the prompt says, Qwen",
        (("image", "image_refs"),),
        prompt_optional=True,
        settings=_EDITED,
        defaults=_EDIT,
        size=Size(longest=1200, area=1024 * 1024),
        image="image_refs",
        loras=(_edit_lightning(0.85),),
    ),
    TaskType(
        "qwen_image_style",
        _EDIT_MODEL,
        IMAGE,
        "images in the style, or with the subject, of an image, Qwen",
        prompt_optional=True,
        settings=_EDITED,
        defaults=_EDIT,
        size=Size("1024x1024", longest=1200),
        image="image_refs",
        loras=(
            _edit_lightning(0.85),
            OwnLora(STYLE, 0.0, "style_reference_strength", always=False),
            OwnLora(SUBJECT, 0.0, "subject_strength", always=False),
            OwnLora(SCENE, 0.0, "scene_reference_strength", always=False),
        ),
    ),
    TaskType(
        "image_inpaint",
        _EDIT_MODEL,
        IMAGE,
        "an image whose masked part is made anew, Qwen",
        (("image",), ("mask",)),
        prompt_optional=True,
        settings=_EDITED,
        defaults=_EDIT,
        size=Size(longest=1200, area=1024 * 1024),
        image="image_refs",
        painted=True,
        loras=(_edit_lightning(0.75), OwnLora(INPAINT, 1.0, "edit_lora_strength")),
    ),
    TaskType(
        "annotated_image_edit",
        _EDIT_MODEL,
        IMAGE,
        "an image changed where a mask marks it, as the prompt says, Qwen",
        (("image",), ("mask",)),
        settings=_EDITED,
        defaults=_EDIT,
        size=Size(longest=1200, area=1024 * 1024),
        image="image_refs",
        painted=True,
        loras=(_edit_lightning(0.75), OwnLora(ANNOTATE, 1.0, "edit_lora_strength")),
    ),
    TaskType(
        "z_image_turbo",
        "z_image",
        IMAGE,
        "images from text, Z-Image Turbo",
        defaults={"num_inference_steps": 8, "guidance_scale": 0},
        size=Size("1024x1024"),
    ),
    # The engine's own Z-Image models start from no image: this needs a checkout that lists the model below.
    TaskType(
        "z_image_turbo_i2i",
        "z_image_img2img",
        IMAGE,
        "an image made anew from an image, Z-Image Turbo",
        (("image", "image_start"),),
        prompt_optional=True,
        settings={"image_prompt_type": "S", "denoising_strength": 0.7},
        defaults={"num_inference_steps": 12, "guidance_scale": 0},
        size=Size(area=1024 * 1024),
        image="image_start",
    ),
)

TYPES: Mapping[str, TaskType] = {row.name: row for row in _ROWS}
"""Every type by its name. A name that is not here is no type: nothing stands in for it."""
OWN_URLS = frozenset(lora.url for row in _ROWS for lora in row.loras)
"""What a run may fetch although no row names it."""
MODEL_NAMES: Mapping[str, str] = {
    "i2v_14B": "i2v",
    "wan_2_2_vace_lightning_baseline_2_2_2": "vace_14B_lightning_3p_2_2",
    "z-image": "z_image",
}
"""Names that rows use for models that the engine lists under another; only where it does not list the first."""


def model_of(task_type: str, params: Any) -> str:
    """The name of the model that a row asks for; empty for what is no row of these types. Never raises."""
    row = TYPES.get(task_type)
    if row is None:
        return ""
    asked = params.get("model") if isinstance(params, dict) else None
    return asked if isinstance(asked, str) and asked else row.model
