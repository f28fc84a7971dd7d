"""A thread that looks who holds the GPU's memory when somebody waits for it: the driver may hold up any question.

A driver that is asked from within a container often names no process, or pids of the host. Then all there is to see is
how much more the whole GPU holds than it did at its emptiest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from wan2gp.processes import alive, families
from wan2gp.supervisor.gpu_turns import GpuSeen
from wan2gp.supervisor.gpus import GpuMemory
from wan2gp.supervisor.weight import Root

JOIN_S = 1.0


class GpuLook:
    """``roots`` and ``told`` are called from its thread, which begins with the first :meth:`ask`."""

    def __init__(
        self,
        memory: GpuMemory,
        roots: Callable[[], Iterable[Root]],
        told: Callable[[GpuSeen], None],
        failed: Callable[[BaseException], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory = memory
        self._roots = roots
        self._told = told
        self._failed = failed
        self._clock = clock
        self._named = False
        """The driver has named a process of ours: its pids are those that we see."""
        self._emptiest: int | None = None
        self._anew = False
        self._asked, self._stopped = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def ask(self, anew: bool = False) -> None:
        """Look soon; returns at once. ``anew``: what the GPU holds now counts as its emptiest."""
        self._anew = self._anew or anew
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="gpu-look", daemon=True)
            self._thread.start()
        self._asked.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._asked.set()
        if self._thread is not None:
            self._thread.join(JOIN_S)

    def _serve(self) -> None:
        try:
            while self._asked.wait() and not self._stopped.is_set():
                self._asked.clear()
                self._told(self.look())
        except BaseException as error:  # who waits for the GPU would wait for ever
            self._failed(error)

    def look(self) -> GpuSeen:
        """Ask the driver, and see whose the processes are that it names."""
        at, by_pid = self._clock(), self._memory.by_pid()
        if by_pid is None:
            return GpuSeen(at)
        held = self._held(by_pid)
        self._named = self._named or any(held.values())
        if not self._named:
            return GpuSeen(at, beyond=self._beyond())
        return GpuSeen(at, held, sum(size for pid, size in by_pid.items() if not alive(pid)))

    def _held(self, by_pid: Mapping[int, int]) -> dict[str, int]:
        roots = list(self._roots())
        trees = families([root.pid for root in roots])[0] if roots else {}
        return {root.name: sum(by_pid.get(pid, 0) for pid in trees[root.pid]) for root in roots}

    def _beyond(self) -> int | None:
        used = self._memory.used()
        if used is None:
            return None
        anew, self._anew = self._anew, False
        self._emptiest = used if anew or self._emptiest is None else min(self._emptiest, used)
        return used - self._emptiest
