"""VHS_LoadVideo and VHS_VideoCombine, as in VideoHelperSuite; but a name cannot lead out of its folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan2gp.comfy_sidecar.builtin.folders import Folders, SavePlace
from wan2gp.comfy_sidecar.builtin.media import Audio, Frames, of_list, png_texts
from wan2gp.comfy_sidecar.builtin.nodes_image import file_digest
from wan2gp.comfy_sidecar.builtin.registry import RUN, Json, NodeType, Run
from wan2gp.comfy_sidecar.builtin.vhs_inputs import combine_inputs, load_formats, load_inputs
from wan2gp.comfy_sidecar.builtin.video_read import Selection, has_sound, load, probe
from wan2gp.comfy_sidecar.builtin.video_write import (
    SoundTrack,
    add_sound,
    encode,
    recipes,
    write_animation,
    write_png,
)

if TYPE_CHECKING:
    from wan2gp.comfy_sidecar.builtin.media import Pixels

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
        source = probe(path)
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
    count = (frames.count - remainder) // group * group + remainder
    return of_list(list(_first(frames, count)), frames.width, frames.height)


def _first(frames: Frames, count: int) -> Iterator[Pixels]:
    return (picture for picture, _ in zip(frames.read(), range(max(count, 0)), strict=False))


@dataclass(frozen=True)
class _Job:
    """One run of VHS_VideoCombine."""

    frames: Frames
    rate: float
    loops: int
    place: SavePlace
    counter: int
    texts: Json
    keep_intermediate: bool
    run: Run
    """Asked for its interrupt flag after each frame."""

    def path(self, ending: str) -> Path:
        return self.place.folder / f"{self.place.name}_{self.counter:05}{ending}"

    def animation(self, suffix: str, lossless: bool) -> list[Path]:
        path = self.path(suffix)
        write_animation(path, self._reported(self.frames.read()), round(1000 / self.rate), self.loops, lossless)
        return [path]

    def _reported(self, pictures: Iterator[Pixels]) -> Iterator[Pixels]:
        for index, picture in enumerate(pictures, start=1):
            yield picture
            self.run.progress(index, self.frames.count)

    def video(self, name: str, audio: Audio | None, widgets: Json) -> list[Path]:
        """`loops` more passes follow the first. With sound two files are written, the silent one first."""
        recipe = recipes()[name]
        rate = Fraction(self.rate).limit_denominator(1000)
        silent = self.path(f".{recipe.suffix}")
        repeats = chain.from_iterable(self.frames.read() for _ in range(self.loops))
        texts = self.texts if widgets.get("save_metadata", True) else {}
        count = encode(
            silent,
            chain(self._reported(self.frames.read()), repeats),
            rate,
            recipe,
            pixel_format=widgets.get("pix_fmt", recipe.pixel_formats[0]),
            crf=widgets.get("crf", recipe.crf),
            texts=texts,
            written=self.run.check,
        )
        if audio is None or not has_sound(audio):
            return [silent]
        with_sound = self.path(f"-audio.{recipe.suffix}")
        trim = bool(widgets.get("trim_to_audio", False))
        add_sound(silent, with_sound, SoundTrack(audio, recipe.audio_codec, float(count / rate), trim), texts)
        if not self.keep_intermediate:
            silent.unlink()
            return [with_sound]
        return [silent, with_sound]


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
        if format not in (*recipes(), "image/gif", "image/webp"):
            raise ValueError(f"cannot write {format}: this engine has no encoder for it")
        place = run.folders.place(filename_prefix, "output" if save_output else "temp", images.width, images.height)
        settings = ((extra_pnginfo or {}).get("workflow") or {}).get("extra") or {}
        job = _Job(
            _back_and_forth(images) if pingpong else images,
            frame_rate,
            loop_count,
            place,
            place.next_counter(r"\D*\..+"),
            png_texts(prompt, extra_pnginfo),
            bool(settings.get("VHS_KeepIntermediate", True)),
            run,
        )
        first_frame = job.path(".png")
        files: list[Path] = []
        if settings.get("VHS_MetadataImage", True):
            write_png(first_frame, next(iter(images.read())), job.texts)
            files.append(first_frame)
        if format.startswith("image/"):
            files += job.animation(f".{format.removeprefix('image/')}", bool(widgets.get("lossless", True)))
        else:
            files += job.video(format, audio, widgets)
        entry = {
            **place.entry(files[-1].name),
            "format": format,
            "frame_rate": frame_rate,
            "workflow": first_frame.name,
            "fullpath": str(files[-1]),
        }
        return {"ui": {"gifs": [entry]}, "result": ((save_output, [str(path) for path in files]),)}


def _back_and_forth(frames: Frames) -> Frames:
    """There and back without repeating the ends. Going back needs all frames in memory."""
    forth = list(frames.read())
    return of_list(forth + forth[-2:0:-1], frames.width, frames.height)
