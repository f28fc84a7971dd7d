"""The books after chaos: `make chaos` with a few seeds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest_worker import ROOT


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_after_chaos_every_row_is_final_finished_once_and_has_its_file(seed: int) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--seed", str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=390)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "0 wrong" in done.stdout
