"""What handlers write: who has more on the disk than its limit ends, under its task; and what was set aside is removed.

A thread looks, since a walk over many files takes seconds. It hurries when the disk's free space falls so fast that a
child may be over its limit by now.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wan2gp.processes import trees
from wan2gp.supervisor.emptying import remove_set_aside
from wan2gp.supervisor.tree_size import DEEPEST, MOST_FILES, Size, measure, nameless
from wan2gp.supervisor.weight import Excess, Root

CODE = "handler.disk_limit"
LOOK_S = 5.0
"""Time between two looks, seconds; longer where a look takes long: at most a tenth of the time is spent on them."""
QUICK_S = 0.5
"""Time between two looks at the free space, which are cheap, seconds."""
SHARE = 0.9
"""Of the space that is free when a child starts: what it may take unless a limit is given."""
BREATH_S = 0.001
MIB = 1024 * 1024
JOIN_S = 1.0


@dataclass(frozen=True)
class Held:
    """One child's files: how much, and how much they may be, bytes."""

    size: int
    limit: int
    wrong: str | None = None


@dataclass
class Allowances:
    """How much each child may hold. ``given``: bytes, 0 is a share of what is free when it is first looked at.
    ``extra``: by name, what a child may keep besides; bytes."""

    given: int
    extra: Mapping[str, int] = field(default_factory=dict)
    _first: dict[bytes, int] = field(default_factory=dict)

    def of(self, root: Root, size: int, free: int) -> int:
        """In bytes, when it holds ``size`` and so much is free."""
        if self.given:
            return self.given + self.extra.get(root.name, 0)
        return self._first.setdefault(root.identity, size + int(free * SHARE))

    def forget_all_but(self, identities: Iterable[bytes]) -> None:
        """The others are gone."""
        kept = set(identities)
        self._first = {identity: limit for identity, limit in self._first.items() if identity in kept}

    def key(self) -> str:
        """Where the limit comes from, for a person."""
        return "sandbox.disk_mib" if self.given else "nine tenths of what was free; see sandbox.disk_mib"


class _Stopped(Exception):
    """The worker ends in the middle of a walk."""


class SizeWatch:
    """``roots`` and ``exceeded`` are called from its thread. ``places``: the directories of a child, by its name.
    ``confined``: False where nobody has limits, and there is only something to remove."""

    def __init__(
        self,
        data_dir: Path,
        allowances: Allowances,
        roots: Callable[[], Iterable[Root]],
        places: Callable[[str], Sequence[Path]],
        exceeded: Callable[[Mapping[bytes, Excess]], None],
        failed: Callable[[BaseException], None],
        confined: bool = True,
        deepest: int = DEEPEST,
        most_files: int = MOST_FILES,
    ) -> None:
        self._data_dir = data_dir
        self._allowances = allowances
        self._roots = roots
        self._places = places
        self._exceeded = exceeded
        self._failed = failed
        self._confined = confined
        self._bounds = deepest, most_files
        self._room: int | None = None
        self._most_free = 0
        self._known: frozenset[bytes] = frozenset()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, args=(work,), name=name, daemon=True)
            for name, work in (("sizes", self._look_again), ("clearing", self._clear))
        ]

    def start(self) -> None:
        """Look from now on."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End both threads; one that hangs in a call of the kernel is left alone."""
        self._stopped.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(JOIN_S)

    def _serve(self, work: Callable[[], None]) -> None:
        try:
            while not self._stopped.is_set():
                work()
        except _Stopped:
            return
        except BaseException as error:  # a worker whose disk nobody watches must stop rather than limp
            self._failed(error)

    def _look_again(self) -> None:
        began = time.monotonic()
        self.look()
        took = time.monotonic() - began
        self._wait(max(LOOK_S, 10 * took), 10 * took)

    def _clear(self) -> None:
        """In a thread of its own: millions of files to remove are no reason not to look."""
        remove_set_aside(self._data_dir / "handlers", self._breathe)
        self._stopped.wait(LOOK_S)

    def _wait(self, pause_s: float, least_s: float) -> None:
        """Until the next look; after ``least_s`` as soon as there is reason to hurry."""
        began = time.monotonic()
        while not self._stopped.wait(QUICK_S):
            waited = time.monotonic() - began
            if waited >= pause_s or (waited >= least_s and self.hurries()):
                return

    def hurries(self) -> bool:
        """Whether a child is new, or may be over its limit by now, as the free space tells."""
        if self._confined and not self._known.issuperset(root.identity for root in self._roots()):
            return True
        if self._room is None:
            return False
        free = self._free()
        self._most_free = max(free, self._most_free)  # others give space back meanwhile
        return self._most_free - free >= self._room

    def look(self) -> None:
        """Look at all children once."""
        roots = list(self._roots()) if self._confined else []
        self._known = frozenset(root.identity for root in roots)
        free = self._free() if roots else 0
        families = trees(root.pid for root in roots) if roots else {}
        held = {root: self._look_at(root, families[root.pid], free) for root in roots}
        self._allowances.forget_all_but(self._known)
        self._most_free = free
        self._room = min((max(MIB, one.limit - one.size) for one in held.values()), default=None)
        found = {root.identity: excess for root, one in held.items() if (excess := self._judge(root, one))}
        if found and not self._stopped.is_set():
            self._exceeded(found)

    def _look_at(self, root: Root, pids: Sequence[int], free: int) -> Held:
        size: Size = measure(self._places(root.name), self._breathe, *self._bounds)
        total = size.bytes + nameless(pids, self._data_dir.stat().st_dev)
        return Held(total, self._allowances.of(root, total, free), size.wrong)

    def _judge(self, root: Root, held: Held) -> Excess | None:
        where = " and ".join(map(str, self._places(root.name)))
        if held.wrong is not None:
            return Excess(CODE, f"{held.wrong} under {where}")
        if held.size <= held.limit:
            return None
        return Excess(
            CODE,
            f"it had {held.size // MIB} MiB under {where}, the limit is {held.limit // MIB} MiB "
            f"({self._allowances.key()}): give smaller inputs, or raise the limit on a machine that has the space",
        )

    def _breathe(self) -> None:
        if self._stopped.wait(BREATH_S):
            raise _Stopped

    def _free(self) -> int:
        disk = os.statvfs(self._data_dir)
        return disk.f_bavail * disk.f_frsize
