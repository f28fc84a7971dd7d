"""VHS_LoadVideo and VHS_VideoCombine, as in VideoHelperSuite; but a name cannot lead out of its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wan2gp.comfy_sidecar.builtin.combine import Combine, audible
from wan2gp.comfy_sidecar.builtin.folders import Folders
from wan2gp.comfy_sidecar.builtin.media import Audio, Frames, png_texts
from wan2gp.comfy_sidecar.builtin.nodes_image import file_digest
from wan2gp.comfy_sidecar.builtin.registry import RUN, Json, NodeType, Run
from wan2gp.comfy_sidecar.builtin.vhs_inputs import combine_inputs, load_formats, load_inputs
from wan2gp.comfy_sidecar.builtin.video_read import Selection, load, probe_upright
from wan2gp.comfy_sidecar.builtin.video_write import write_png

VIDEO_SUFFIXES = (".webm", ".mp4", ".mkv", ".gif", ".mov")
BADGE = "\U0001f3a5\U0001f165\U0001f157\U0001f162"
MODULE = "custom_nodes.ComfyUI-VideoHelperSuite"


def vhs_nodes(folders: Folders) -> list[NodeType]:
    return [
        NodeType("VHS_LoadVideo", LoadVideo(folders), f"Load Video (Upload) {BADGE}", MODULE),
        NodeType("VHS_VideoCombine", VideoCombine(), f"Video Combine {BADGE}", MODULE),
    ]


class LoadVideo:
    RETURN_TYPES = ("IMAGE", "INT", "AUDIO", "VHS_VIDEOINFO")
    RETURN_NAMES = ("IMAGE", "frame_count", "audio", "video_info")
    FUNCTION = "load_video"
    CATEGORY = f"Video Helper Suite {BADGE}"
    DESCRIPTION = "Loads a video from the input folder"

    def __init__(self, folders: Folders) -> None:
        self._folders = folders

    def INPUT_TYPES(self) -> Json:
        return load_inputs(self._folders.listed_inputs(VIDEO_SUFFIXES), RUN)

    def VALIDATE_INPUTS(self, video: str) -> bool | str:
        return self._folders.resolve(video) is not None or f"Invalid video file: {video}"

    def IS_CHANGED(self, video: str) -> str:
        return file_digest(self._folders.resolve(video))

    def load_video(
        self,
        video: str,
        force_rate: float,
        custom_width: int,
        custom_height: int,
        frame_load_cap: int,
        skip_first_frames: int,
        select_every_nth: int,
        run: Run,
        format: str = "None",
        unique_id: str = "",
        **unused: Any,
    ) -> tuple[Frames, int, Audio, Json]:
        path = self._folders.resolve(video)
        if path is None:
            raise FileNotFoundError(f"cannot load video: {video} is gone")
        source = probe_upright(path)
        rules = load_formats()[format]
        size = target_size((source.width, source.height), (custom_width, custom_height), rules.get("dim", [1])[0])
        changed = size if size != (source.width, source.height) else None
        wanted = Selection(force_rate, skip_first_frames, select_every_nth, frame_load_cap, changed)
        frames = _whole_groups(load(path, source, wanted, run.progress), rules.get("frames"))
        if frames.count == 0:
            raise RuntimeError("No frames generated")
        step = float(1 / wanted.rate(source))
        loaded_s = frames.count * step * select_every_nth
        info = {
            "source_fps": float(source.fps),
            "source_frame_count": source.frames,
            "source_duration": source.duration_s,
            "source_width": source.width,
            "source_height": source.height,
            "loaded_fps": 1 / (step * select_every_nth),
            "loaded_frame_count": frames.count,
            "loaded_duration": loaded_s,
            "loaded_width": frames.width,
            "loaded_height": frames.height,
        }
        return frames, frames.count, Audio(path, skip_first_frames * step, loaded_s), info


def target_size(size: tuple[int, int], custom: tuple[int, int], multiple: int) -> tuple[int, int]:
    """A side of 0 follows the other; both are rounded to the multiple a model's format asks for."""
    width, height = (float(side) for side in size)
    if custom[0] and custom[1]:
        width, height = custom
    elif custom[0]:
        width, height = custom[0], height * custom[0] / width
    elif custom[1]:
        width, height = width * custom[1] / height, custom[1]
    return int(width / multiple + 0.5) * multiple, int(height / multiple + 0.5) * multiple


def _whole_groups(frames: Frames, rule: list[int] | None) -> Frames:
    """Some models take n*k+r frames only; the rest is left off the end."""
    if rule is None:
        return frames
    group, remainder = rule
    return frames.first(max(0, (frames.count - remainder) // group * group + remainder))


class VideoCombine:
    RETURN_TYPES = ("VHS_FILENAMES",)
    RETURN_NAMES = ("Filenames",)
    FUNCTION = "combine_video"
    CATEGORY = f"Video Helper Suite {BADGE}"
    OUTPUT_NODE = True
    DESCRIPTION = "Combine an image sequence into a video"
    ACCEPT_ANY_INPUT = True
    """The widgets of the chosen format come as inputs that are not declared."""

    def INPUT_TYPES(self) -> Json:
        return combine_inputs(RUN)

    def combine_video(
        self,
        images: Frames,
        frame_rate: float,
        loop_count: int,
        run: Run,
        filename_prefix: str = "AnimateDiff",
        format: str = "image/gif",
        pingpong: bool = False,
        save_output: bool = True,
        prompt: Any = None,
        extra_pnginfo: Any = None,
        audio: Audio | None = None,
        unique_id: str = "",
        **widgets: Any,
    ) -> Json:
        place = run.folders.place(filename_prefix, "output" if save_output else "temp", 0, 0)
        settings = ((extra_pnginfo or {}).get("workflow") or {}).get("extra") or {}
        combine = Combine(
            images.back_and_forth() if pingpong else images,
            frame_rate,
            loop_count,
            place,
            place.next_counter(r"\D*\..+"),
            png_texts(prompt, extra_pnginfo),
            bool(settings.get("VHS_KeepIntermediate", True)),
            run,
        )
        first_frame = combine.path(".png")
        files: list[Path] = []
        if settings.get("VHS_MetadataImage", True):
            write_png(first_frame, next(iter(images.read())), combine.texts)
            files.append(first_frame)
        files += combine.write(format, audible(audio), widgets)
        shown = files[-1].name
        if images.count == 1 and "%03d" in shown:
            shown, format = shown.replace("%03d", "001"), "image/png"
        entry = {
            **place.entry(shown),
            "format": format,
            "frame_rate": frame_rate,
            "workflow": first_frame.name,
            "fullpath": str(files[-1]),
        }
        return {"ui": {"gifs": [entry]}, "result": ((save_output, [str(path) for path in files]),)}
