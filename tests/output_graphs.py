"""Graphs with every kind of output, most of them as they were sent to a real ComfyUI, and what becomes of each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.builtin_prompts import FRAMES, SIZE

Json = dict[str, Any]
RECORDED: dict[str, Json] = {
    row["name"]: row for row in json.loads((Path(__file__).parent / "captures" / "outputs.json").read_text())
}
SQUARE = (64, 64)
SOUND_S = 2.0


@dataclass(frozen=True)
class File:
    """``frames`` None: not compared, since Pillow merges pictures that are the same."""

    node_id: str
    kind: str
    suffix: str
    size: tuple[int, int] | None = None
    frames: int | None = None
    duration_s: float | None = None
    primary: bool = False


@dataclass(frozen=True)
class Case:
    graph: Json
    files: tuple[File, ...]
    texts: Json
    skips: tuple[str, ...] = ()
    """Engines without a node that it takes; a test asserts that they lack it."""


def recorded(name: str, *files: File, skips: tuple[str, ...] = (), **texts: Any) -> Case:
    return Case(RECORDED[name]["graph"], files, {key[1:]: text for key, text in texts.items()}, skips)


def film(suffix: str, primary: bool = True) -> File:
    return File("2", "video", suffix, SIZE, FRAMES, primary=primary)


def batch(**savers: Any) -> Json:
    """Two pictures that differ, and nodes that take both; their other inputs by class."""
    graph: Json = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
        "2": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 65280}},
        "3": {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["2", 0]}},
    }
    for number, (class_type, values) in enumerate(savers.items(), start=4):
        given = {"images": ["3", 0], "filename_prefix": f"many/{class_type}", **values}
        graph[str(number)] = {"class_type": class_type, "inputs": given}
    return graph


WEBP = {"fps": 4.0, "lossless": True, "quality": 80, "method": "default"}
STILL_AND_MOVING = batch(SaveImage={}, SaveAnimatedWEBP=WEBP, SaveAnimatedPNG={"fps": 4.0, "compress_level": 4})

CASES: dict[str, Case] = {
    "vhs with sound": recorded("02.1", film(".mp4")),
    "vhs without sound": recorded("02b.1", film(".mp4")),
    "vhs of a film that has none": recorded("04.1", film(".mp4")),
    "vhs not to be saved": recorded("05.1", film(".mp4")),
    "vhs gif": recorded("08.1", File("2", "image", ".gif", SIZE, FRAMES, primary=True)),
    "vhs webp": recorded("08.2", File("2", "image", ".webp", SIZE, FRAMES, primary=True)),
    "vhs webm": recorded("08.3", film(".webm")),
    "vhs h265": recorded("08.4", film(".mp4")),
    "vhs ProRes": recorded("08.5", film(".mov")),
    "vhs ffv1": recorded("08.6", film(".mkv")),
    "vhs pictures": recorded(
        "08.7", *(File("2", "image", ".png", SIZE, 1, primary=number == 0) for number in range(FRAMES))
    ),
    "SaveImage": recorded("10.1", File("2", "image", ".png", SQUARE, 1, primary=True)),
    "PreviewImage alone": recorded(
        "11.1", *(File("2", "image", ".png", SQUARE, 1, primary=number == 0) for number in range(3))
    ),
    "SaveImage and PreviewImage": recorded("12.1", File("2", "image", ".png", SQUARE, 1, primary=True)),
    "CreateVideo": recorded("13.1", File("3", "video", ".mp4", SQUARE, 8, 1.0, True)),
    "LoadVideo to SaveVideo": recorded("13.2", File("3", "video", ".mp4", SIZE, FRAMES, primary=True)),
    "animated": recorded(
        "14.1",
        File("2", "image", ".webp", SQUARE),
        File("3", "image", ".png", SQUARE),
        File("4", "video", ".webm", SQUARE, 8, primary=True),
    ),
    "still and moving": Case(
        STILL_AND_MOVING,
        (
            File("4", "image", ".png", SQUARE, 1),
            File("4", "image", ".png", SQUARE, 1),
            File("5", "image", ".webp", SQUARE, 2, 0.5, True),
            File("6", "image", ".png", SQUARE, 2, 0.5),
        ),
        {},
    ),
    "audio": recorded(
        "15.1",
        File("2", "audio", ".flac", duration_s=SOUND_S, primary=True),
        File("3", "audio", ".mp3", duration_s=SOUND_S),
        File("4", "audio", ".opus", duration_s=SOUND_S),
    ),
    "PreviewAudio alone": Case(
        {node_id: RECORDED["15.1"]["graph"][node_id] for node_id in ("1", "5")},
        (File("5", "audio", ".flac", duration_s=SOUND_S, primary=True),),
        {},
    ),
    "text": recorded("16.1", File("2", "text", ".txt", primary=True), _2=["hello ünïcode"]),
    "latent": recorded("16.2", File("2", "file", ".latent", primary=True)),
    "3d": Case(
        {"1": {"class_type": "TestSave3D", "inputs": {"filename_prefix": "mesh/x", "nonce": 1}}},
        (File("1", "file", ".glb", primary=True),),
        {},
    ),
    "subgraph": recorded("26.1", File("1.0.0.2", "image", ".png", SQUARE, 1, primary=True), skips=("builtin",)),
}
