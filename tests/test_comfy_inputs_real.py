"""Every known loader of a real ComfyUI and of VideoHelperSuite finds the file that a row gives it."""

from __future__ import annotations

import base64
import os
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comfy_jobs import gone, make_video
from tests.conftest_comfy import free_port
from tests.test_comfy_inputs import Shop, color_of, draw, save
from wan2gp.comfy_sources import LOADERS

PATH = os.environ.get("COMFY_PATH", "")
Json = dict[str, Any]
pytestmark = [
    pytest.mark.real_comfy,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (Path(PATH) / "main.py").is_file(), reason="COMFY_PATH names no ComfyUI"),
]
VIDEO = {
    "force_rate": 0,
    "custom_width": 0,
    "custom_height": 0,
    "frame_load_cap": 2,
    "skip_first_frames": 0,
    "select_every_nth": 1,
}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    path = tmp_path_factory.mktemp("real")
    settings = {
        "path": PATH,
        "port": free_port(),
        "python": os.environ.get("COMFY_PYTHON", ""),
        "args": os.environ.get("COMFY_ARGS", "--cpu"),
        "allow_paths": [str(path)],
    }
    one = Shop(path / "bench", settings)
    yield one
    one.handler.close()
    assert all(gone(int(fields["pid"])) for name, fields in one.facts if name == "comfy.started")


def tone(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(range(256)) * 63)
    return path


def loader(class_type: str, **more: Any) -> Json:
    return {"class_type": class_type, "inputs": {LOADERS[class_type].field: "", **more}}


def sound(node_id: str, slot: int = 0) -> Json:
    return {"class_type": "SaveAudio", "inputs": {"audio": [node_id, slot], "filename_prefix": "same"}}


def test_every_loader_gets_its_own_file(real: Shop, tmp_path: Path) -> None:
    """All files are called the same, whatever they are."""
    graph = {
        "1": loader("LoadImage"),
        "2": loader("LoadImageMask", channel="red"),
        "3": loader("LoadAudio"),
        "4": loader("VHS_LoadVideo", **VIDEO),
        "5": loader("VHS_LoadVideoPath", **VIDEO),
        "6": loader("LoadVideo"),
        "7": loader("VHS_LoadImagePath", custom_width=0, custom_height=0),
        "8": loader("VHS_LoadAudio", seek_seconds=0),
        "9": loader("VHS_LoadAudioUpload", start_time=0, duration=0),
        "12": {"class_type": "MaskToImage", "inputs": {"mask": ["2", 0]}},
        "101": save("1", "same"),
        "102": save("12", "same"),
        "103": sound("3"),
        "104": save("4", "same"),
        "105": save("5", "same"),
        "106": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["6", 0], "filename_prefix": "same", "format": "auto", "codec": "auto"},
        },
        "107": save("7", "same"),
        "108": sound("8"),
        "109": sound("9"),
    }
    clip = make_video(tmp_path / "same.mp4", frames=4)
    red, white, lime = (draw(tmp_path / f"{color}.png", color, (16, 16)) for color in ("red", "white", "lime"))
    local = tone(real.path.parent / "same.wav")
    entries = {"1": "same.png", "2": "same.png", "4": "same.mp4", "5": "same.mp4", "6": "same.mp4", "7": "same.png"}
    inputs: list[Json] = [{"url": f"https://x/{name}", "node_id": node_id} for node_id, name in entries.items()]
    files = {"1": red, "2": white, "4": clip, "5": clip, "6": clip, "7": lime}
    real.files = {f"inputs[{index}]": files[node_id] for index, node_id in enumerate(entries)}
    inputs += [
        {"path": str(local), "node_id": "3"},
        {"base64": base64.b64encode(local.read_bytes()).decode(), "node_id": "8"},
        {"path": str(local), "node_id": "9"},
    ]
    made = real.succeeds({"workflow": graph, "inputs": inputs}).artifacts
    kinds = {each.node_id: each.kind for each in made}
    images, sounds = ("101", "102", "104", "105", "107"), ("103", "108", "109")
    assert kinds == {**dict.fromkeys(images, "image"), **dict.fromkeys(sounds, "audio"), "106": "video"}
    colors = {each.node_id: color_of(real, each.path) for each in made if each.node_id in ("101", "102", "107")}
    exact = {"101": (255, 0, 0), "102": (255, 255, 255), "107": (0, 255, 0)}
    near = [abs(given - made) for node_id in exact for given, made in zip(exact[node_id], colors[node_id], strict=True)]
    assert max(near) <= 2, colors  # VideoHelperSuite reads pictures through ffmpeg, which rounds
    assert [each.frames for each in made if each.kind == "video"] == [4]
    assert real.left_behind() == []
