"""The same graphs on the built-in engine and, where COMFY_PATH names one, on a real ComfyUI: the same results."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.builtin_prompts import TONE_HZ
from tests.comfy_jobs import Bench, gone
from tests.conftest_comfy import FAULTS, free_port
from tests.output_graphs import CASES, SOUND_S, Case, File
from wan2gp.handlers.media_probe import sha256_of
from wan2gp.protocol import Artifact

PATH = os.environ.get("COMFY_PATH", "")
NODES = Path(__file__).parent / "real_nodes"
REAL = pytest.param(
    "real",
    marks=[
        pytest.mark.real_comfy,
        pytest.mark.timeout(300),
        pytest.mark.skipif(not (Path(PATH) / "main.py").is_file(), reason="COMFY_PATH names no ComfyUI"),
    ],
)
NEAR_S = 0.1
"""Lossy codecs add a little silence."""


def settings_of(engine: str, folder: Path) -> dict[str, Any]:
    if engine == "builtin":
        return {"path": "builtin", "port": free_port(), "args": f"--extra-nodes {FAULTS}"}
    extra = folder / "extra.yaml"
    extra.write_text(json.dumps({"tests": {"custom_nodes": str(NODES)}}))  # YAML takes JSON
    args = f"{os.environ.get('COMFY_ARGS', '--cpu')} --extra-model-paths-config {extra}"
    return {"path": PATH, "port": free_port(), "python": os.environ.get("COMFY_PYTHON", ""), "args": args}


@pytest.fixture(scope="module", params=["builtin", REAL])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp(request.param)
    one = Bench(folder / "bench", settings_of(request.param, folder))
    inputs = one.engine / "input"
    inputs.mkdir(parents=True)
    for path in videos.iterdir():
        shutil.copy(path, inputs)
    make_tone(inputs / "tone.wav")
    yield one
    one.handler.close()
    assert all(gone(int(fields["pid"])) for name, fields in one.facts if name == "comfy.started")


def make_tone(path: Path) -> None:
    import wave

    import numpy as np

    rate = 44100
    seconds = np.arange(int(SOUND_S * rate)) / rate
    samples = (np.sin(2 * np.pi * TONE_HZ * seconds) * 12000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def as_table(artifact: Artifact, expected: File) -> File:
    """What was made, in the table's terms; what the table does not say is left out."""
    size = None if artifact.width is None or artifact.height is None else (artifact.width, artifact.height)
    near = expected.duration_s is not None and abs((artifact.duration_s or 0) - expected.duration_s) < NEAR_S
    return File(
        artifact.node_id or "",
        artifact.kind,
        Path(artifact.name).suffix,
        size,
        None if expected.frames is None else artifact.frames,
        expected.duration_s if near else (None if expected.duration_s is None else artifact.duration_s),
        artifact.primary,
    )


def name_of(engine: Bench) -> str:
    return "builtin" if engine.settings["path"] == "builtin" else "real"


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_output_arrives(engine: Bench, name: str) -> None:
    case = CASES[name]
    if name_of(engine) in case.skips:
        lacks_a_node(engine, case)
        return
    outcome = engine.succeeds({"workflow": case.graph})
    assert len(outcome.artifacts) == len(case.files), [artifact.name for artifact in outcome.artifacts]
    found = tuple(as_table(*pair) for pair in zip(outcome.artifacts, case.files, strict=True))
    assert found == case.files
    assert outcome.data.get("text", {}) == case.texts
    for artifact in outcome.artifacts:
        path = engine.work_dir / artifact.path
        assert (artifact.bytes, artifact.sha256) == (path.stat().st_size, sha256_of(path)) and artifact.bytes > 0
    assert len({artifact.path for artifact in outcome.artifacts}) == len(outcome.artifacts)
    assert engine.left_behind() == []


def lacks_a_node(engine: Bench, case: Case) -> None:
    """The skip is only right as long as this engine does not know a class of the graph."""
    engine.succeeds({"workflow": CASES["SaveImage"].graph})
    port = next(detail["port"] for state, detail in reversed(engine.states) if state == "ready")
    known = requests.get(f"http://127.0.0.1:{port}/object_info", timeout=30).json()
    assert any(node["class_type"] not in known for node in case.graph.values())


@pytest.mark.long
@pytest.mark.parametrize("name", ["SaveImage", "PreviewImage alone", "vhs with sound", "vhs not to be saved", "audio"])
def test_the_same_row_again_delivers_again_although_the_old_files_are_gone(engine: Bench, name: str) -> None:
    """ComfyUI answers from its cache with the name of a file that the first run has taken away."""
    case = CASES[name]
    for _ in range(3):
        outcome = engine.succeeds({"workflow": case.graph})
        assert [artifact.kind for artifact in outcome.artifacts] == [file.kind for file in case.files]
        for artifact in outcome.artifacts:
            (engine.work_dir / artifact.path).unlink()
    assert engine.left_behind() == []


def test_previews_do_not_pile_up(engine: Bench) -> None:
    """Those that are the result and those that are none because something was saved: their names are random.

    VideoHelperSuite keeps one file of its own there, always the same.
    """
    for name in (
        "PreviewImage alone",
        "SaveImage and PreviewImage",
        "audio",
        "PreviewAudio alone",
        "vhs not to be saved",
    ):
        engine.succeeds({"workflow": CASES[name].graph})
        left = [path.name for path in (engine.engine / "temp").rglob("*") if path.is_file()]
        assert left in ([], ["metadata.txt"]), name


def test_the_nodes_of_these_graphs_are_described_alike(engine: Bench) -> None:
    """As a real server described them; the files to choose from are those that lie there."""
    engine.succeeds({"workflow": CASES["SaveImage"].graph})
    port = next(detail["port"] for state, detail in reversed(engine.states) if state == "ready")
    for name, expected in json.loads(
        (Path(__file__).parent / "captures" / "71b_output_nodes.json").read_text()
    ).items():
        described = requests.get(f"http://127.0.0.1:{port}/object_info/{name}", timeout=30).json()[name]
        if name == "LoadAudio":
            described["input"]["required"]["audio"][0] = []
        assert described == expected
