"""How long anything lives on that was started below what ends, in whatever way that ends and it was started."""

from __future__ import annotations

from tests.bench.stage import percentile, say, working
from tests.conftest_comfy import free_port
from tests.survivors import CELLS, COMFY, Cell, measure

TIMES = 5
TARGET_S = 1.0


def survivors() -> bool:
    """Plain, in a session of their own and double-forked, below a handler and below ComfyUI: the longest of
    :data:`TIMES` times."""
    return all([_cell(cell) for cell in CELLS])


def _cell(cell: Cell) -> bool:
    took = _took(cell)
    shown = f"{percentile(took, 0.5) * 1000:.0f} / {max(took) * 1000:.0f} ms"
    return say(f"{cell.name}: none left, p50 / most", shown, f"<= {TARGET_S * 1000:.0f} ms", max(took) <= TARGET_S)


def _took(cell: Cell) -> list[float]:
    """A worker that ends is a new one each time."""
    took: list[float] = []
    while len(took) < TIMES:
        environ = {**COMFY, "COMFY_PORT": str(free_port()), **cell.environ}
        with working(**environ) as worker:
            for _ in range(1 if cell.fatal else TIMES):
                took.append(max(0.0, measure(worker, cell)[0]))
    return took
