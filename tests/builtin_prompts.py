"""Graphs for the built-in engine, films whose frames tell their number, and what a film decodes to."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.conftest_comfy import BuiltinServer

FRAMES = 60
FPS = 30
SIZE = (320, 240)
TONE_HZ = 44_100
DIGIT, STEP = 8, 32
"""A frame shows its number in two digits: the left half and the right half, in steps of grey."""


def make_video(path: Path, *, sound: bool) -> None:
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height = SIZE
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=TONE_HZ, layout="mono") if sound else None
        for index in range(FRAMES):
            picture = np.full((SIZE[1], SIZE[0], 3), STEP * (index % DIGIT), np.uint8)
            picture[:, : SIZE[0] // 2] = STEP * (index // DIGIT)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None:
            samples = 0.4 * np.sin(np.arange(FRAMES * TONE_HZ // FPS) / 20)
            frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = TONE_HZ, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))


class Probe:
    """What a file decodes to: two pixels of each frame, and the sound's length."""

    def __init__(self, path: Path) -> None:
        import av

        self.greys: list[tuple[int, int]] = []
        self.sound_s = 0.0
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            self.codec, self.rate = stream.codec_context.name, stream.average_rate
            self.size = (stream.width, stream.height)
            self.metadata = dict(container.metadata)
            self.audio = [audio.codec_context.name for audio in container.streams.audio]
            for frame in container.decode(video=0):
                picture = frame.to_ndarray(format="rgb24")
                line = picture[picture.shape[0] // 2, :, 0]
                self.greys.append((int(line[len(line) // 4]), int(line[3 * len(line) // 4])))
        if self.audio:
            with av.open(str(path)) as container:
                self.sound_s = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))

    def indices(self) -> list[int]:
        """Which frames of the input these are."""
        return [DIGIT * round(left / STEP) + round(right / STEP) for left, right in self.greys]


def saved_image(color: int = 0, prefix: str = "x", **size: int) -> dict[str, Any]:
    values = {"width": 64, "height": 64, "batch_size": 1, "color": color, **size}
    return {
        "1": {"class_type": "EmptyImage", "inputs": values},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def vhs(load: dict[str, Any] | None = None, **combine: Any) -> dict[str, Any]:
    """The row of the specification with what it lacks; `combine` None takes an input away."""
    loading = {"video": "input.mp4", "force_rate": 0, "custom_width": 0, "custom_height": 0}
    loading |= {"frame_load_cap": 0, "skip_first_frames": 0, "select_every_nth": 1, **(load or {})}
    values = {"images": ["1", 0], "frame_rate": 30, "format": "video/h264-mp4", "save_output": True}
    values |= {"pingpong": False, "loop_count": 0, "filename_prefix": "job/out", **combine}
    return {
        "1": {"inputs": loading, "class_type": "VHS_LoadVideo"},
        "2": {"inputs": values, "class_type": "VHS_VideoCombine"},
    }


def fault(class_type: str, **values: Any) -> dict[str, Any]:
    return {"1": {"class_type": class_type, "inputs": {"nonce": time.monotonic_ns() % (1 << 53), **values}}}


def made(server: BuiltinServer, prompt: dict[str, Any], **body: Any) -> Path:
    """Runs a VHS prompt; the file it names."""
    entry = server.run(prompt, **body)
    assert entry["status"]["status_str"] == "success", entry["status"]
    return Path(entry["outputs"]["2"]["gifs"][0]["fullpath"])
