"""Memory that creeps over a limit: once a second a thread weighs every child with all that runs below it.

What is heavy is replaced before its next task; what stays too heavy for three looks ends under its task. Mapped files
do not count: the kernel takes them back when it needs memory, and a model that is mapped would look like a leak. What
forked processes share counts once before anybody is judged for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from wan2gp.config import Config
from wan2gp.machine_memory import machine_memory
from wan2gp.processes import families, held
from wan2gp.supervisor.crowd import Crowd
from wan2gp.supervisor.weight import Root, Verdict, Weighed, Weight

LOOK_S = 1.0
"""Time between two looks, seconds."""
LOOKS = 3
"""A child that is too heavy in so many looks in a row is ended: one peak is none of anybody's business."""
QUICK_S = 0.2
"""Time between two looks at how many processes there are in all, which is cheap, seconds."""
SETTLE_S = 0.2
"""How long a task's memory may take to be given back before its process is looked at for that, seconds."""
GPU_EVERY_S = 10.0
"""Time between two looks at the GPUs where their memory has no limit and is only shown, seconds."""
SOFT_SHARE, HARD_SHARE = 0.85, 0.95
"""Of the memory that this machine or container has, unless limits are given."""
GROUP_SHARE = 0.98
"""Of the same: where the kernel steps in at the latest, so that the rest of the worker has room."""
MIB = 1024 * 1024
GROUP_SLACK = 256 * MIB
JOIN_S = 1.0


@dataclass(frozen=True)
class Limits:
    """Bytes; 0 is no limit."""

    soft: int
    hard: int
    gpu_soft: int = 0

    @property
    def least(self) -> int:
        """Of the two for the machine's memory: below it nothing follows from a weight."""
        return min((limit for limit in (self.soft, self.hard) if limit), default=0)


def memory_limits(config: Config) -> Limits:
    """What the configuration says, in the end."""
    machine = machine_memory()
    hard = config.memory_hard_mib * MIB or int(machine * HARD_SHARE)
    soft = config.memory_soft_mib * MIB or int(machine * SOFT_SHARE)
    return Limits(min(soft, hard), hard, config.memory_gpu_soft_mib * MIB)


def group_memory(config: Config) -> int:
    """Where the kernel is to end what fills the memory between two looks, bytes: a tenth and some more above the
    limit at which the watch does it, whose words are better than a kill."""
    hard = memory_limits(config).hard
    return max(hard, min(hard + hard // 10 + GROUP_SLACK, int(machine_memory() * GROUP_SHARE)))


@dataclass
class Judge:
    """From weights to verdicts; no I/O, time as a parameter."""

    limits: Limits
    _too_heavy: dict[bytes, tuple[int, float]] = field(default_factory=dict)
    """How many looks in a row, and when the last of them was."""

    def judge(self, identity: bytes, weight: Weight, now: float) -> Weighed:
        """The verdict on a child at monotonic time ``now``, seconds."""
        looks = self._looks(identity, weight, now)
        if looks >= LOOKS:
            return Weighed(weight, Verdict.TOO_HEAVY, _too_heavy(weight, self.limits), now)
        if self.limits.soft and weight.memory > self.limits.soft:
            return Weighed(weight, Verdict.HEAVY, _heavy(weight.memory, self.limits.soft, "memory", "soft_mib"), now)
        if self.limits.gpu_soft and (weight.gpu or 0) > self.limits.gpu_soft:
            reason = _heavy(weight.gpu or 0, self.limits.gpu_soft, "GPU memory", "gpu_soft_mib")
            return Weighed(weight, Verdict.HEAVY, reason, now)
        return Weighed(weight, Verdict.FINE, "", now)

    def _looks(self, identity: bytes, weight: Weight, now: float) -> int:
        if not self.limits.hard or weight.memory <= self.limits.hard:
            self._too_heavy.pop(identity, None)
            return 0
        looks, last = self._too_heavy.get(identity, (0, float("-inf")))
        if now - last >= LOOK_S / 2:  # one that was asked for in between is none of those in a row
            looks, last = looks + 1, now
            self._too_heavy[identity] = looks, last
        return looks

    def forget_all_but(self, identities: Iterable[bytes]) -> None:
        """The others are gone."""
        kept = set(identities)
        self._too_heavy = {identity: seen for identity, seen in self._too_heavy.items() if identity in kept}


def _too_heavy(weight: Weight, limits: Limits) -> str:
    return (
        f"its processes held {weight.memory // MIB} MiB of memory, the limit is {limits.hard // MIB} MiB "
        "(memory.hard_mib): give smaller inputs, or raise the limit on a machine that has the memory"
    )


def _heavy(held: int, limit: int, what: str, key: str) -> str:
    return f"its processes still hold {held // MIB} MiB of {what}, the limit is {limit // MIB} MiB (memory.{key})"


class MemoryWatch:
    """``roots`` and ``gpu`` are called from its thread, and so is ``told``, with whatever a desk must know: what is no
    longer or not yet fine, or all there is after :meth:`look_now`. ``gpu`` gives bytes by pid and must not hang.
    ``crowd`` judges how many processes there are, which the same look counts."""

    def __init__(
        self,
        limits: Limits,
        roots: Callable[[], Iterable[Root]],
        told: Callable[[Mapping[bytes, Weighed]], None],
        failed: Callable[[BaseException], None],
        gpu: Callable[[], Mapping[int, int] | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        crowd: Crowd | None = None,
    ) -> None:
        self._crowd = crowd
        self._judge = Judge(limits)
        self._limits = limits
        self._roots = roots
        self._told = told
        self._failed = failed
        self._gpu = gpu
        self._clock = clock
        self._gpu_at = float("-inf")
        self._by_pid: Mapping[int, int] | None = None
        self._verdicts: dict[bytes, Verdict] = {}
        self._asked = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="memory", daemon=True)
        self.weights: Mapping[str, Weight] = {}
        """What each child held when it was last looked at, by name. Replaced, never changed: any thread may read it."""

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def look_now(self) -> None:
        """Do not wait for the next look; returns at once."""
        self._asked.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._asked.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)

    def _serve(self) -> None:
        try:
            while not self._stopped.is_set():
                asked = self._wait()
                self._asked.clear()
                if not self._stopped.wait(SETTLE_S if asked else 0.0):
                    self.look(asked)
        except BaseException as error:  # a worker whose memory nobody watches must stop rather than limp
            self._failed(error)

    def _wait(self) -> bool:
        """Until the next look is due, or processes multiply so fast that one is. True when somebody asked for one."""
        due = time.monotonic() + LOOK_S
        pause = QUICK_S if self._crowd is not None else LOOK_S
        while not self._asked.wait(max(0.0, min(pause, due - time.monotonic()))):
            if time.monotonic() >= due or (self._crowd is not None and self._crowd.hurries()):
                return False
        return True

    def look(self, asked: bool) -> None:
        """Weigh all children once. ``asked``: tell of all of them."""
        now = self._clock()
        roots = list(self._roots())
        self._look_at_gpus(now, asked)
        trees, tasks = families([root.pid for root in roots]) if roots else ({}, {})
        if self._crowd is not None:  # first: a weighing of thousands takes time
            self._crowd.look({root: tasks[root.pid] for root in roots})
        found = {root.identity: self._judge.judge(root.identity, self._weigh(trees[root.pid]), now) for root in roots}
        self._judge.forget_all_but(found)
        self.weights = {root.name: found[root.identity].weight for root in roots}
        news = {identity: one for identity, one in found.items() if asked or self._is_news(identity, one.verdict)}
        self._verdicts = {identity: one.verdict for identity, one in found.items()}
        if news and not self._stopped.is_set():
            self._told(news)

    def _is_news(self, identity: bytes, verdict: Verdict) -> bool:
        return verdict is not Verdict.FINE or self._verdicts.get(identity, Verdict.FINE) is not Verdict.FINE

    def _look_at_gpus(self, now: float, asked: bool) -> None:
        pause = LOOK_S / 2 if self._limits.gpu_soft else GPU_EVERY_S
        if now - self._gpu_at >= pause or (asked and self._limits.gpu_soft):
            self._gpu_at, self._by_pid = now, self._gpu()

    def _weigh(self, pids: Sequence[int]) -> Weight:
        on_gpu = [self._by_pid[pid] for pid in pids if pid in self._by_pid] if self._by_pid else []
        return Weight(held(pids, self._limits.least), sum(on_gpu) if on_gpu else None)
