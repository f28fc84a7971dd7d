"""A driver's library with one GPU: compiled where there is a compiler, and the same in Python, by the same symbols."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_suffix(".c")
LIST = "nvmlDeviceGetComputeRunningProcesses"
Held = Sequence[tuple[int, int]]


def compiler() -> str | None:
    """A C compiler, if there is one."""
    return shutil.which("cc") or shutil.which("gcc")


def compiled(directory: Path, processes: Path, version: str = "_v3", entry: int = 24, mig: bool = False) -> Path:
    """The library, made; ``processes`` has one line ``pid bytes`` for each process that holds memory."""
    library = directory / "libnvidia-ml.so.1"
    shape = [f"-DLIST={LIST}{version}", f"-DENTRY={entry}", f"-DMIG={int(mig)}", f'-DPROCESSES="{processes}"']
    command = [compiler() or "cc", "-shared", "-fPIC", "-o", str(library), *shape, str(SOURCE)]
    subprocess.run(command, check=True, timeout=60)
    return library


class PaperDriver:
    """What :func:`compiled` makes, in Python: functions that write where ``ctypes.byref`` and buffers point to."""

    WHOLE, SLICE = 1, 2

    def __init__(self, held: Held, version: str = "_v3", entry: int = 24, mig: bool = False) -> None:
        self.held = held
        self._entry = entry
        self._mig = mig
        self.begun = 0
        self.lost = False
        setattr(self, LIST + version, self._list)

    def nvmlInit_v2(self) -> int:
        self.begun += 1
        return 0

    def nvmlShutdown(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 15 if self.lost else 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> int:
        device._obj.value = self.WHOLE
        return 15 if index.value else 0

    def nvmlDeviceGetName(self, device: Any, name: Any, length: Any) -> int:
        name.value = b"Stand-In 9000"
        return 0

    def nvmlDeviceGetUtilizationRates(self, device: Any, rates: Any) -> int:
        rates._obj.gpu = 37
        return 0

    def nvmlDeviceGetMemoryInfo_v2(self, device: Any, memory: Any) -> int:
        memory._obj.total, memory._obj.used = 81559 << 20, 1024 << 20
        return 0

    def nvmlDeviceGetMigMode(self, device: Any, current: Any, pending: Any) -> int:
        current._obj.value = int(self._mig)
        return 0

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Any, count: Any) -> int:
        count._obj.value = 7
        return 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, index: Any, found: Any) -> int:
        found._obj.value = self.SLICE
        return 0 if index.value == 3 else 6

    def _list(self, device: Any, count: Any, entries: Any) -> int:
        if self._mig and device.value == self.WHOLE:
            return 4
        room, count._obj.value = count._obj.value, len(self.held)
        if len(self.held) > room:
            return 7
        for index, (pid, size) in enumerate(self.held):
            content = struct.pack("<IxxxxQ", pid, size).ljust(self._entry, b"\0")
            ctypes.memmove(ctypes.addressof(entries) + index * self._entry, content, self._entry)
        return 0


def loader(how: str, directory: Path, held: Held, **shape: Any) -> Callable[[str], Any]:
    """Opens a library that tells of these processes: ``compiled``, or on ``paper``."""
    if how == "paper":
        driver = PaperDriver(held, **shape)
        return lambda name: driver
    processes = directory / "processes"
    processes.write_text("".join(f"{pid} {size}\n" for pid, size in held))
    library = compiled(directory, processes, **shape)
    return lambda name: ctypes.CDLL(str(library))
