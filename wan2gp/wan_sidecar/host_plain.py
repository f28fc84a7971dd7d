"""What the engine says of its models, as plain JSON. Standard library only."""

from __future__ import annotations

import math
from typing import Any

DEEPEST = 20


def plain(value: Any, depth: int = 0) -> Any:
    """Without what JSON has no word for: functions and objects of the engine's own become null."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth > DEEPEST:
        return None
    if isinstance(value, dict):
        return {str(key): plain(one, depth + 1) for key, one in value.items() if not callable(one)}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(one, depth + 1) for one in value if not callable(one)]
    return None
