"""Keys in the ``params`` of generation tasks that are no parameters: those that rows carry along, and those of old.

Whatever else a row has is refused, with the nearest parameter's name: its author believes that it has an effect.
"""

from __future__ import annotations

from collections.abc import Mapping

CARRIED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "based_on",
            "child_generation_id",
            "create_as_generation",
            "add_in_position",
            "generation_id",
            "orchestrator_details",
            "orchestrator_run_id",
            "orchestrator_task_id",
            "orchestrator_task_id_ref",
            "originalParams",
            "parent_generation_id",
            "project_id",
            "run_id",
            "shot_id",
            "task_id",
            "task_type",
            "thumbnail_url",
            "tool_type",
            "user_id",
        ),
        "",
    ),
    "priority": "the row's own column counts",
    "custom_output_dir": "the worker decides where files go",
    "output_dir": "the worker decides where files go",
    "output_format": "images are PNG and videos MP4",
    "enable_base64_output": "results are files",
    "enable_sync_mode": "results are files",
    "system_prompt": "the engine has its own",
    "hires_steps": "the engine enlarges in one pass",
    "hires_denoise": "the engine enlarges in one pass",
    "hires_upscale_method": "the engine enlarges in one pass",
    "lightning_lora_strength_phase_2": "the engine enlarges in one pass",
}
"""Keys that rows carry for their producers, or that cannot have an effect here: why, for a warning; empty: no word."""

GONE: Mapping[str, str] = {
    "use_uni3c": "the engine has no Uni3C: lead the video by `video_guide`",
    "vid2vid_init_video": "give it as `video_guide`, with `video_prompt_type` GUV",
    "vid2vid_init_strength": "give it as `denoising_strength`, with `video_guide` and `video_prompt_type` GUV",
    "latent_noise_mask_strength": "the engine has none: use `masking_strength` with a mask",
}
"""Keys without which the result would be another one than was asked for: they are refused, with what there is."""
GONE_PREFIX, GONE_SWITCH = "uni3c_", "use_uni3c"
"""Keys that mean something only with the switch, which is refused."""
