"""The shared engine as a fresh one, with the films the recordings speak of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.builtin_prompts import fault, make_video

if TYPE_CHECKING:
    from tests.conftest_comfy import BuiltinServer


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files the recordings speak of: two seconds, each frame marked with its number."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "input.mp4", sound=True)
    make_video(folder / "input_noaudio.mp4", sound=False)
    return folder


@pytest.fixture
def server(shared_builtin_server: BuiltinServer, videos: Path) -> Iterator[BuiltinServer]:
    """The shared engine with empty folders and the input files in place."""
    for folder in (shared_builtin_server.input, shared_builtin_server.output):
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for path in videos.iterdir():
        shutil.copy(path, shared_builtin_server.input)
    (shared_builtin_server.input / "corrupt_random.mp4").write_bytes(bytes(range(256)) * 80)
    shared_builtin_server.run(fault("FaultNoOutput"))  # the cache keeps the last prompt only
    shared_builtin_server.call("POST", "/history", json={"clear": True})
    yield shared_builtin_server
