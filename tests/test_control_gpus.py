"""The GPUs in `wan2gp-ctl status`: a machine without one, a driver that hangs, lines that are none."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from wan2gp.control import Gpu
from wan2gp.supervisor import gpus
from wan2gp.supervisor.gpus import GpuReader, parse_gpu


def program(path: Path, body: str) -> str:
    """A stand-in for `nvidia-smi`."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_machine_without_a_driver_has_no_gpus() -> None:
    assert GpuReader("no-such-program-here").read() == ()


def test_the_gpus_are_read_once_for_askers_close_together(tmp_path: Path) -> None:
    times = iter([0.0, 1.0, 1.0 + gpus.FRESH_S, 1.0 + gpus.FRESH_S])
    count = tmp_path / "count"
    body = f'echo x >> {count}; echo "0, NVIDIA H100 80GB HBM3, 1024, 81559, 37"'
    reader = GpuReader(program(tmp_path / "smi", body), clock=lambda: next(times))
    assert reader.read() == reader.read() == (Gpu(0, "NVIDIA H100 80GB HBM3", 1024, 81559, 37),)
    assert count.read_text() == "x\n"
    reader.read()
    assert count.read_text() == "x\nx\n"


def test_a_driver_that_hangs_holds_up_no_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "WAIT_S", 0.05)
    monkeypatch.setattr(gpus, "LIMIT_S", 0.5)
    assert GpuReader(program(tmp_path / "smi", "exec sleep 60")).read() == ()


def test_a_driver_that_fails_is_no_gpu(tmp_path: Path) -> None:
    assert GpuReader(program(tmp_path / "smi", "echo broken; exit 9")).read() == ()


@pytest.mark.parametrize("line", ["", "No devices were found", "0, A100, [N/A], 1, 2", "x, A100, 1, 2, 3"])
def test_a_line_that_is_no_gpu_is_passed_by(line: str) -> None:
    assert parse_gpu(line.split(", ")) is None


def test_a_gpu_that_does_not_tell_its_load_is_shown_without_it() -> None:
    assert parse_gpu("1, A100, 5, 40960, [N/A]".split(", ")) == Gpu(1, "A100", 5, 40960, None)
