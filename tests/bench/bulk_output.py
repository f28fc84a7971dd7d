"""A graph that saves 500 MB: what that costs supervisor and handler in memory, from ComfyUI's folder to ours."""

from __future__ import annotations

from typing import Any

from tests.bench.bulk import LARGE, mark, report, run
from tests.bench.stage import working
from tests.conftest_comfy import FAULTS

MIB = LARGE // 2**20 + 1


def bulk_output() -> bool:
    """The file is moved, not copied; it is read for its digest, by the handler and by the supervisor."""
    with working(COMFY_ARGS=f"--extra-nodes {FAULTS}") as worker:
        run(worker, "comfy", _row(1, 1))
        pids = {"supervisor": worker.process.pid, "handler": worker.handler_pid("comfy")}
        before = {name: mark(pid) for name, pid in pids.items()}
        seconds = run(worker, "comfy", _row(MIB, 2))
        return report("output, of a graph", pids, before, seconds)


def _row(mib: int, nonce: int) -> dict[str, Any]:
    inputs = {"mib": mib, "filename_prefix": "large", "nonce": nonce}
    return {"workflow": {"1": {"class_type": "FaultWriteBytes", "inputs": inputs}}}
