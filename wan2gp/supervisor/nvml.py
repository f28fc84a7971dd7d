"""What NVIDIA's management library tells of the GPUs and of who holds their memory; without it nothing is told.

``libnvidia-ml.so.1`` comes with the driver, so it is opened with :mod:`ctypes` and needs no package. Every function of
it is optional: drivers differ in which versions of a function they have, and a container may be refused some of them.
A driver that is sick can hold up any call for ever: whoever calls must not be the loop.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wan2gp.control import Gpu

LIBRARY = "libnvidia-ml.so.1"
RETRY_S = 60.0
"""After the library or the driver did not answer it is tried again only after so long, seconds."""
MIB = 1024 * 1024
_SUCCESS, _TOO_SMALL = 0, 7
_UNKNOWN = 2**64 - 1
"""What the driver says of a process whose memory it does not know."""
_NAME_BYTES = 96
_MEMORY_2 = 40 | 2 << 24
"""The second layout's size and number, which it must be called with."""
_PROCESSES_MAX = 4096
_MORE = 16
"""Room for processes that come between the question how many there are and the list."""
_ENTRIES = (
    ("nvmlDeviceGetComputeRunningProcesses_v3", 24),
    ("nvmlDeviceGetComputeRunningProcesses_v2", 24),
    ("nvmlDeviceGetComputeRunningProcesses", 16),
)
"""The ways to ask for processes, and the bytes of an entry: a pid of 4, the memory of 8 after a gap of 4, and more."""
_WIDEST = 32
"""What an entry has with some drivers of the 535 series, whatever their header says: room is made for that always."""


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Memory2(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class _Load(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Refused(Exception):
    """The library lacks the function, or the driver gives an error."""


class Nvml:
    """Thread-safe. ``load`` opens the library; both questions answer None where there is no library or no driver."""

    def __init__(
        self,
        library: str = LIBRARY,
        load: Callable[[str], Any] = ctypes.CDLL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._library = library
        self._load = load
        self._clock = clock
        self._lock = threading.Lock()
        self._open: Any = None
        self._retry_at = 0.0

    def gpus(self) -> tuple[Gpu, ...] | None:
        """The GPUs that this process may see."""
        with self._lock:
            devices = self._devices()
            return None if devices is None else tuple(self._gpus(devices))

    def processes(self) -> Mapping[int, int] | None:
        """GPU memory by pid, bytes, over all GPUs. In a container the driver often names pids of the host, or none."""
        with self._lock:
            devices = self._devices()
            if devices is None:
                return None
            held: dict[int, int] = {}
            for device in devices.values():
                for pid, size in self._holders(device):
                    held[pid] = held.get(pid, 0) + size
            return held

    # -- devices -----------------------------------------------------------------------------------------------------

    def _devices(self) -> dict[int, ctypes.c_void_p] | None:
        """Handles by index; those that cannot be had, lost ones say, are left out."""
        if self._open is None and not self._begin():
            return None
        count = ctypes.c_uint()
        try:
            self._call(("nvmlDeviceGetCount_v2", "nvmlDeviceGetCount"), ctypes.byref(count))
        except _Refused:
            self._end()
            return None
        found = {}
        for index in range(count.value):
            handle = ctypes.c_void_p()
            names = ("nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByIndex")
            if self._done(names, ctypes.c_uint(index), ctypes.byref(handle)):
                found[index] = handle
        return found

    def _begin(self) -> bool:
        if self._clock() < self._retry_at:
            return False
        self._retry_at = self._clock() + RETRY_S
        try:
            self._open = self._load(self._library)
            self._call(("nvmlInit_v2", "nvmlInit"))
        except (OSError, _Refused):
            self._open = None
            return False
        return True

    def _end(self) -> None:
        """The driver was exchanged or is broken: begin anew after a while."""
        self._done(("nvmlShutdown",))
        self._open, self._retry_at = None, self._clock() + RETRY_S

    def _gpus(self, devices: Mapping[int, ctypes.c_void_p]) -> Iterator[Gpu]:
        for index, device in devices.items():
            memory = self._memory(device)
            if memory is not None:
                used, total = memory
                yield Gpu(index, self._name(device), used // MIB, total // MIB, self._load_of(device))

    def _memory(self, device: ctypes.c_void_p) -> tuple[int, int] | None:
        """(used, total) in bytes. The second layout tells what the driver keeps for itself apart."""
        newer = _Memory2(version=_MEMORY_2)
        if self._done(("nvmlDeviceGetMemoryInfo_v2",), device, ctypes.byref(newer)):
            return newer.used, newer.total
        older = _Memory()
        if self._done(("nvmlDeviceGetMemoryInfo",), device, ctypes.byref(older)):
            return older.used, older.total
        return None

    def _name(self, device: ctypes.c_void_p) -> str:
        text = ctypes.create_string_buffer(_NAME_BYTES)
        known = self._done(("nvmlDeviceGetName",), device, text, ctypes.c_uint(_NAME_BYTES))
        return text.value.decode(errors="replace") if known else "GPU"

    def _load_of(self, device: ctypes.c_void_p) -> int | None:
        load = _Load()
        known = self._done(("nvmlDeviceGetUtilizationRates",), device, ctypes.byref(load))
        return int(load.gpu) if known else None

    # -- processes ---------------------------------------------------------------------------------------------------

    def _holders(self, device: ctypes.c_void_p) -> list[tuple[int, int]]:
        """(pid, bytes) on one GPU. One that is cut into MIG slices is asked slice by slice: asked as a whole it tells
        only those with the right to see all slices."""
        slices = [found for each in self._slices(device) if (found := self._listed(each)) is not None]
        if slices:
            return [holder for found in slices for holder in found]
        return self._listed(device) or []

    def _slices(self, device: ctypes.c_void_p) -> Iterator[ctypes.c_void_p]:
        current, pending, count = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
        if not self._done(("nvmlDeviceGetMigMode",), device, ctypes.byref(current), ctypes.byref(pending)):
            return
        if not current.value or not self._done(("nvmlDeviceGetMaxMigDeviceCount",), device, ctypes.byref(count)):
            return
        for index in range(count.value):
            handle = ctypes.c_void_p()
            names = ("nvmlDeviceGetMigDeviceHandleByIndex",)
            if self._done(names, device, ctypes.c_uint(index), ctypes.byref(handle)):
                yield handle

    def _listed(self, device: ctypes.c_void_p) -> list[tuple[int, int]] | None:
        for name, width in _ENTRIES:
            function = getattr(self._open, name, None)
            if function is not None and (found := _ask_for_list(function, device, width)) is not None:
                return found
        return None

    # -- calls -------------------------------------------------------------------------------------------------------

    def _call(self, names: tuple[str, ...], *arguments: Any) -> None:
        """Call the first of these that the library has."""
        for name in names:
            function = getattr(self._open, name, None)
            if function is not None:
                code = function(*arguments)
                if code != _SUCCESS:
                    raise _Refused(f"{name} gives {code}")
                return
        raise _Refused(f"the driver has no {names[0]}")

    def _done(self, names: tuple[str, ...], *arguments: Any) -> bool:
        try:
            self._call(names, *arguments)
        except _Refused:
            return False
        return True


def _ask_for_list(function: Any, device: ctypes.c_void_p, width: int) -> list[tuple[int, int]] | None:
    """None when the driver refuses. Asked first without room, it says how many there are."""
    count = ctypes.c_uint(0)
    if function(device, ctypes.byref(count), None) not in (_SUCCESS, _TOO_SMALL):
        return None
    if count.value == 0:
        return []
    room = min(count.value, _PROCESSES_MAX) + _MORE
    count, buffer = ctypes.c_uint(room), ctypes.create_string_buffer(room * _WIDEST)
    if function(device, ctypes.byref(count), buffer) != _SUCCESS:
        return None
    return parse_processes(buffer.raw, min(count.value, room), width)


def parse_processes(raw: bytes, count: int, width: int) -> list[tuple[int, int]]:
    """(pid, bytes) of each entry whose memory is known. No process has the pid 0: where one seems to, entries are
    wider."""
    for step in (width, _WIDEST):
        pids = [int.from_bytes(raw[at : at + 4], "little") for at in range(0, count * step, step)]
        if all(pids):
            break
    sizes = [int.from_bytes(raw[at + 8 : at + 16], "little") for at in range(0, count * step, step)]
    return [(pid, size) for pid, size in zip(pids, sizes, strict=True) if pid and size != _UNKNOWN]
