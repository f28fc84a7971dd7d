"""What a Python needs to be read of this disk: the prefixes of its environment and of what that is made of."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from wan2gp.sandbox.links import below, real

PREFIX_PARTS = ("bin", "lib", "lib64", "include", "share", "ssl", "etc", "pyvenv.cfg")
"""What an interpreter needs of its prefix, where that is too large to be granted whole."""
CONFIG = "pyvenv.cfg"
CONFIG_CHARS = 64 * 1024


def interpreter_places(python: str, untrusted: Iterable[str] = ()) -> list[str]:
    """Prefixes of an interpreter, an absolute path: its own, that of the environment it is in, and that of what it is a
    link to. Links and a ``pyvenv.cfg`` in one of the untrusted places say nothing."""
    untrusted = tuple(untrusted)
    found = [str(Path(python).parent.parent), *_prefix(python, untrusted)]
    home = _home(found[0], untrusted)
    if home:
        found += [str(Path(home).parent), *_prefix(f"{home}/python", untrusted), *_prefix(home, untrusted, up=1)]
    return list(dict.fromkeys(found))


def _prefix(path: str, untrusted: tuple[str, ...], up: int = 2) -> list[str]:
    end = real(path, untrusted)
    return [str(Path(end).parents[up - 1])] if end is not None and end.count("/") >= up else []


def _home(prefix: str, untrusted: tuple[str, ...]) -> str:
    """What an environment's configuration says of where its interpreter is from (:mod:`venv`)."""
    place = real(f"{prefix}/{CONFIG}", untrusted)
    if place is None or any(below(place, shut) for shut in untrusted):
        return ""
    with contextlib.suppress(OSError, UnicodeDecodeError), open(place) as file:
        for line in file.read(CONFIG_CHARS).splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "home" and os.path.isabs(value.strip()):
                return value.strip()
    return ""
