"""One row for each type of generation task, as a person would write it: :mod:`wan2gp.docs_tasks` shows them as SQL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

FILES = "https://example.com/"
"""Where the examples' files would be."""
_PICTURE, _LAST, _MASK = f"{FILES}picture.png", f"{FILES}last.png", f"{FILES}mask.png"
_FILM, _FILM_MASK, _LORA = f"{FILES}film.mp4", f"{FILES}film-mask.mp4", f"{FILES}style.safetensors"
_HARBOUR = "a lighthouse above a harbour at dusk, waves against the rocks"
_TWO_PHASES = {
    "num_phases": 2,
    "steps_per_phase": [3, 3],
    "flow_shift": 5.0,
    "sample_solver": "euler",
    "model_switch_phase": 1,
    "phases": [
        {"phase": 1, "guidance_scale": 2.0, "loras": [{"url": _LORA, "multiplier": "0.6"}]},
        {"phase": 2, "guidance_scale": 1.0, "loras": []},
    ],
}

EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "generate_video": {"prompt": _HARBOUR, "resolution": "832x480", "video_length": "5s"},
    "t2v": {
        "prompt": _HARBOUR,
        "negative_prompt": "blurred, text",
        "resolution": "832x480",
        "video_length": 81,
        "num_inference_steps": 30,
        "seed": 7,
    },
    "t2v_22": {
        "prompt": _HARBOUR,
        "resolution": "1280x720",
        "video_length": 81,
        "loras": [{"url": _LORA, "multiplier": 0.8}],
    },
    "i2v": {"prompt": "the boat leaves", "image_start": _PICTURE, "resolution": "832x480", "video_length": 81},
    "i2v_22": {
        "prompt": "the boat leaves",
        "image_start": _PICTURE,
        "image_end": _LAST,
        "fit": "pad",
        "resolution": "832x480",
        "video_length": 81,
        "phase_config": _TWO_PHASES,
    },
    "vace": {"prompt": "a dancer of glass", "video_guide": _FILM, "resolution": "832x480", "video_length": 81},
    "vace_21": {
        "prompt": "a dancer of glass",
        "image_refs": [_PICTURE],
        "resolution": "832x480",
        "video_length": 81,
    },
    "vace_22": {
        "prompt": "a dancer of glass",
        "video_guide": _FILM,
        "video_mask": _FILM_MASK,
        "resolution": "832x480",
        "video_length": 81,
    },
    "hunyuan": {"prompt": _HARBOUR, "resolution": "832x480", "video_length": 97, "repeat_generation": 2},
    "ltxv": {"prompt": _HARBOUR, "resolution": "832x480", "video_length": 97},
    "flux": {"prompt": _HARBOUR, "resolution": "1024x768", "batch_size": 2},
    "wan_2_2_t2i": {"prompt": _HARBOUR, "resolution": "1280x720"},
    "qwen_image": {"prompt": "a poster that says WELCOME", "resolution": "1024x1024"},
    "qwen_image_2512": {"prompt": "a poster that says WELCOME", "resolution": "1024x1024", "seed": 7},
    "qwen_image_hires": {"prompt": "a poster that says WELCOME", "resolution": "16:9"},
    "qwen_image_edit": {"prompt": "make it night", "image": _PICTURE},
    "qwen_image_style": {
        "prompt": _HARBOUR,
        "image": _PICTURE,
        "style_reference_strength": 1.0,
        "resolution": "1024x1024",
    },
    "image_inpaint": {"prompt": "an empty beach", "image": _PICTURE, "mask": _MASK},
    "annotated_image_edit": {"prompt": "a red boat where it is marked", "image": _PICTURE, "mask": _MASK},
    "z_image_turbo": {"prompt": _HARBOUR, "resolution": "1024x1024"},
    "z_image_turbo_i2i": {"prompt": "as an oil painting", "image": _PICTURE, "denoising_strength": 0.6},
    "rife_interpolate_images": {"images": [_PICTURE, _LAST], "frames": 33, "fps": 16, "resolution": "832x480"},
}
"""By type."""


def statement(task_type: str) -> str:
    """The row as SQL."""
    params = json.dumps(EXAMPLES[task_type], indent=2).replace("'", "''")
    indented = params.replace("\n", "\n  ")
    return (
        f"INSERT INTO tasks (task_type, params, status)\nVALUES (\n  '{task_type}',\n  '{indented}',\n  'queued'\n);\n"
    )
