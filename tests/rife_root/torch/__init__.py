"""As much of PyTorch as the host of RIFE touches, on numpy: so that its tests need neither."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import numpy as np

from torch import nn as nn

__version__ = "0.stand-in"
uint8 = np.uint8


class Tensor:
    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def view(self, *shape: int) -> Tensor:
        return Tensor(self.values.reshape(shape))

    def permute(self, *axes: int) -> Tensor:
        return Tensor(self.values.transpose(axes))

    def unsqueeze(self, axis: int) -> Tensor:
        return Tensor(np.expand_dims(self.values, axis))

    def float(self) -> Tensor:
        return Tensor(self.values.astype(np.float32))

    def byte(self) -> Tensor:
        return Tensor(self.values.astype(np.uint8))

    def div(self, by: Any) -> Tensor:
        return Tensor(self.values / np.float32(by))

    def mul(self, by: Any) -> Tensor:
        return Tensor(self.values * np.float32(by))

    def clamp(self, low: Any, high: Any) -> Tensor:
        return Tensor(self.values.clip(low, high))

    def round(self) -> Tensor:
        return Tensor(self.values.round())

    def all(self) -> bool:
        return bool(self.values.all())

    def to(self, device: str) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return self

    def contiguous(self) -> Tensor:
        return self

    def numpy(self) -> Any:
        return self.values

    def __getitem__(self, place: Any) -> Tensor:
        return Tensor(self.values[place])

    def __add__(self, other: Tensor) -> Tensor:
        return Tensor(self.values + other.values)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)


class OutOfMemoryError(RuntimeError):
    pass


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"Weights only load failed: unsupported global {module}.{name}")


def load(path: str, map_location: Any = None, weights_only: bool = False) -> Any:
    with open(path, "rb") as file:
        return _Plain(file).load() if weights_only else pickle.load(file)


def frombuffer(data: bytearray, dtype: Any) -> Tensor:
    return Tensor(np.frombuffer(data, dtype))


def zeros(count: int, device: str = "cpu") -> Tensor:
    if device != "cpu":
        raise RuntimeError("Found no NVIDIA driver on your system")
    return Tensor(np.zeros(count))


def isfinite(tensor: Tensor) -> Tensor:
    return Tensor(np.isfinite(tensor.values))


def no_grad() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()
