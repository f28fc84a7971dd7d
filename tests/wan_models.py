"""What the engine says of the models that the types use, shortened to the keys that are read: facts, checked by hand
against its checkout of August 2026 (`get_model_def`)."""

from __future__ import annotations

from typing import Any

from wan2gp.handlers.wan_models import ModelFacts, facts_of

WAN: dict[str, Any] = {
    "fps": 16,
    "frames_minimum": 5,
    "frames_steps": 4,
    "vae_block_size": 16,
    "guidance_max_phases": 3,
    "sample_solvers": [
        ("unipc", "unipc"),
        ("euler", "euler"),
        ("dpm++", "dpm++"),
        ("flowmatch causvid", "causvid"),
        ("lcm + ltx", "lcm"),
    ],
}
TO_VIDEO = {"choices": [("text", ""), ("video", "GUV"), ("masked video", "GVA")]}
T2V = {
    **WAN,
    "image_prompt_types_allowed": "TVL",
    "guide_custom_choices": TO_VIDEO,
    "v2i_switch_supported": True,
}
I2V = {**WAN, "image_prompt_types_allowed": "SEVL"}
VACE = {
    **WAN,
    "frames_minimum": 17,
    "image_prompt_types_allowed": "TVL",
    "v2i_switch_supported": True,
    "guide_preprocessing": {"selection": ["", "UV", "PV", "DV", "SV", "LV", "CV", "MV", "V"]},
    "image_ref_choices": {"choices": [("none", ""), ("people", "I"), ("landscape", "KI"), ("frames", "FI")]},
}
ACCELERATORS = "https://huggingface.co/DeepBeepMeep/Wan2.1/resolve/main/loras_accelerators/"
PICTURES = {"image_outputs": True}
INPAINTING = {"inpaint_support": True}
QWEN = {**PICTURES, "guidance_max_phases": 1, "sample_solvers": [("Default", "default"), ("Lightning", "lightning")]}
REFERENCES = {"choices": [("None", ""), ("subject", "KI"), ("people", "I")]}

LTXV = {
    "fps": 30,
    "frames_minimum": 17,
    "frames_steps": 8,
    "vae_block_size": 32,
    "image_prompt_types_allowed": "TSEV",
    "guide_preprocessing": {"selection": ["", "PV", "DV", "EV", "V"]},
}

MODEL_DEFS: dict[str, dict[str, Any]] = {
    "t2v": {"architecture": "t2v", **T2V},
    "t2v_2_2": {"architecture": "t2v_2_2", "URLs2": ["low"], **T2V},
    "i2v": {"architecture": "i2v", **I2V},
    "i2v_2_2": {"architecture": "i2v_2_2", "URLs2": ["low"], "guide_custom_choices": TO_VIDEO, **I2V},
    "vace_14B": {"architecture": "vace_14B", **VACE},
    "vace_14B_cocktail_2_2": {
        "architecture": "vace_14B_2_2",
        "URLs2": "t2v_2_2",
        "loras": [
            ACCELERATORS + "Wan21_CausVid_14B_T2V_lora_rank32_v2.safetensors",
            ACCELERATORS + "DetailEnhancerV1.safetensors",
            ACCELERATORS + "Wan21_AccVid_T2V_14B_lora_rank32_fp16.safetensors",
            ACCELERATORS + "Wan21_T2V_14B_MoviiGen_lora_rank32_fp16.safetensors",
        ],
        **VACE,
    },
    "vace_14B_lightning_3p_2_2": {
        "architecture": "vace_14B_2_2",
        "URLs2": "t2v_2_2",
        "lock_guidance_phases": True,
        "settings": {"guidance_phases": 3},
        **VACE,
    },
    "hunyuan": {"architecture": "hunyuan", "fps": 24, "frames_minimum": 5, "frames_steps": 4},
    "ltxv_13B": {"architecture": "ltxv_13B", **LTXV},
    "ltxv_distilled": {
        "architecture": "ltxv_13B",
        "lock_inference_steps": True,
        "no_negative_prompt": True,
        **LTXV,
    },
    "flux": {"architecture": "flux", **PICTURES, **INPAINTING},
    "qwen_image_edit_20B": {
        "architecture": "qwen_image_edit_20B",
        "image_ref_choices": REFERENCES,
        **QWEN,
        **INPAINTING,
    },
    "qwen_image_2512_20B": {"architecture": "qwen_image_20B", **QWEN, **INPAINTING},
    "z_image": {"architecture": "z_image", "guidance_max_phases": 0, **PICTURES},
    "z_image_img2img": {
        "architecture": "z_image",
        "guidance_max_phases": 0,
        "image_prompt_types_allowed": "S",
        **PICTURES,
    },
    "multitalk": {
        "architecture": "multitalk",
        **WAN,
        "fps": 25,
        "image_prompt_types_allowed": "SVL",
        "any_audio_prompt": True,
    },
    "ace_step_v1": {"architecture": "ace_step_v1", "audio_only": True},
    "recam_1.3B": {
        "architecture": "recam_1.3B",
        **WAN,
        "video_length_locked": 81,
        "guide_preprocessing": {"selection": ["UV"]},
    },
}


def facts(name: str) -> ModelFacts:
    """Of one of them."""
    return facts_of(name, MODEL_DEFS[name])
