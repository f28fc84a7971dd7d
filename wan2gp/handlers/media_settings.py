"""What the ``media`` handler knows of the worker's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wan2gp.handlers.media_limits import MediaLimits

ASK = "ask"
"""RIFE; ffmpeg only for rows that ask for it."""


@dataclass(frozen=True)
class MediaSettings:
    """Times in seconds."""

    checkout: str = ""
    """Wan2GP's, whose RIFE it is; empty: none."""
    python: str = ""
    stores: Sequence[str] = ()
    """Directories of weights besides the checkout's own."""
    interpolation: str = ASK
    """``ask``, ``auto``, ``rife`` or ``ffmpeg``: what serves a row that leaves the choice."""
    download: bool = False
    """Whether missing weights of RIFE are fetched."""
    device: str = "cpu"
    """``cpu`` or ``cuda``, for RIFE."""
    start_timeout_s: float = 300.0
    idle_stop_s: float = 120.0
    """After so long without work RIFE's process ends; 0: never."""
    allow_paths: Sequence[str] = ()
    input_max_bytes: int = 4 * 1024**3
    max_pixels: int = MediaLimits.max_pixels
    max_frames: int = MediaLimits.max_frames
    max_duration_s: float = MediaLimits.max_duration_s
    storage: bool = True
    """Whether the worker has a project whose Storage inputs may come from."""
    posters: bool = False

    def media_limits(self) -> MediaLimits:
        return MediaLimits(self.max_pixels, self.max_frames, self.max_duration_s)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> MediaSettings:
        """From a handler's settings; keys that are not fields belong to others."""
        return cls(**{name: settings[name] for name in cls.__dataclass_fields__ if settings.get(name) is not None})
