"""Under which user id a handler runs, and why it cannot have one of its own.

Only root can give one away. A handler that could not even enter its own directory under another id would be worse off
than one that shares ours, so every place that it needs is looked at first, by its mode.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import wan2gp
from wan2gp.config import Config

PACKAGE = Path(wan2gp.__file__).resolve().parent
FIXED = {"courier": 1, "comfy": 2, "wan": 3, "media": 4, "remote": 5}
"""What is added to ``sandbox.uid_base``, by handler; plug-ins follow from :data:`FIRST_PLUGIN` on."""
FIRST_PLUGIN = 10
RESERVED = 1000
"""So many ids from the base on are taken for handlers'."""
NOT_ROOT = "the worker does not run as root"
"""No lack: without root there is nothing that a handler could take from another user."""
CAPABILITIES = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_FOWNER": 3, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}
"""What the supervisor needs to give ids away, and to look after files and processes of other ids; their numbers
(``linux/capability.h``)."""


@dataclass(frozen=True)
class User:
    """A handler's own user and group, and the groups besides."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    @property
    def shared(self) -> int:
        """The group that all handlers are in: the first of its other ones."""
        return self.groups[0] if self.groups else self.gid


def may(user: User, status: os.stat_result, needed: int) -> bool:
    """Whether the mode gives the user these rights (4 to read, 2 to write, 1 to enter or execute)."""
    if status.st_uid == user.uid:
        shift = 6
    else:
        shift = 3 if status.st_gid in (user.gid, *user.groups) else 0
    return status.st_mode >> shift & needed == needed


def number_of(name: str, registered: Iterable[str]) -> int:
    """What is added to the base for a handler; the same at every start while no plug-in comes or goes."""
    if name in FIXED:
        return FIXED[name]
    return FIRST_PLUGIN + [other for other in registered if other not in FIXED].index(name)


def why_none(config: Config) -> str | None:
    """Why no handler of this worker can have a user of its own, or None."""
    if os.geteuid() != 0:
        return NOT_ROOT
    if not config.sandbox_uid_base:
        return "sandbox.uid_base is 0: give the first of a range of free user ids"
    if lacking := _lacking_capabilities():
        return f"the container gives the worker no {', '.join(lacking)}: add them (docker run --cap-add)"
    base = config.sandbox_uid_base
    if not _mapped(base) or not _mapped(base + RESERVED):
        return f"the container has no user ids from {base} on: set sandbox.uid_base to one that it has, or to 0"
    return next((why for place in own_folders(config) if (why := _why_no_chown(place, base))), None)


def _lacking_capabilities() -> list[str]:
    held = 0
    with contextlib.suppress(OSError), open("/proc/self/status") as lines:
        held = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return [name for name, number in CAPABILITIES.items() if not held >> number & 1]


def _mapped(uid: int) -> bool:
    """Whether this user namespace has the id, as user and as group (user_namespaces(7))."""
    for table in ("/proc/self/uid_map", "/proc/self/gid_map"):
        with contextlib.suppress(OSError), open(table) as lines:
            ranges = [[int(word) for word in line.split()] for line in lines]
            if not any(first <= uid < first + count for first, _, count in ranges):
                return False
    return True


def own_folders(config: Config) -> tuple[Path, ...]:
    """What handlers' own directories lie in. Each may be the operator's link to another disk."""
    return (config.data_dir, config.data_dir / "handlers", config.data_dir / "work")


def _why_no_chown(folder: Path, uid: int) -> str | None:
    """A network disk may not let anything be given away. Where the directory is not yet there, the one is asked in
    which it will be made."""
    real = Path(os.path.realpath(folder))
    place = next(path for path in (real, *real.parents) if path.is_dir())
    probe = place / f".owner-{os.getpid()}"
    try:
        probe.mkdir(mode=0o700)
        try:
            os.chown(probe, uid, uid)
        finally:
            probe.rmdir()
    except OSError as error:
        return f"files under {folder} cannot be given to another user ({error.strerror}): use a local disk"
    return None


def closed_to(user: User, places: Iterable[str | Path]) -> str | None:
    """What keeps this user out of one of the places, with the remedy; None when it reaches all of them.

    Judged by owner, group and mode: access lists are not looked at.
    """
    for place in places:
        real = Path(os.path.realpath(place))
        for folder in (*reversed(real.parents), real):
            if not _enters(user, folder):
                return (
                    f"{folder} is closed to the user id {user.uid}, which must reach {place}: "
                    f"`chmod o+x {folder}`, or move what lies in it"
                )
    return None


def _enters(user: User, folder: Path) -> bool:
    try:
        status = os.stat(folder)
    except OSError:
        return True  # made later, or refused to us as well: not for its mode
    return may(user, status, 1) or not stat.S_ISDIR(status.st_mode) and may(user, status, 4)


def common_places(config: Config) -> tuple[str | Path, ...]:
    """What every handler must reach. The directories that we make are made passable when they are needed."""
    ours = [Path(os.path.realpath(place)).parent for place in own_folders(config)[1:]]
    return (sys.executable, PACKAGE, config.data_dir, *ours, config.run_directory().parent)
