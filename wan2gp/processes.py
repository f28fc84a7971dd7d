"""What Linux says of processes: parents, start times, memory, and the few ``prctl`` calls that Python does not have.

Standard library only, since the shim imports it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
HOPS_MAX = 32
"""From a process up to whom it may belong to: each step reads a file, and who is asked about may have made a chain of
thousands to keep the asker busy. What is ours and speaks to us is one or two steps away."""

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """``prctl(2)`` with one argument. Raises :class:`OSError`."""
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def die_with_parent(number: int, parent: int) -> None:
    """Ask for signal ``number`` when the *thread* that started this process ends, or go at once when it is gone.

    ``parent`` is the pid that was the parent's: as pid 1 of a container the parent may be 1, so 1 proves nothing.
    """
    prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def undumpable() -> None:
    """Close this process to others of its user: no core dump, and ``/proc/<pid>/environ``, ``mem``, ``fd`` and
    ``maps`` as well as ``ptrace`` only with CAP_SYS_PTRACE. Lasts until the next ``execve(2)``; see
    PR_SET_DUMPABLE(2const)."""
    prctl(PR_SET_DUMPABLE, 0)


def adopt_orphans() -> None:
    """Make this process the one that descendants fall to when their parent dies."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def start_time(pid: int) -> int | None:
    """When ``pid`` started, in clock ticks since boot, or None when there is no such process. With the pid it names a
    process for good."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def boot_id() -> str | None:
    """Names the time since the machine started, from which start times count; None where the kernel does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip() or None
    except OSError:
        return None


def alive(pid: int) -> bool:
    """True while ``pid`` runs; a zombie does not."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in ("Z", "X")


def frozen(pid: int) -> bool:
    """True while ``pid`` is stopped by a signal or a debugger, and hears nothing but SIGKILL."""
    return _stat(pid)[:1] in (["T"], ["t"])


def _stat(pid: int) -> list[str]:
    """The fields of ``/proc/<pid>/stat`` behind the name (which may hold blanks and parentheses)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
    return text[text.rindex(")") + 2 :].split()


def _all_stats() -> Iterator[tuple[int, list[str]]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            yield int(entry), fields


def parents() -> dict[int, int]:
    """Every process's parent, by pid."""
    return {pid: int(fields[1]) for pid, fields in _all_stats()}


def families(roots: Iterable[int]) -> tuple[dict[int, list[int]], dict[int, int]]:
    """Like :func:`trees`, and by root how many processes and threads its tree has, the root itself not counted."""
    parent_of: dict[int, int] = {}
    threads: dict[int, int] = {}
    for pid, fields in _all_stats():
        parent_of[pid], threads[pid] = int(fields[1]), int(fields[17])
    below = _families(parent_of)
    found = {root: [root, *_below(root, below)] if root in parent_of else [] for root in roots}
    return found, {root: sum(threads[pid] for pid in tree[1:]) for root, tree in found.items()}


def all_tasks() -> int | None:
    """How many processes and threads there are in all, cheaply; None where the kernel does not say."""
    try:
        with open("/proc/loadavg") as file:
            return int(file.read().split()[3].partition("/")[2])
    except (OSError, ValueError, IndexError):
        return None


def children(pid: int) -> list[int]:
    """Direct children of ``pid``, zombies included, cheaply where the kernel offers it."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    found += [int(part) for part in file.read().split()]
            if not os.path.exists(f"/proc/{pid}/task/{thread}/children") and os.path.exists(f"/proc/{pid}/task"):
                return [child for child, parent in parents().items() if parent == pid]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return found


def descendants(root: int) -> list[int]:
    """Everything below ``root``, nearest first."""
    return _below(root, _families(parents()))


def trees(roots: Iterable[int]) -> dict[int, list[int]]:
    """By root: itself and everything below it, nearest first, from one look at all processes. One that is gone has
    an empty list."""
    found = parents()
    families = _families(found)
    return {root: [root, *_below(root, families)] if root in found else [] for root in roots}


def _families(parent_of: dict[int, int]) -> dict[int, list[int]]:
    """The children of each parent."""
    families: dict[int, list[int]] = {}
    for pid, parent in parent_of.items():
        families.setdefault(parent, []).append(pid)
    return families


def _below(root: int, families: dict[int, list[int]]) -> list[int]:
    found: list[int] = []
    level = [root]
    while level:
        level = [child for pid in level for child in families.get(pid, [])]
        found += level
    return found


def lineage(pid: int, hops: int = HOPS_MAX) -> Iterator[int]:
    """``pid`` and its parents, the nearest first: no more than so many, and none that is gone."""
    for _ in range(hops + 1):
        if pid <= 0:
            return
        yield pid
        if not (fields := _stat(pid)):
            return
        pid = int(fields[1])


def is_below(pid: int, root: int) -> bool:
    """True when ``pid`` is a descendant of ``root``, by no more than :data:`HOPS_MAX` steps."""
    for _ in range(HOPS_MAX):
        if pid <= 1 or not (fields := _stat(pid)):
            return False
        pid = int(fields[1])
        if pid == root:
            return True
    return False


def may_be_below(pid: int, root: int) -> bool:
    """False only when ``pid`` is surely no descendant of ``root``: one that is gone, that hides, or that is more than
    :data:`HOPS_MAX` steps from the beginning of all, may be one. A ``pid`` of 0 names a process of an outer pid
    namespace, see unix(7), and nobody leaves his own for that."""
    if pid == root:
        return False
    for _ in range(HOPS_MAX):
        if pid <= 1:
            return False
        fields = _stat(pid)
        if not fields:
            return not _of_another_user(pid)
        pid = int(fields[1])
        if pid == root:
            return True
    return True


def _of_another_user(pid: int) -> bool:
    """Whether it is there and not ours to signal: hidden from us where /proc is mounted with ``hidepid``. Of those that
    are below us none is: only root starts processes under other users, and sees all."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return False


def user_of(pid: int) -> int | None:
    """The user id that a process acts under; None when it is gone."""
    for line in _lines(pid, "status"):
        if line.startswith("Uid:"):
            return int(line.split()[2])
    return None


def groups_of(pid: int) -> list[str]:
    """The paths of a process's control groups, as cgroups(7) has them in ``/proc/<pid>/cgroup``; none when it is
    gone."""
    return [line.split(":", 2)[2] for line in _lines(pid, "cgroup") if line.count(":") >= 2]


def _lines(pid: int, file: str) -> list[str]:
    try:
        with open(f"/proc/{pid}/{file}") as lines:
            return lines.read().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def running_as(uid: int) -> list[int]:
    """The processes of a user, by the id that they act under; zombies hold nothing and are left out."""
    found = []
    for pid in parents():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as lines:
            if any(line.startswith("Uid:") and int(line.split()[2]) == uid for line in lines) and alive(pid):
                found.append(pid)
    return found


def held(pids: Iterable[int], limit: int = 0) -> int:
    """Bytes of memory that only the end of these processes gives back: without mapped files, which the kernel takes
    back when it needs memory. Those that are gone hold nothing.

    Up to ``limit`` (0 is none) this is what is cheap to know, in which pages that forked processes share count once for
    each of them. Above it the kernel is asked to divide them, which takes it milliseconds for each GiB.
    """
    known = list(pids)
    cheap = {pid: held_by(pid) for pid in known}
    total = sum(cheap.values())
    if not limit or total <= limit or len(known) < 2:
        return total
    return sum(cheap[pid] if (share := share_of(pid)) is None else share for pid in known)


def held_by(pid: int) -> int:
    """The same of one process, with all that it shares with others; 0 when it is gone."""
    sizes = _sizes(pid, "status", b"RssAnon", b"RssShmem", b"VmRSS")
    if b"RssAnon" in sizes:
        return sizes[b"RssAnon"] + sizes.get(b"RssShmem", 0)
    return sizes.get(b"VmRSS", 0)  # a kernel that tells no more


def share_of(pid: int) -> int | None:
    """The same of one process, each page divided by how many have it; None where the kernel does not say, or not to
    us, and of a process that is gone.

    The kernel tells it only to a process of the same user, or with CAP_SYS_PTRACE, which containers do not give to
    root: where it refuses, the question is asked again as the process's user.
    """
    try:
        sizes = _sizes_of(pid, "smaps_rollup", b"Pss_Anon", b"Pss_Shmem")
    except PermissionError:
        with reading_as_owner(pid):
            sizes = _sizes(pid, "smaps_rollup", b"Pss_Anon", b"Pss_Shmem")
    return sum(sizes.values()) if b"Pss_Anon" in sizes else None


@contextlib.contextmanager
def reading_as_owner(pid: int) -> Iterator[None]:
    """Let this thread, and no other, open files as the user that ``pid`` runs as; as itself where that is refused.
    Source: setfsuid(2), "Ptrace access mode checking" in ptrace(2)."""
    try:
        owner = os.stat(f"/proc/{pid}")
    except OSError:  # it is gone
        yield
        return
    before_group, before = _libc.setfsgid(owner.st_gid), _libc.setfsuid(owner.st_uid)
    try:
        yield
    finally:
        _libc.setfsuid(before)
        _libc.setfsgid(before_group)


def _sizes(pid: int, file: str, *names: bytes) -> dict[bytes, int]:
    """Those lines of a file of ``/proc`` that give kibibytes, in bytes."""
    with contextlib.suppress(PermissionError):
        return _sizes_of(pid, file, *names)
    return {}


def _sizes_of(pid: int, file: str, *names: bytes) -> dict[bytes, int]:
    """The same; raises :class:`PermissionError`."""
    found: dict[bytes, int] = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        with open(f"/proc/{pid}/{file}", "rb") as lines:
            for line in lines:
                name, _, size = line.partition(b":")
                if name in names:
                    found[name] = int(size.split()[0]) * 1024
    return found


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal; a process that is gone already is as good."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def kill_below(root: int, reap: Callable[[], None], deadline_s: float = 5.0) -> list[int]:
    """Kill everything below ``root``, which stays. ``reap`` waits for what falls to the caller. Returns the survivors.

    Repeats until nothing is left, since a process may fork between the look and the signal. A survivor is in an
    uninterruptible call of the kernel.
    """
    end = time.monotonic() + deadline_s
    while family := descendants(root):
        for pid in family:
            kill(pid)
        reap()
        if time.monotonic() > end:
            return [pid for pid in family if alive(pid)]
        time.sleep(0.002)  # the kernel needs a moment to tear an address space down
    return []


def kill_named(pid: int, started: int) -> bool:
    """Kill ``pid`` and what is below it, only if it is the process that started then. True when it was.

    All are frozen first: the children of one that dies while another still forks might fall to a stranger, and could
    not be found again.
    """
    if start_time(pid) != started:
        return False
    family: list[int] = []
    while fresh := [one for one in (pid, *descendants(pid)) if one not in family]:
        for one in fresh:
            kill(one, signal.SIGSTOP)
        family += fresh
    for one in family:
        kill(one)
    return True
