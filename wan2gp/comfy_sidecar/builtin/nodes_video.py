"""The video nodes of ComfyUI's core. The key of their result is `images`, with `animated`."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from wan2gp.comfy_sidecar.builtin.folders import Folders
from wan2gp.comfy_sidecar.builtin.formats import CORE
from wan2gp.comfy_sidecar.builtin.media import Audio, Clip, Frames, png_texts
from wan2gp.comfy_sidecar.builtin.nodes_image import PREFIX_TIP, file_digest
from wan2gp.comfy_sidecar.builtin.registry import RUN, Json, NodeType, Run
from wan2gp.comfy_sidecar.builtin.sound_write import Fit, SoundTrack, add_sound
from wan2gp.comfy_sidecar.builtin.video_read import Selection, has_sound, pictures, probe
from wan2gp.comfy_sidecar.builtin.video_write import encode, open_output

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v")


def video_nodes(folders: Folders) -> list[NodeType]:
    listed: list[tuple[str, str, Any]] = [
        ("LoadVideo", "Load Video", LoadVideo(folders)),
        ("CreateVideo", "Create Video", CreateVideo()),
        ("SaveVideo", "Save Video", SaveVideo()),
        ("GetVideoComponents", "Get Video Components", GetVideoComponents()),
    ]
    return [NodeType(name, node, title, "comfy_extras.nodes_video", has_schema=True) for name, title, node in listed]


class LoadVideo:
    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "execute"
    CATEGORY = "image/video"

    def __init__(self, folders: Folders) -> None:
        self._folders = folders

    def INPUT_TYPES(self) -> Json:
        choices = {"options": self._folders.listed_inputs(VIDEO_SUFFIXES), "multiselect": False, "video_upload": True}
        return {"required": {"file": ("COMBO", choices)}}

    def VALIDATE_INPUTS(self, file: str) -> bool | str:
        return self._folders.resolve(file) is not None or f"Invalid video file: {file}"

    def IS_CHANGED(self, file: str) -> str:
        return file_digest(self._folders.resolve(file))

    def execute(self, file: str) -> tuple[Clip]:
        path = self._folders.resolve(file)
        if path is None:
            raise FileNotFoundError(f"cannot load video: {file} is gone")
        return (clip_of(path),)


def clip_of(path: Path) -> Clip:
    """Nothing is decoded until someone reads the frames."""
    source = probe(path)
    frames = Frames(source.frames, source.width, source.height, lambda: pictures(path, source, Selection()))
    audio = Audio(path, 0.0, source.duration_s)
    return Clip(frames, source.fps, audio if has_sound(audio) else None, path)


class CreateVideo:
    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "execute"
    CATEGORY = "image/video"
    DESCRIPTION = "Create a video from images."

    def INPUT_TYPES(self) -> Json:
        images = {"tooltip": "The images to create a video from."}
        fps = {"default": 30.0, "min": 1.0, "max": 120.0, "step": 1.0}
        audio = {"tooltip": "The audio to add to the video."}
        return {
            "required": {"images": ("IMAGE", images), "fps": ("FLOAT", fps)},
            "optional": {"audio": ("AUDIO", audio)},
        }

    def execute(self, images: Frames, fps: float, audio: Audio | None = None) -> tuple[Clip]:
        return (Clip(images, Fraction(round(fps * 1000), 1000), audio),)


class GetVideoComponents:
    RETURN_TYPES = ("IMAGE", "AUDIO", "FLOAT")
    RETURN_NAMES = ("images", "audio", "fps")
    FUNCTION = "execute"
    CATEGORY = "image/video"
    DESCRIPTION = "Extracts all components from a video: frames, audio, and framerate."

    def INPUT_TYPES(self) -> Json:
        return {"required": {"video": ("VIDEO", {"tooltip": "The video to extract components from."})}}

    def execute(self, video: Clip) -> tuple[Frames, Audio | None, float]:
        return video.frames, video.audio, float(video.fps)


class SaveVideo:
    RETURN_TYPES: tuple[str, ...] = ()
    FUNCTION = "execute"
    CATEGORY = "image/video"
    OUTPUT_NODE = True
    DESCRIPTION = "Saves the input images to your ComfyUI output directory."

    def INPUT_TYPES(self) -> Json:
        prefix = {"default": "video/ComfyUI", "multiline": False, "tooltip": PREFIX_TIP}
        format_tip, codec_tip = "The format to save the video as.", "The codec to use for the video."
        return {
            "required": {
                "video": ("VIDEO", {"tooltip": "The video to save."}),
                "filename_prefix": ("STRING", prefix),
                "format": ("COMBO", _choice(["auto", "mp4"], format_tip)),
                "codec": ("COMBO", _choice(["auto", "h264"], codec_tip)),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "run": RUN},
        }

    def execute(
        self,
        video: Clip,
        filename_prefix: str,
        format: str,
        codec: str,
        run: Run,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> Json:
        place = run.folders.place(filename_prefix, "output", video.frames.width, video.frames.height)
        name = f"{place.name}_{place.next_counter('_.*'):05}_.mp4"
        texts = png_texts(prompt, extra_pnginfo) if run.metadata else {}
        if video.source is not None and _is_h264_mp4(video.source):
            _copy(video.source, place.folder / name, texts)
        else:
            _encode(video, place.folder / name, texts, run)
        return {"ui": {"images": [place.entry(name)], "animated": (True,)}}


def _choice(options: list[str], tip: str) -> Json:
    return {"default": options[0], "tooltip": tip, "multiselect": False, "options": options}


def _is_h264_mp4(path: Path) -> bool:
    import av

    with av.open(str(path)) as container:
        return "mp4" in container.format.name and container.streams.video[0].codec_context.name == "h264"


def _copy(source: Path, path: Path, texts: Json) -> None:
    """The packets as they are: nothing is lost by saving what was loaded."""
    import av

    with av.open(str(source)) as given, open_output(path, texts) as container:
        kept = [*given.streams.video[:1], *given.streams.audio[:1]]
        copies = {stream.index: container.add_stream_from_template(stream) for stream in kept}
        for packet in given.demux(kept):
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                container.mux(packet)


def _encode(video: Clip, path: Path, texts: Json, run: Run) -> None:
    if video.audio is None:
        encode(path, video.frames.read(), video.fps, CORE, texts=texts, written=run.check)
        return
    silent = path.with_suffix(".silent.mp4")
    try:
        count = encode(silent, video.frames.read(), video.fps, CORE, texts=texts, written=run.check)
        track = SoundTrack(video.audio, "aac", float(count / video.fps), Fit.AS_IS, "stereo")
        add_sound(silent, path, track, texts, run.check)
    finally:
        silent.unlink(missing_ok=True)
