"""Applies what :mod:`wan2gp.supervisor.gpu_health` decides: to ended tasks, to claims, and to the worker's readiness.

Only the loop's thread comes here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from wan2gp.logs import Facts
from wan2gp.protocol import Failed, Outcome, Succeeded
from wan2gp.supervisor.gpu_health import GpuHealth, Standing
from wan2gp.supervisor.health import Health
from wan2gp.supervisor.lifecycle import HALF_OPEN_S
from wan2gp.supervisor.running import Running

BROKEN = "engine.cuda_broken"
UNHEALTHY = "worker.gpu_unhealthy"


class Blame:
    """``all_back(reason)`` hands back, uncounted, every task that has not begun."""

    def __init__(
        self, health: Health, facts: Facts, clock: Callable[[], float], all_back: Callable[[str], None]
    ) -> None:
        self._gpu = GpuHealth()
        self._health = health
        self._facts = facts
        self._clock = clock
        self._all_back = all_back

    def excuse(self, running: Running, outcome: Outcome, half_open_s: float = HALF_OPEN_S) -> float | None:
        """Hear a run's outcome. Seconds for which the task is to be left to others, when the machine is to blame."""
        if isinstance(outcome, Succeeded):
            self.forgive(running.handler)
            return None
        if not isinstance(outcome, Failed) or outcome.code != BROKEN or running.why is not None:
            return None
        delay_s = self._gpu.broke(running.handler, running.task.id, self._clock(), half_open_s)
        if self._gpu.standing is Standing.BLOCKED:
            self._block(running, outcome, half_open_s)
        return delay_s

    def _block(self, running: Running, outcome: Failed, half_open_s: float) -> None:
        name = running.handler
        sentence = (
            f"CUDA broke in one fresh process after the other, the last time under the {name} task {running.task.id} "
            f"({outcome.message[:300]}). Look at the driver and the GPU, then `wan2gp-ctl restart {name}`; one task is "
            f"tried {half_open_s:.0f}s after each failure"
        )
        self._health.block(UNHEALTHY, sentence)
        self._all_back("the GPU failed again and again: this worker takes no tasks")

    def forgive(self, handler: str) -> None:
        """Its task succeeded, or an operator restarts it."""
        if self._gpu.proved(handler):
            self._health.clear(UNHEALTHY)

    def tick(self, now: float) -> bool:
        """Look at the time. True when one task may be tried now."""
        half_opens = self._gpu.tick(now)
        if half_opens:
            self._facts("worker.trying")
        return half_opens

    def next_tick(self) -> float | None:
        """When :meth:`tick` is due next, if known."""
        return self._gpu.half_open_at

    def slots(self, rooms: Mapping[str, int], idle: Collection[str]) -> dict[str, int]:
        """What may be claimed for, of the rooms above zero, by handler. ``idle``: those that the queue has nothing
        for, or that cannot run."""
        if self._health.reasons.keys() - {UNHEALTHY}:
            return {}
        return self._gpu.slots(rooms, idle)

    def admits(self, running: Running) -> bool:
        """Whether a task that has come may stay; else it must go back uncounted."""
        return self._gpu.admits(running.handler, running.task.lease_id)

    def ended(self, running: Running) -> None:
        """Whatever became of it, it is over here."""
        self._gpu.ended(running.task.lease_id)

    @property
    def rests(self) -> bool:
        """True while nothing is claimed for the GPU's sake, and nothing will be for a while."""
        return self._gpu.standing is Standing.BLOCKED
