"""How much memory this process and its children may use: a container's limit is smaller than its machine."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Of version 2 and of version 1."""


def machine_memory() -> int:
    """Bytes: the machine's memory, or the control group's limit where that is smaller."""
    total = int(psutil.virtual_memory().total)
    limits = [limit for path in CGROUP_LIMITS if (limit := _limit(path))]
    return min([total, *limits])


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) > 0 else None
