"""More frames for what a generation made: by RIFE beside the engine, and by the engine where that cannot be."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.rife_stand_in import FILES, TESTS, write_weights
from tests.test_wan_handler import SMALL, Bench

UPSAMPLED = {**SMALL, "temporal_upsampling": "rife4"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """A handler whose engine's stand-in has a RIFE with these weights."""
    started: list[Bench] = []

    def make(fault: str | None = "", **settings: Any) -> Bench:
        root = tmp_path / f"root{len(started)}"
        ignored = shutil.ignore_patterns("__pycache__")
        for part in ("wan_root", "rife_root"):
            shutil.copytree(TESTS / part, root, dirs_exist_ok=True, ignore=ignored)
        if fault is not None:
            write_weights(root / "ckpts" / FILES["v4"], "v4", fault)
        given = {"path": str(root), "upsampling_device": "cpu", "download": False, **settings}
        started.append(Bench(tmp_path / f"bench{len(started)}", **given))
        return started[-1]

    yield make
    for one in started:
        one.handler.close()
    left = [each.cmdline() for each in psutil.Process().children(recursive=True)]
    assert [command for command in left if any("rife_host.py" in part for part in command)] == []


def test_a_generation_gets_its_frames_beside_the_engine(start: Callable[..., Bench]) -> None:
    bench = start()
    outcome = bench.made("t2v", **UPSAMPLED)
    assert [artifact.frames for artifact in outcome.artifacts] == [65]
    assert outcome.data["frames"] == {"asked": 17, "made": 65} and outcome.warnings == ()
    assert len(bench.noted("task")) == 1, "the engine had a job of its own for it"


def test_a_generation_keeps_its_frames_where_rife_fails(start: Callable[..., Bench]) -> None:
    """The engine does it then, as it always did, and the row says so."""
    outcome = start("die").made("t2v", **UPSAMPLED)
    assert [artifact.frames for artifact in outcome.artifacts] == [65]
    assert any("`temporal_upsampling` was left to the engine" in warning for warning in outcome.warnings)


@pytest.mark.long
def test_an_engine_that_has_its_weights_elsewhere_does_it_itself(start: Callable[..., Bench]) -> None:
    outcome = start(None).made("t2v", **UPSAMPLED)
    assert [artifact.frames for artifact in outcome.artifacts] == [65] and outcome.warnings == ()
