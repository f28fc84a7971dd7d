"""The inputs VideoHelperSuite declares for its two nodes: names, types, limits and defaults."""

from __future__ import annotations

from wan2gp.comfy_sidecar.builtin.registry import Json

LARGEST = 9007199254740991
"""The largest number JavaScript counts with."""


def load_formats() -> dict[str, Json]:
    """What a model asks of a video: rate, [multiple of the sides, …], and frames as [group, remainder]."""
    return {
        "None": {},
        "AnimateDiff": {"target_rate": 8, "dim": [8, 0, 512, 512]},
        "Mochi": {"target_rate": 24, "dim": [16, 0, 848, 480], "frames": [6, 1]},
        "LTXV": {"target_rate": 24, "dim": [32, 0, 768, 512], "frames": [8, 1]},
        "Hunyuan": {"target_rate": 24, "dim": [16, 0, 848, 480], "frames": [4, 1]},
        "Cosmos": {"target_rate": 24, "dim": [16, 0, 1280, 704], "frames": [8, 1]},
        "Wan": {"target_rate": 16, "dim": [8, 0, 832, 480], "frames": [4, 1]},
    }


def load_inputs(videos: list[str], run: str) -> Json:
    count = {"min": 0, "max": LARGEST, "step": 1}
    side = {"default": 0, "min": 0, "max": 8192, "disable": 0}
    formats = load_formats()
    return {
        "required": {
            "video": (videos,),
            "force_rate": ("FLOAT", {"default": 0, "min": 0, "max": 60, "step": 1, "disable": 0}),
            "custom_width": ("INT", side),
            "custom_height": ("INT", side),
            "frame_load_cap": ("INT", {"default": 0, **count, "disable": 0}),
            "skip_first_frames": ("INT", {"default": 0, **count}),
            "select_every_nth": ("INT", {"default": 1, **count, "min": 1}),
        },
        "optional": {
            "meta_batch": ("VHS_BatchManager",),
            "vae": ("VAE",),
            "format": (list(formats), {"default": "AnimateDiff", "formats": formats}),
        },
        "hidden": {"force_size": "STRING", "unique_id": "UNIQUE_ID", "run": run},
    }


def combine_inputs(run: str) -> Json:
    return {
        "required": {
            "images": ("IMAGE",),
            "frame_rate": ("FLOAT", {"default": 8, "min": 1, "step": 1}),
            "loop_count": ("INT", {"default": 0, "min": 0, "max": 100, "step": 1}),
            "filename_prefix": ("STRING", {"default": "AnimateDiff"}),
            "format": (_combine_formats(), {"formats": _format_widgets()}),
            "pingpong": ("BOOLEAN", {"default": False}),
            "save_output": ("BOOLEAN", {"default": True}),
        },
        "optional": {"audio": ("AUDIO",), "meta_batch": ("VHS_BatchManager",), "vae": ("VAE",)},
        "hidden": {
            "prompt": "PROMPT",
            "extra_pnginfo": "EXTRA_PNGINFO",
            "unique_id": "UNIQUE_ID",
            "run": run,
        },
    }


def _combine_formats() -> list[str]:
    return [
        "image/gif",
        "image/webp",
        "video/ProRes",
        "video/webm",
        "video/ffv1-mkv",
        "video/nvenc_av1-mp4",
        "video/h265-mp4",
        "video/8bit-png",
        "video/h264-mp4",
        "video/nvenc_hevc-mp4",
        "video/nvenc_h264-mp4",
        "video/ffmpeg-gif",
        "video/av1-webm",
        "video/16bit-png",
    ]


def _format_widgets() -> Json:
    """The widgets that appear with each format; left out of a prompt, their defaults are taken."""
    return {
        "video/ProRes": [["profile", ["lt", "standard", "hq", "4444", "4444xq"], {"default": "hq"}]],
        "video/webm": [
            ["pix_fmt", ["yuv420p", "yuva420p"]],
            ["crf", "INT", {"default": 20, "min": 0, "max": 100, "step": 1}],
            ["save_metadata", "BOOLEAN", {"default": True}],
            ["trim_to_audio", "BOOLEAN", {"default": False}],
        ],
        "video/ffv1-mkv": [
            ["level", ["0", "1", "3"], {"default": "3"}],
            ["coder", ["0", "1", "2"], {"default": "1"}],
            ["context", ["0", "1"], {"default": "1"}],
            ["gop_size", "INT", {"default": 1, "min": 1, "max": 300, "step": 1}],
            ["slices", ["4", "6", "9", "12", "16", "20", "24", "30"], {"default": "16"}],
            ["slicecrc", ["0", "1"], {"default": "1"}],
            [
                "pix_fmt",
                [
                    "rgba64le",
                    "bgra",
                    "yuv420p",
                    "yuv422p",
                    "yuv444p",
                    "yuva420p",
                    "yuva422p",
                    "yuva444p",
                    "yuv420p10le",
                    "yuv422p10le",
                    "yuv444p10le",
                    "yuv420p12le",
                    "yuv422p12le",
                    "yuv444p12le",
                    "yuv420p14le",
                    "yuv422p14le",
                    "yuv444p14le",
                    "yuv420p16le",
                    "yuv422p16le",
                    "yuv444p16le",
                    "gray",
                    "gray10le",
                    "gray12le",
                    "gray16le",
                ],
                {"default": "rgba64le"},
            ],
            ["save_metadata", "BOOLEAN", {"default": True}],
            ["trim_to_audio", "BOOLEAN", {"default": False}],
        ],
        "video/nvenc_av1-mp4": [
            ["pix_fmt", ["yuv420p", "p010le"]],
            ["bitrate", "INT", {"default": 10, "min": 1, "max": 999, "step": 1}],
            ["megabit", "BOOLEAN", {"default": True}],
            ["save_metadata", "BOOLEAN", {"default": True}],
        ],
        "video/h265-mp4": [
            ["pix_fmt", ["yuv420p10le", "yuv420p"]],
            ["crf", "INT", {"default": 22, "min": 0, "max": 100, "step": 1}],
            ["save_metadata", "BOOLEAN", {"default": True}],
        ],
        "video/h264-mp4": [
            ["pix_fmt", ["yuv420p", "yuv420p10le"]],
            ["crf", "INT", {"default": 19, "min": 0, "max": 100, "step": 1}],
            ["save_metadata", "BOOLEAN", {"default": True}],
            ["trim_to_audio", "BOOLEAN", {"default": False}],
        ],
        "video/nvenc_hevc-mp4": [
            ["pix_fmt", ["yuv420p", "p010le"]],
            ["bitrate", "INT", {"default": 10, "min": 1, "max": 999, "step": 1}],
            ["megabit", "BOOLEAN", {"default": True}],
            ["save_metadata", "BOOLEAN", {"default": True}],
        ],
        "video/nvenc_h264-mp4": [
            ["pix_fmt", ["yuv420p", "p010le"]],
            ["bitrate", "INT", {"default": 10, "min": 1, "max": 999, "step": 1}],
            ["megabit", "BOOLEAN", {"default": True}],
            ["save_metadata", "BOOLEAN", {"default": True}],
        ],
        "video/ffmpeg-gif": [
            [
                "dither",
                [
                    "bayer",
                    "heckbert",
                    "floyd_steinberg",
                    "sierra2",
                    "sierra2_4a",
                    "sierra3",
                    "burkes",
                    "atkinson",
                    "none",
                ],
                {"default": "sierra2_4a"},
                "[0:v] split [a][b]; [a] "
                "palettegen=reserve_transparent=on:transparency_color=ffffff [p]; [b][p] "
                "paletteuse=dither=$val",
            ]
        ],
        "video/av1-webm": [
            ["pix_fmt", ["yuv420p10le", "yuv420p"]],
            ["crf", "INT", {"default": 23, "min": 0, "max": 100, "step": 1}],
            ["input_color_depth", ["8bit", "16bit"]],
            ["save_metadata", "BOOLEAN", {"default": True}],
        ],
        "image/webp": [["lossless", "BOOLEAN", {"default": True}]],
    }
