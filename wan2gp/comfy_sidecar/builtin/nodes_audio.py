"""The audio nodes of ComfyUI's core. The key of their result is `audio`."""

from __future__ import annotations

import random
import string
from typing import Any

from wan2gp.comfy_sidecar.builtin.folders import Folders
from wan2gp.comfy_sidecar.builtin.media import Audio, png_texts
from wan2gp.comfy_sidecar.builtin.nodes_image import file_digest
from wan2gp.comfy_sidecar.builtin.registry import RUN, Json, NodeType, Run
from wan2gp.comfy_sidecar.builtin.sound_write import SoundFormat, write_sound
from wan2gp.comfy_sidecar.builtin.video_read import has_sound

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".mp4", ".webm", ".mkv", ".mov", ".avi")
OPUS_RATES_HZ = (8000, 12000, 16000, 24000, 48000)
MODULE = "comfy_extras.nodes_audio"


def audio_nodes(folders: Folders) -> list[NodeType]:
    listed: list[tuple[str, str, Any]] = [
        ("LoadAudio", "Load Audio", LoadAudio(folders)),
        ("SaveAudio", "Save Audio (FLAC)", SaveAudio()),
        ("SaveAudioMP3", "Save Audio (MP3)", SaveAudioMP3()),
        ("SaveAudioOpus", "Save Audio (Opus)", SaveAudioOpus()),
        ("PreviewAudio", "Preview Audio", PreviewAudio()),
    ]
    return [NodeType(name, node, title, MODULE) for name, title, node in listed]


class LoadAudio:
    RETURN_TYPES = ("AUDIO",)
    FUNCTION = "load"
    CATEGORY = "audio"

    def __init__(self, folders: Folders) -> None:
        self._folders = folders

    def INPUT_TYPES(self) -> Json:
        return {"required": {"audio": (self._folders.listed_inputs(AUDIO_SUFFIXES), {"audio_upload": True})}}

    def VALIDATE_INPUTS(self, audio: str) -> bool | str:
        return self._folders.resolve(audio) is not None or f"Invalid audio file: {audio}"

    def IS_CHANGED(self, audio: str) -> str:
        return file_digest(self._folders.resolve(audio))

    def load(self, audio: str) -> tuple[Audio]:
        path = self._folders.resolve(audio)
        if path is None:
            raise FileNotFoundError(f"cannot load audio: {audio} is gone")
        loaded = Audio(path)
        if not has_sound(loaded):
            raise ValueError("No audio stream found in the file.")
        return (loaded,)


class SaveAudio:
    RETURN_TYPES: tuple[str, ...] = ()
    FUNCTION = "save"
    CATEGORY = "audio"
    OUTPUT_NODE = True
    kind = "output"
    qualities: tuple[tuple[str, ...], str] | None = None
    """The choices and the default one."""

    def INPUT_TYPES(self) -> Json:
        required: Json = {"audio": ("AUDIO",), "filename_prefix": ("STRING", {"default": "audio/ComfyUI"})}
        if self.qualities is not None:
            choices, default = self.qualities
            required["quality"] = (list(choices), {"default": default})
        return {"required": required, "hidden": _hidden()}

    def save(
        self,
        audio: Audio,
        run: Run,
        filename_prefix: str = "ComfyUI",
        quality: str = "",
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> Json:
        place = run.folders.place(self.prefixed(filename_prefix), self.kind, 0, 0)
        form = self.form(quality)
        name = f"{place.name.replace('%batch_num%', '0')}_{place.next_counter('_.*'):05}_.{form.suffix}"
        texts = png_texts(prompt, extra_pnginfo) if run.metadata else {}
        write_sound(place.folder / name, audio, form, texts, run.check)
        return {"ui": {"audio": [place.entry(name)]}}

    def form(self, quality: str) -> SoundFormat:
        return SoundFormat("flac", "flac")

    def prefixed(self, prefix: str) -> str:
        return prefix


class SaveAudioMP3(SaveAudio):
    qualities = (("V0", "128k", "320k"), "V0")

    def form(self, quality: str) -> SoundFormat:
        return SoundFormat("mp3", "libmp3lame", bit_rate=_bits(quality) or 256_000)


class SaveAudioOpus(SaveAudio):
    qualities = (("64k", "96k", "128k", "192k", "320k"), "128k")

    def form(self, quality: str) -> SoundFormat:
        return SoundFormat("opus", "libopus", bit_rate=_bits(quality), rates=OPUS_RATES_HZ)


class PreviewAudio(SaveAudio):
    kind = "temp"

    def INPUT_TYPES(self) -> Json:
        return {"required": {"audio": ("AUDIO",)}, "hidden": _hidden()}

    def prefixed(self, prefix: str) -> str:
        return f"{prefix}_temp_{''.join(random.choices(string.ascii_lowercase, k=5))}"


def _hidden() -> Json:
    return {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "run": RUN}


def _bits(quality: str) -> int:
    """Bits a second; 0 for a quality that is no rate."""
    return int(quality[:-1]) * 1000 if quality[:-1].isdigit() else 0
