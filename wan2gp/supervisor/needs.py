"""What a handler's sandbox must allow besides what every handler may: part of its specification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Needs:
    """Paths are absolute; what lies below a directory is granted with it. They are looked at once, when the worker
    starts, and opened without following a link that is laid later."""

    read: tuple[str, ...] = ()
    """Files, and directories with all below them, to read and execute; not what is closed to handlers below them."""
    write: tuple[str, ...] = ()
    """The same, to write, make and remove as well. The word of an installed program, which the supervisor itself runs:
    granted as it stands."""
    write_settings: tuple[str, ...] = ()
    """The same by the word of a setting: granted without what is closed to handlers, and without what the worker
    itself runs."""
    models: tuple[str, ...] = ()
    """Directories that may be read, and below which links may lead elsewhere: what they lead to may be read too."""
    path_lists: tuple[str, ...] = ()
    """Files like ComfyUI's ``extra_model_paths.yaml``, or Wan2GP's ``wgp_config.json``: the directories that they name
    are as those in ``models``."""
    links: Mapping[str, int] = field(default_factory=dict)
    """Directories, and how many levels below them links may lead elsewhere too."""
    interpreters: tuple[str, ...] = ()
    """Pythons, to be read with all that they need; those that are not there need nothing."""
    tcp: tuple[int, ...] | None = ()
    """Ports that may be bound and connected to; None: all."""
    own_ports: bool = False
    """Whether those ports are where it listens itself: one where somebody else listens by then is not granted."""
    spare_ports: int = 0
    """How many free ports are chosen for it at each start. It gets them as its setting ``ports``, and may use them
    too."""
    udp: bool = False
    """Whether it may make UDP sockets, as look-ups of names do."""
