from typing import Any

import numpy as np


def pad(tensor: Any, by: tuple[int, ...], mode: str) -> Any:
    left, right, top, bottom = by
    assert mode == "replicate"
    return type(tensor)(np.pad(tensor.values, ((0, 0), (0, 0), (top, bottom), (left, right)), mode="edge"))
