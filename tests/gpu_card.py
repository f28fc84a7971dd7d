"""A card that engines of the tests share (:mod:`tests.vices.sharers`), and the driver that lists who is on it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.nvml_stand_in import compiled, compiler

NAMES = ("painter", "filmer")


def install(place: Path) -> None:
    """As a plug-in, where :func:`tests.conftest_worker.worker_environment` looks for one."""
    info = place / "plugin" / "wan2gp_sharers-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wan2gp-sharers\nVersion: 0\n")
    lines = "".join(f"{name} = tests.vices.sharers:{name}\n" for name in NAMES)
    (info / "entry_points.txt").write_text(f"[wan2gp.handlers]\n{lines}noop = tests.vices.specs:noop\n")


class Card:
    """The list is made anew all the time: who died stays on it for ``lag_s`` seconds."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.lag_s = 0.0
        self._dead: dict[str, float] = {}
        self._stopped = threading.Event()
        place.mkdir()
        place.chmod(0o777)
        self._list()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def driver(self) -> dict[str, str]:
        """Variables with which a worker finds the driver's library; none where there is no compiler, and no driver."""
        if compiler() is None:
            return {}
        compiled(self.place, self.place / "processes")
        return {"LD_LIBRARY_PATH": str(self.place)}

    @property
    def loads(self) -> list[str]:
        """Who loaded what, in order."""
        file = self.place / "loads"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def collisions(self) -> str:
        """Empty when nobody ever met another's models."""
        file = self.place / "collisions"
        return file.read_text() if file.exists() else ""

    def _serve(self) -> None:
        while not self._stopped.wait(0.02):
            self._list()

    def _list(self) -> None:
        lines = []
        for name in NAMES:
            with contextlib.suppress(OSError, ValueError):
                line = (self.place / name).read_text()
                if psutil.pid_exists(int(line.split()[0])) or self._is_fresh(line):
                    lines.append(line)
                else:
                    (self.place / name).unlink()
        draft = self.place / ".processes"
        draft.write_text("".join(lines))
        draft.rename(self.place / "processes")

    def _is_fresh(self, line: str) -> bool:
        return time.monotonic() - self._dead.setdefault(line, time.monotonic()) < self.lag_s

    @contextlib.contextmanager
    def serving(self) -> Iterator[Card]:
        self._thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            self._thread.join()
