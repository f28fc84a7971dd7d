"""Where below the kernel's control group file systems this process may make groups of its own.

Standard library only, since the shim imports it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LIMITS = {"memory": "memory", "processes": "pids"}
"""The kernel's controller for each limit."""
PREFIX = "wan2gp-"
LEAF = "wan2gp-leaf"
"""Where version 2 keeps the processes that were in the group below which there are now others."""
MOVE_ROUNDS = 20
"""How often to look again for processes that were started while the others moved."""
CLEAR_S = 0.5


class Unplaced(Exception):
    """No control group can be made here: a sentence for a person."""


@dataclass(frozen=True)
class Mount:
    """One mounted hierarchy: its version, the group that is mounted, and where."""

    version: int
    root: str
    point: Path
    controllers: frozenset[str]


@dataclass(frozen=True)
class Place:
    """The control group below which ours are made, for one limit."""

    version: int
    base: Path
    controller: str
    ours: bool
    """Whether its processes may be moved: it is a container's own, or delegated."""

    def arrange(self) -> None:
        """See to it that groups below the base have the controller. Raises :class:`Unplaced` and :class:`OSError`."""
        if self.version == 1 or self.controller in _words(self.base / "cgroup.subtree_control"):
            return
        if not self.ours:
            raise Unplaced(
                f"the control group {self.base} is not delegated to the worker (a systemd unit needs Delegate=yes)"
            )
        for _ in range(MOVE_ROUNDS):
            try:
                self.enable(self.base)
                return
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
            self._move_out()
        raise Unplaced(f"processes of the control group {self.base} cannot be moved to one below it")

    def enable(self, group: Path) -> None:
        """Give the groups below ``group`` the controller."""
        if self.controller not in _words(group / "cgroup.subtree_control"):
            (group / "cgroup.subtree_control").write_text(f"+{self.controller}")

    def _move_out(self) -> None:
        leaf = self.base / LEAF
        leaf.mkdir(exist_ok=True)
        for pid in _words(self.base / "cgroup.procs"):
            with contextlib.suppress(ProcessLookupError):
                (leaf / "cgroup.procs").write_text(pid)


def find(limit: str) -> Place:
    """Where the groups for ``limit``, a key of :data:`LIMITS`, belong. Raises :class:`Unplaced` and
    :class:`OSError`."""
    controller = LIMITS[limit]
    for mount in mounts():
        own = _own_group(mount.version, controller)
        if own is None:
            continue
        base = _base(mount, own)
        if mount.version == 1 and controller in mount.controllers:
            return Place(1, base, controller, True)
        if mount.version == 2 and controller in _words(base / "cgroup.controllers"):
            return Place(2, base, controller, _is_ours(base, own))
    raise Unplaced(f"no control group file system with the controller {controller} is mounted")


def mounts(table: str = "/proc/self/mountinfo") -> list[Mount]:
    """The hierarchies that are mounted, those of version 2 first. Source: proc_pid_mountinfo(5)."""
    found: list[Mount] = []
    for line in Path(table).read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options, *_) = before.split(), after.split()
        if kind in ("cgroup", "cgroup2"):
            version, point = (2 if kind == "cgroup2" else 1), Path(_unescaped(fields[4]))
            found.append(Mount(version, _unescaped(fields[3]), point, frozenset(options.split(","))))
    return sorted(found, key=lambda mount: -mount.version)


def clear_below(group: Path) -> None:
    """Remove a group and those below it, as far as nobody is in them; what has just ended may take a moment."""
    end = time.monotonic() + CLEAR_S
    while group.is_dir():
        for path in [*_groups_below(group), group]:
            with contextlib.suppress(OSError):
                path.rmdir()
        if time.monotonic() > end:
            return
        time.sleep(0.002)


def _groups_below(group: Path) -> Iterator[Path]:
    """Deepest first."""
    for path, _, _ in os.walk(group, topdown=False):
        if Path(path) != group:
            yield Path(path)


def _own_group(version: int, controller: str) -> str | None:
    """The group of this process in that hierarchy. Source: cgroups(7)."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if (number == "0") if version == 2 else (controller in controllers.split(",")):
            return path
    return None


def _base(mount: Mount, own: str) -> Path:
    """The directory of ``own``, without the leaf that :meth:`Place.arrange` may have made."""
    root = mount.root.rstrip("/")
    if own != root and not own.startswith(root + "/"):
        raise Unplaced(f"this process's control group {own} is not mounted: {mount.point} shows {mount.root}")
    path = mount.point / own[len(root) :].lstrip("/")
    return path.parent if path.name == LEAF else path


def _is_ours(base: Path, own: str) -> bool:
    """The top of our own view is a container's or the machine's; systemd marks what it has delegated."""
    if own in ("/", f"/{LEAF}"):
        return True
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(base, name) == b"1":
                return True
    return False


def _words(path: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().split()
    return []


def _unescaped(text: str) -> str:
    """The kernel writes blanks as octal numbers."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text
