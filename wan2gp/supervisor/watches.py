"""The threads that watch what a worker can run out of, memory, processes and disk, and how the loop hears of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from wan2gp.config import Config
from wan2gp.logs import Facts
from wan2gp.supervisor import disk_watch
from wan2gp.supervisor.crowd import Crowd
from wan2gp.supervisor.disk_watch import DiskWatch
from wan2gp.supervisor.gpu_look import GpuLook
from wan2gp.supervisor.gpu_turns import GpuSeen
from wan2gp.supervisor.gpus import GpuMemory
from wan2gp.supervisor.inbox import Inbox
from wan2gp.supervisor.loop import Loop
from wan2gp.supervisor.memory_watch import MemoryWatch, memory_limits
from wan2gp.supervisor.nvml import Nvml
from wan2gp.supervisor.registry import COURIER
from wan2gp.supervisor.size_watch import Allowances, SizeWatch
from wan2gp.supervisor.weight import Excess, Root, Weighed

MIB = 1024 * 1024


class Watches:
    """All of them; used from the loop's thread."""

    def __init__(self, config: Config, loop: Loop, inbox: Inbox, facts: Facts, nvml: Nvml) -> None:
        self._loop = loop
        self._inbox = inbox
        confined = config.sandbox != "off"
        gpu_memory = GpuMemory(nvml)
        self._memory = MemoryWatch(
            memory_limits(config),
            self._roots,
            self._weighed,
            loop.crash,
            gpu_memory.by_pid,
            crowd=Crowd(config.sandbox_processes, self._exceeded) if confined else None,
        )
        loop.weigh = self._memory.look_now
        self._gpu = GpuLook(gpu_memory, self._roots, self._gpu_seen, loop.crash)
        loop.look_at_gpu = self._gpu.ask
        min_free = config.disk_min_free_mib * MIB
        self._disk = DiskWatch(config.data_dir, min_free, facts, self._blocked, loop.crash)
        self._sizes = SizeWatch(
            config.data_dir,
            Allowances(config.sandbox_disk_mib * MIB, {COURIER: config.input_cache_bytes}),
            self._roots,
            lambda name: (config.data_dir / "handlers" / name, config.data_dir / "work" / name),
            self._exceeded,
            loop.crash,
            confined=confined,
        )

    def start(self) -> None:
        """To be called before the loop runs: what the first look finds holds before anything is claimed."""
        self._memory.start()
        self._disk.start()
        self._sizes.start()
        self._inbox.drain()

    def stop(self) -> None:
        """End them."""
        self._gpu.stop()
        self._sizes.stop()
        self._disk.stop()
        self._memory.stop()

    def held(self, name: str) -> dict[str, Any]:
        """For `status`: what a child held when it was last looked at, MiB. From any thread."""
        weight = self._memory.weights.get(name)
        if weight is None:
            return {"rss_mib": None, "gpu_mib": None}
        return {"rss_mib": weight.memory // MIB, "gpu_mib": None if weight.gpu is None else weight.gpu // MIB}

    def _roots(self) -> Iterator[Root]:
        """From the watch's thread: plain reads alone."""
        for desk in self._loop.desks:
            child = desk.child
            if child is not None:
                yield Root(desk.name, child.identity, child.shim_pid)

    def _gpu_seen(self, found: GpuSeen) -> None:
        self._inbox.post(partial(self._loop.gpu_seen, found))

    def _weighed(self, found: Mapping[bytes, Weighed]) -> None:
        self._inbox.post(partial(self._loop.weighed, found))

    def _exceeded(self, found: Mapping[bytes, Excess]) -> None:
        self._inbox.post(partial(self._loop.exceeded, found))

    def _blocked(self, wrong: str | None) -> None:
        health = self._loop.health
        if wrong is None:
            self._inbox.post(partial(health.clear, disk_watch.CODE))
        else:
            self._inbox.post(partial(health.block, disk_watch.CODE, wrong))
