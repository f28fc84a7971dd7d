"""Other people's code, in a handler and in a node of ComfyUI, takes all that there is of processes, disk and memory: it
meets a limit, which is named, and the worker serves the next task. The limits are small: no test can take much."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest_db import PgServer
from tests.conftest_worker import Row
from tests.hostile_worker import BUILTIN, Scene, scene

PROCESSES, FILE_MIB, DISK_MIB, MEMORY_MIB, OWN_MIB, KERNELS_MIB = 60, 8, 24, 160, 60, 320
LIMITS = {
    "WAN2GP_SANDBOX_PROCESSES": str(PROCESSES),
    "WAN2GP_SANDBOX_FILE_MIB": str(FILE_MIB),
    "WAN2GP_SANDBOX_DISK_MIB": str(DISK_MIB),
    "WAN2GP_MEMORY_SOFT_MIB": str(MEMORY_MIB),
    "WAN2GP_MEMORY_HARD_MIB": str(MEMORY_MIB),
}
PATIENCE_S = 90.0
"""What goes over a limit is looked for every few seconds, and a death is tried once more."""
pytestmark = [pytest.mark.long, pytest.mark.timeout(200)]


@pytest.fixture(scope="module", params=["handler", BUILTIN])
def hostile(request: pytest.FixtureRequest, _pg_session: PgServer) -> Iterator[Scene]:
    with scene(request.param, _pg_session, **LIMITS) as one:
        yield one


def ended_for(hostile: Scene, vice: str, **prey: object) -> Row:
    """The row of the task, which failed; the next ones do not."""
    row = hostile.worker.ended(hostile.insert(vice, **prey), PATIENCE_S)
    hostile.serves()
    return row


def for_memory(row: Row) -> bool:
    """As the worker says it, as the guard of ComfyUI does, or as that one guesses when the kernel was faster."""
    words = ("memory.hard_mib", f"more than the limit of {MEMORY_MIB} MiB", "by the kernel for lack of memory")
    return any(word in (row["error_message"] or "") for word in words)


def test_it_forks_ten_thousand_times_and_gets_tens(hostile: Scene) -> None:
    row = ended_for(hostile, "forks", times=2 * PROCESSES, hold_s=60)
    assert row["status"] == "Failed" and "handler.process_limit: " in row["error_message"]
    assert f"{PROCESSES} (sandbox.processes)" in row["error_message"]


@pytest.mark.parametrize("how", ["one file", "sparse", "reserved"])
def test_it_writes_a_file_that_is_too_large(hostile: Scene, how: str) -> None:
    assert hostile.saw("writes_much", how=how, mib=2 * FILE_MIB) == {how: "EFBIG"}


@pytest.mark.parametrize("how", ["many files", "in temp", "at home"])
def test_it_fills_the_disk(hostile: Scene, how: str) -> None:
    row = ended_for(hostile, "writes_much", how=how, mib=DISK_MIB + 16, hold_s=60)
    assert row["status"] == "Failed" and "handler.disk_limit: " in row["error_message"]
    assert f"{DISK_MIB} MiB (sandbox.disk_mib)" in row["error_message"]


@pytest.mark.parametrize("how", ["alone", "by children"])
def test_it_takes_all_memory(hostile: Scene, how: str) -> None:
    row = ended_for(hostile, "allocates", how=how, mib=MEMORY_MIB + OWN_MIB, hold_s=60)
    assert row["status"] == "Failed" and for_memory(row)


def test_it_takes_memory_in_files_that_no_process_has_mapped(hostile: Scene) -> None:
    """They count for the kernel alone, whose limit is a little higher than the worker's."""
    if not hostile.kernel_limits_memory():
        pytest.skip("no control group keeps the limit here")
    row = ended_for(hostile, "allocates", how="in files", mib=MEMORY_MIB + KERNELS_MIB, hold_s=1)
    refused = row["status"] == "Complete" and "ENOMEM" in str(row["result_data"])
    assert refused or for_memory(row)
