"""The comfy handler with a real server under it: the row of the specification, and what users send instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av

from tests.comfy_jobs import Bench, bench, make_video, spec_row

__all__ = ["bench"]
Make = Callable[..., Bench]


def test_the_row_of_the_specification_becomes_a_video(bench: Make, tmp_path: Path) -> None:
    one = bench(make_video(tmp_path / "in.mp4", frames=12))
    outcome = one.succeeds(spec_row())
    (artifact,) = outcome.artifacts
    assert (artifact.kind, artifact.mime, artifact.primary, artifact.node_id) == ("video", "video/mp4", True, "2")
    assert (artifact.width, artifact.height, artifact.frames) == (64, 48, 12)
    with av.open(str(one.work_dir / artifact.path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12
    assert any("loop_count" in warning and "filename_prefix" in warning for warning in outcome.warnings)
    assert outcome.engine["name"] == "builtin"
    assert one.left_behind() == []
    assert one.names() == [
        "comfy.first_task",
        "comfy.starting",
        "comfy.started",
        "comfy.ready",
        "comfy.started_ok",
        "comfy.uploaded",
        "comfy.filled_inputs",
        "comfy.queued",
        "comfy.completed",
    ]
