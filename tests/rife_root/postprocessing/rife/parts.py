"""What both models share: weights with names, a linear blend, and the faults that a file of weights may ask for."""

import os
import signal
import time
from typing import Any

import torch

NAMES = ("block0.weight", "block1.weight")


class Part:
    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def state_dict(self) -> dict[str, Any]:
        return dict.fromkeys(self.names)


class Blend:
    """``inference`` of the engine's models, with their checks of sizes."""

    multiple = 32

    def __init__(self) -> None:
        self.flownet = Part(NAMES)
        self.fault = ""
        self.made = 0

    def load_model(self, path: str, rank: int = 0, device: str = "cuda") -> None:
        print("loading", path)  # as the engine does: no word of the conversation
        self.fault = torch.load(path, map_location=device).get("fault", "")

    def eval(self) -> None:
        self.ready = True

    def to(self, device: str) -> None:
        self.device = device

    def blend(self, first: Any, last: Any, time_between: float) -> Any:
        assert self.ready and first.shape == last.shape
        assert first.shape[2] % self.multiple == 0 and first.shape[3] % self.multiple == 0
        self.made += 1
        if self.made > 1:
            self.go_wrong()
        made = first.mul(1 - time_between) + last.mul(time_between)
        return made.mul(float("nan")) if self.fault == "nan" and self.made > 1 else made

    def go_wrong(self) -> None:
        if self.fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "hang":
            time.sleep(3600)
        if self.fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.fault == "host memory":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")
        if self.fault == "error":
            raise RuntimeError("The size of tensor a must match the size of tensor b")
