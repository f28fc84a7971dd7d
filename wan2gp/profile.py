"""What a handler's process may do, as data: the supervisor decides it, the shim applies it before the handler exists.

Standard library only, since the shim imports it.
"""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, dataclass, field
from typing import Any


class Layer(str, enum.Enum):
    """One protection. Its value is its name in logs, ``status``, metrics and ``doctor``."""

    PRIVILEGES = "privileges"
    """No new privileges, no capabilities, umask 077, limits of open files, file size and core dumps."""
    USER = "user"
    """A user id of the handler's own."""
    FILES = "files"
    """Only the paths of the profile, by Landlock."""
    TCP = "tcp"
    """Only the ports of the profile, by Landlock."""
    SYSTEM_CALLS = "system_calls"
    """No UDP and other protocols, no kernel interfaces that an engine does not need, by seccomp."""
    SCOPE = "scope"
    """No signals and no abstract sockets to processes outside, by Landlock."""
    PROCESSES = "processes"
    """A limit on how many processes there are, by cgroup, user limit or watchdog."""
    MEMORY = "memory"
    """A limit on memory, by cgroup or watchdog."""


@dataclass(frozen=True)
class Profile:
    """The sandbox of one handler. Paths are absolute; those that do not exist are left out when it is applied, and so
    are those to read or write that are or pass a link by then."""

    mode: str = "best"
    """``best``: what the kernel refuses is left out and told; ``require``: the handler does not start without it;
    ``off``: nothing is applied."""
    uid: int | None = None
    """User and group id to take; None: the supervisor's own."""
    gid: int | None = None
    groups: tuple[int, ...] = ()
    """Supplementary groups: those of GPU device files, and the one that may reach the supervisor's socket."""
    read: tuple[str, ...] = ()
    """Files, and directories with all below them, to read and execute."""
    listed: tuple[str, ...] = ()
    """Directories whose names may be read, and those of the directories below them, but nothing in a file."""
    write: tuple[str, ...] = ()
    """The same, to write, make and remove as well."""
    devices: tuple[str, ...] = ()
    """Device files, or directories of them, to read, write and control."""
    terminals: tuple[str, ...] = ()
    """The same, granted only to a process that has taken a user id of its own: of pseudo-terminals, which have one
    directory for all, modes alone tell whose is whose."""
    models: tuple[str, ...] = ()
    """Directories below which links may lead elsewhere: what they lead to may be read too."""
    path_lists: tuple[str, ...] = ()
    """Files like ComfyUI's ``extra_model_paths.yaml``: the directories that they name may be read."""
    links: dict[str, int] = field(default_factory=dict)
    """Directories whose links, and those so many levels below, may lead elsewhere: what they lead to may be read."""
    interpreters: tuple[str, ...] = ()
    """Pythons: the environments they are in, and what those are made of, may be read."""
    untrusted: tuple[str, ...] = ()
    """Places that some handler may write: no link, list or environment below one of them widens what may be read."""
    never: tuple[str, ...] = ()
    """Paths that links and lists must not open: what they lead to is passed over when it holds one of them, or lies
    below one."""
    tcp: tuple[int, ...] | None = ()
    """Ports that may be bound and connected to; None: all."""
    udp: bool = False
    """Whether UDP sockets may be made (name look-ups need them)."""
    open_files: int = 65536
    file_bytes: int = 64 * 1024**3
    """Largest file that may be written, bytes."""
    processes: int = 4096
    """Most processes and threads."""
    memory_bytes: int = 0
    """Most memory of all processes together, bytes; 0: no limit by cgroup."""
    group: str = ""
    """Name of its cgroup, one for each incarnation; empty: none is made."""
    environ: dict[str, str] = field(default_factory=dict)
    """Variables that are set for the handler: its own home, cache and temp directories."""


def encode_profile(profile: Profile) -> str:
    """JSON, for the shim."""
    return json.dumps(asdict(profile))


def decode_profile(text: str) -> Profile:
    """What :func:`encode_profile` wrote. Raises :class:`TypeError` for fields that are none."""
    fields: dict[str, Any] = json.loads(text)
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Profile(**{**fields, **lists})
