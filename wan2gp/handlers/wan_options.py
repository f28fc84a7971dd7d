"""What the ``wan`` handler gets to know of the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan2gp.handlers.media_limits import MediaLimits
from wan2gp.model_places import FOLDERS, LORA
from wan2gp.wan_sidecar.settings import own_places
from wan2gp.wan_sidecar.work import WanLimits


@dataclass(frozen=True)
class WanSettings:
    """The ``wan_…`` settings of the worker; times in seconds."""

    path: str = ""
    """Wan2GP's checkout."""
    python: str = ""
    profile: str = "4"
    attention: str = "sdpa"
    vram_coefficient: float = 0.8
    start_timeout_s: float = 180.0
    stuck_s: float = 1800.0
    cancel_grace_s: float = 60.0
    idle_unload_s: float = 600.0
    """0: models stay in memory."""
    models_dir: str = ""
    """Where this worker keeps LoRAs and weights."""
    download: bool = True
    """Whether weights that are missing may be fetched."""
    upsampling_device: str = "cuda"
    """Where frames between frames are made: on the card that the generation had."""
    allow_paths: Sequence[str] = ()
    """Directories whose files a row may name."""
    input_max_bytes: int = 4 * 1024**3
    max_pixels: int = MediaLimits.max_pixels
    max_frames: int = MediaLimits.max_frames
    max_duration_s: float = MediaLimits.max_duration_s
    storage: bool = True
    """Whether the worker has a project whose Storage inputs may come from."""
    posters: bool = False
    """Whether videos get a poster frame."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> WanSettings:
        """From a handler's settings; keys that are not fields belong to others."""
        known = {name: settings[name] for name in cls.__dataclass_fields__ if settings.get(name) is not None}
        return cls(**known)

    def lora_folders(self) -> list[Path]:
        """Where LoRAs lie that a row names by their file: the engine's own, and ours."""
        kept = [Path(self.models_dir) / FOLDERS[LORA]] if self.models_dir else []
        return [*own_places(Path(self.path).expanduser()).loras, *(folder for folder in kept if folder.is_dir())]

    def media_limits(self) -> MediaLimits:
        return MediaLimits(self.max_pixels, self.max_frames, self.max_duration_s)

    def engine_limits(self) -> WanLimits:
        return WanLimits(start_s=self.start_timeout_s, cancel_grace_s=self.cancel_grace_s, stuck_s=self.stuck_s)

    def engine_arguments(self) -> tuple[str, ...]:
        """The engine's own flags: the same for as long as its process lives."""
        return (
            *("--attention", self.attention, "--profile", self.profile),
            *("--vram-safety-coefficient", f"{self.vram_coefficient:g}"),
        )
