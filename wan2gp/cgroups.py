"""Limits that the kernel keeps for a handler and everything below it: control groups of version 2, else of version 1.

The supervisor calls :func:`prepare` once, each shim :func:`open_group` for its handler. Whoever is in a group cannot
leave it: it may not write to the kernel's files. Where groups cannot be made, the reason is told, and the watches over
processes and memory take their place. Sources: cgroups(7), ``admin-guide/cgroup-v2.rst`` and ``cgroup-v1/`` of the
kernel. Standard library only, since the shim imports it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wan2gp.cgroup_places import LIMITS, PREFIX, Place, Unplaced, clear_below, find
from wan2gp.processes import kill, start_time

MIB = 1024 * 1024
REMOVE_S = 0.5
"""How long the kernel may take to let go of a group whose last process has just ended, seconds."""
KILL_S = 3.0
"""How long :meth:`Group.kill` goes on, seconds: what is still there then hangs in the kernel."""
PAUSE_S = 0.002
TRIES = 5


@dataclass(frozen=True)
class Group:
    """One handler's control group, or its groups: version 1 has one for each limit."""

    directories: Mapping[str, tuple[int, Path]]
    """By limit (``memory``, ``processes``): the version and the directory."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Limits that were wanted and are not kept here, with the reason."""

    def enter(self, pid: int) -> None:
        """Put a process in, with all its threads and all that it starts from now on. Raises :class:`OSError`."""
        for path in self._paths():
            _write(path / "cgroup.procs", str(pid))

    def enter_alone(self) -> None:
        """Put this process in, which has one thread and nothing else yet. Raises :class:`OSError`.

        In version 1 a thread that moves itself needs no lock over all processes of the machine, for which a process
        waits some 10 ms: ``cgroup_procs_write_start`` of ``kernel/cgroup/cgroup.c``, since Linux 5.6.
        """
        for version, path in dict.fromkeys(self.directories.values()):
            if version == 1:
                _write(path / "tasks", "0")
            else:
                _write(path / "cgroup.procs", "0")

    def members(self) -> list[int]:
        """Who is in it now; nobody once it is removed."""
        found: dict[int, None] = {}
        for path in self._paths():
            found.update(dict.fromkeys(_members(path)))
        return list(found)

    def kill(self, deadline_s: float = KILL_S) -> list[int]:
        """End everybody in it, also a fork bomb and what changed its session. Returns whom that did not end.

        The caller must still wait for its children. First nothing can be started any more, so that the number only
        falls; version 2 then ends all of them in one call, since Linux 5.14.
        """
        for version, path in self.directories.values():
            with contextlib.suppress(OSError):
                _write(path / "pids.max", "0")
            if version == 2:
                with contextlib.suppress(OSError):
                    _write(path / "cgroup.kill", "1")
        end = time.monotonic() + deadline_s
        while left := self.members():
            for pid in left:
                kill(pid, signal.SIGKILL)
            if time.monotonic() > end:
                break
            time.sleep(PAUSE_S)
        return left

    def hits(self) -> dict[str, int]:
        """How often each limit was met: processes that the kernel ended for ``memory``, and ``processes`` that it did
        not start. Only those that were met."""
        counted = {
            "memory": sum(_count(path, *where) for path in self._paths() for where in _OOM_KILLS),
            "processes": sum(_count(path, "pids.events", "max") for path in self._paths()),
        }
        return {limit: count for limit, count in counted.items() if count}

    def remove(self, deadline_s: float = REMOVE_S) -> bool:
        """Give it back once nobody is in it. False when somebody still is. The last of a supervisor's children takes
        the supervisor's place away too, which the next one makes anew."""
        end = time.monotonic() + deadline_s
        while not all(_removed(path) for path in self._paths()):
            if time.monotonic() > end:
                return False
            time.sleep(PAUSE_S)
        for path in self._paths():
            if path.parent.name.startswith(PREFIX):
                _removed(path.parent)
        return True

    def _paths(self) -> list[Path]:
        return list(dict.fromkeys(path for _, path in self.directories.values()))


_OOM_KILLS = (("memory.events", "oom_kill"), ("memory.oom_control", "oom_kill"))
"""Of version 2 and of version 1 (since Linux 4.13)."""


def prepare() -> dict[str, str]:
    """For the supervisor, before it starts any child: make its own place, and clear those of lives that are over.

    Returns the limits (``memory``, ``processes``) that no group can keep here, each with the reason; empty is best.
    Version 2 allows groups only below one without processes of its own: where this control group is ours to arrange (a
    container's own, or one that is delegated), all processes in it move to a group ``wan2gp-leaf`` below it.
    """
    missing: dict[str, str] = {}
    for limit in LIMITS:
        try:
            place = find(limit)
            _sweep(place.base)
            place.arrange()
            _make_owner(place, os.getpid())
        except (Unplaced, OSError) as error:
            missing[limit] = _reason(error)
    return missing


def release() -> None:
    """For the supervisor at its end, when no child is left: give its own place back."""
    for limit in LIMITS:
        with contextlib.suppress(Unplaced, OSError):
            clear_below(find(limit).base / owner_name(os.getpid()))


def open_group(name: str, memory_bytes: int, processes: int, owner: int | None = None) -> Group | str:
    """A fresh group for one child of ``owner``, the supervisor's pid (by default the parent); or why there is none.

    ``memory_bytes``: most memory and swap together, 0 is no limit. ``processes``: most processes and threads, 0 is no
    limit. ``name`` becomes a part of a directory's name. A limit that cannot be kept is in :attr:`Group.missing`; the
    reason is returned alone when none can. The caller removes the group.
    """
    wanted = {limit: size for limit, size in (("memory", memory_bytes), ("processes", processes)) if size > 0}
    made: dict[str, tuple[int, Path]] = {}
    missing: dict[str, str] = {}
    for limit, size in wanted.items():
        try:
            made[limit] = _open(limit, size, _group_name(name, os.getpid()), os.getppid() if owner is None else owner)
        except (Unplaced, OSError) as error:
            missing[limit] = _reason(error)
    group = Group(made, missing)
    if made:
        return group
    return "; ".join(dict.fromkeys(missing.values())) or "no limit was asked for"


def existing(shim: int, owner: int) -> Group | None:
    """The group that the shim with this pid opened below ``owner``, for a look from outside; None without one."""
    found: dict[str, tuple[int, Path]] = {}
    for limit in LIMITS:
        with contextlib.suppress(Unplaced, OSError):
            place = find(limit)
            for path in (place.base / owner_name(owner)).glob(f"*-{shim}"):
                found[limit] = place.version, path
    return Group(found) if found else None


def _group_name(name: str, shim: int) -> str:
    """The directory of a child's group: a shim that still ends and the next one never meet."""
    kept = "".join(char if char.isalnum() or char in "-_" else "_" for char in name)[:64]
    return f"{kept}-{shim}"


def owner_name(pid: int) -> str:
    """The directory of a supervisor, which names the process for good, and the name space in which its pid counts."""
    return f"{PREFIX}{os.stat('/proc/self/ns/pid').st_ino}-{pid}-{start_time(pid) or 0}"


def _open(limit: str, size: int, name: str, owner: int) -> tuple[int, Path]:
    place = find(limit)
    path, fresh = _make(place, owner, name)
    try:
        for file, value in _settings(limit, place.version, size):
            _write(path / file, value)
        _set_swap(limit, place.version, path, size)
    except OSError:
        if fresh:  # else it already keeps the other limit
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
    return place.version, path


def _make(place: Place, owner: int, name: str) -> tuple[Path, bool]:
    """The group's directory, and whether it was not there before."""
    for _ in range(TRIES):
        path = _make_owner(place, owner) / name
        fresh = not path.exists()
        with contextlib.suppress(FileNotFoundError):  # another child has just taken the owner's place away
            path.mkdir(exist_ok=True)
            return path, fresh
    raise Unplaced(f"no control group below {place.base} lasts")


def _make_owner(place: Place, owner: int) -> Path:
    path = place.base / owner_name(owner)
    path.mkdir(mode=0o755, exist_ok=True)
    if place.version == 2:
        place.enable(path)
    return path


def _settings(limit: str, version: int, size: int) -> Iterator[tuple[str, str]]:
    if limit == "processes":
        yield "pids.max", str(size)
    else:
        yield ("memory.max" if version == 2 else "memory.limit_in_bytes"), str(size)


def _set_swap(limit: str, version: int, path: Path, size: int) -> None:
    """What does not fit must not go to swap instead; a kernel that does not count swap has no such file."""
    if limit == "memory":
        file, value = ("memory.swap.max", "0") if version == 2 else ("memory.memsw.limit_in_bytes", str(size))
        with contextlib.suppress(FileNotFoundError, PermissionError):
            _write(path / file, value)


def _sweep(base: Path) -> None:
    """End what is left of supervisors of our name space that are gone, and remove their directories."""
    ours = f"{PREFIX}{os.stat('/proc/self/ns/pid').st_ino}-"
    for path in base.glob(f"{ours}*"):
        pid, _, started = path.name[len(ours) :].partition("-")
        if pid.isdigit() and started.isdigit() and start_time(int(pid)) != int(started):
            for below in [*path.glob("*/"), path]:
                for member in _members(below):
                    kill(member, signal.SIGKILL)
            clear_below(path)


def _members(path: Path) -> list[int]:
    """Without those of other name spaces, whose pid reads as 0."""
    with contextlib.suppress(OSError):
        return [pid for line in (path / "cgroup.procs").read_text().split() if (pid := int(line)) > 0]
    return []


def _count(path: Path, file: str, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in (path / file).read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0


def _removed(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _write(path: Path, value: str) -> None:
    """The kernel answers a write, so it must be one, and without making the file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _reason(error: Unplaced | OSError) -> str:
    if isinstance(error, Unplaced):
        return str(error)
    why = {
        errno.EROFS: "it is mounted read-only",
        errno.EACCES: "it is closed to this user",
        errno.EPERM: "it is closed",
    }
    said = why.get(error.errno or 0, error.strerror or str(error))
    return f"cannot write to the control group {error.filename or ''}: {said}".replace("  ", " ")
