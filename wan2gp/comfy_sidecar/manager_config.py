"""ComfyUI-Manager, if it is among the custom nodes, shall install nothing: told by a configuration of our own.

It is a package manager behind HTTP: with its defaults, whoever reaches ComfyUI's port installs custom nodes and
restarts it, and a file of commands in its directory is executed at ComfyUI's next start. Its security level "strong"
closes what it calls high and middle risk: installing from its list, from any git address and by pip, downloading
models, snapshots, restart. "offline" keeps it from asking for lists. What it leaves open even then (updating ComfyUI,
switching its version, disabling a node) writes to ComfyUI's own folder, which the sandbox does not allow.
Source: ``manager_core.py`` and ``manager_server.py`` of ComfyUI-Manager 3.31, and its documentation for 3.38 and 4.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

SETTINGS = {
    "security_level": "strong",
    "network_mode": "offline",
    "always_lazy_install": "False",
    "share_option": "none",
}
CONFIG = "config.ini"
STARTUP = "startup-scripts"
OLD_PLACE, NEW_PLACE = Path("default") / "ComfyUI-Manager", Path("__manager")
"""Below the user directory: before 3.38 or on a ComfyUI without system users, and after."""
SYSTEM_USERS = "get_system_user_directory"


def disarm_manager(user: Path, checkout: Path) -> None:
    """Before each start of the ComfyUI in ``checkout``, since what ran before may have changed it. Raises OSError."""
    for place in _places(user, checkout):
        place.mkdir(parents=True, exist_ok=True)
        _remove(place / STARTUP)
        _write(place / CONFIG)


def _places(user: Path, checkout: Path) -> Iterator[Path]:
    modern = SYSTEM_USERS in _text(checkout / "folder_paths.py")
    if modern:
        yield user / NEW_PLACE
    # A Manager that knows the new place would take the old one for something to move there.
    if not modern or any(not _knows_new_place(manager) for manager in _managers(checkout)):
        yield user / OLD_PLACE


def _managers(checkout: Path) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(checkout / "custom_nodes"))
    except OSError:
        return
    for name in names:
        if "manager" in name.casefold() and (checkout / "custom_nodes" / name / "glob").is_dir():
            yield checkout / "custom_nodes" / name


def _knows_new_place(manager: Path) -> bool:
    return any(SYSTEM_USERS in _text(path) for path in (manager / "glob").glob("*.py"))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _write(path: Path) -> None:
    """In place of what is there, be it a link."""
    draft = path.with_name(f".{secrets.token_hex(8)}")
    with draft.open("x") as file:
        file.write("[default]\n" + "".join(f"{name} = {value}\n" for name, value in SETTINGS.items()))
    draft.replace(path)
