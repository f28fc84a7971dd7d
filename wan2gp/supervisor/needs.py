"""What a handler's sandbox must allow besides what every handler may: part of its specification."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """Paths are absolute, and granted as they stand: what lies below a directory is granted with it."""

    read: tuple[str, ...] = ()
    """Files, and directories with all below them, to read and execute."""
    write: tuple[str, ...] = ()
    """The same, to write, make and remove as well."""
    models: tuple[str, ...] = ()
    """Directories below which links may lead elsewhere: what they lead to may be read too."""
    path_lists: tuple[str, ...] = ()
    """Files like ComfyUI's ``extra_model_paths.yaml``: the directories that they name may be read."""
    tcp: tuple[int, ...] | None = ()
    """Ports that may be bound and connected to; None: all."""
    spare_ports: int = 0
    """How many free ports are chosen for it at each start. It gets them as its setting ``ports``, and may use them
    too; its setting ``connects`` says whether what it starts there may connect to others."""
    own_ports: bool = False
    """Whether a server of its own listens at ``tcp``: those where somebody else does at its start are left out then."""
    udp: bool = False
    """Whether it may make UDP sockets, as look-ups of names do."""
