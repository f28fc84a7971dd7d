"""The parameters of ``rife_interpolate_images``, one row each, besides those that name files."""

from __future__ import annotations

from collections.abc import Mapping

from wan2gp.handlers.wan_parameters import FLAG, NUMBER, SIZE, TEXT, WHOLE, Parameter

FEWEST, MOST = 2, 10_000
"""Frames."""
IMAGES_FPS = 16.0
"""Of a clip from pictures, when the row says nothing."""
AUTO, RIFE, FFMPEG = "auto", "rife", "ffmpeg"
CROP, PAD, STRETCH = "crop", "pad", "stretch"

PARAMETERS: Mapping[str, Parameter] = {
    row.name: row
    for row in (
        Parameter(
            "frames",
            WHOLE,
            "How many frames the clip has, the first and the last picture among them.",
            "frames",
            FEWEST,
            MOST,
            aliases=("num_frames", "frame_count", "video_length"),
        ),
        Parameter(
            "multiplier",
            WHOLE,
            "Of a video, instead of `frames`: how many times as many frames a second.",
            "times",
            2,
            16,
        ),
        Parameter(
            "fps",
            NUMBER,
            "Frames a second. Without it a video keeps its length, and pictures get 16.",
            "frames/s",
            1,
            120,
            aliases=("frame_rate",),
        ),
        Parameter(
            "resolution",
            SIZE,
            "WIDTHxHEIGHT, both even. Without it: that of the first picture, or of the video.",
            "pixels",
            64,
            8192,
        ),
        Parameter(
            "fit", TEXT, "How pictures of another shape are made to fit; `crop` if empty.", choices=(CROP, PAD, STRETCH)
        ),
        Parameter(
            "method",
            TEXT,
            "`rife`, or `ffmpeg` for its motion interpolation; `auto`, as the worker is set up, if empty.",
            choices=(AUTO, RIFE, FFMPEG),
        ),
        Parameter(
            "lossless",
            FLAG,
            "Keep every colour of every pixel, in a file that few browsers show.",
        ),
    )
}
"""By name."""
LARGEST_PIXELS = 8192 * 4320
"""Of one frame: the encoder holds several dozen."""
CARRIED: Mapping[str, str] = {"output_path": "the worker decides where files go"}
"""Keys of old rows besides those that every row may carry: why they are not used."""
