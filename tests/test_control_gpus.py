"""The GPUs in `wan2gp-ctl status`: a machine without one, a driver that hangs, lines that are none."""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


class TestVram:
    """What heartbeats carry for a pod scaler; they come from the thread that keeps the leases."""

    TWO = 'echo "0, A100, 1000, 40960, 3"; echo "1, A100, 24, 40960, [N/A]"'

    @staticmethod
    def soon(reader: GpuReader, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """What it tells once that is ``wanted`` and nobody reads at this moment."""
        ends = time.monotonic() + 30
        while not wanted(reader.vram()) or "gpus" in {thread.name for thread in threading.enumerate()}:
            assert time.monotonic() < ends, "it never came"
            time.sleep(0.01)
        return reader.vram()

    def test_it_is_the_sum_over_all_gpus(self, tmp_path: Path) -> None:
        """Two GPUs made two lines, and the heartbeat said 0 of 0."""
        reader = GpuReader(program(tmp_path / "smi", self.TWO), wall_clock=lambda: 1764000000.25)
        assert self.soon(reader, bool) == {
            "vram_total_mb": 81920,
            "vram_used_mb": 1024,
            "vram_timestamp": 1764000000.25,
        }

    def test_a_machine_without_a_gpu_says_nothing_of_it(self) -> None:
        reader = GpuReader("no-such-program-here")
        assert reader.vram() == {} and reader.read() == () and reader.vram() == {}

    def test_a_driver_that_hangs_holds_up_no_heartbeat(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpus, "LIMIT_S", 0.5)
        hang = tmp_path / "hang"
        now = [0.0]
        reader = GpuReader(
            program(tmp_path / "smi", f"[ -e {hang} ] && exec sleep 60\n{self.TWO}"),
            clock=lambda: now[0],
            wall_clock=lambda: now[0],
        )
        known = self.soon(reader, bool)
        hang.touch()
        now[0] = 100.0
        assert reader.vram() == known, "as old as its time says"
        assert reader.vram() == known

    @pytest.mark.long
    def test_it_is_read_anew_only_now_and_then(self, tmp_path: Path) -> None:
        now = [0.0]
        count = tmp_path / "count"
        reader = GpuReader(
            program(tmp_path / "smi", f"echo x >> {count}; {self.TWO}"), clock=lambda: now[0], wall_clock=lambda: now[0]
        )
        self.soon(reader, bool)
        for _ in range(9):
            reader.vram()
        assert count.read_text() == "x\n"
        now[0] = gpus.VRAM_FRESH_S
        self.soon(reader, lambda vram: vram["vram_timestamp"] == now[0])
        assert count.read_text() == "x\nx\n"
