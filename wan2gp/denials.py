"""What a program was denied, from what it printed: the kernel tells nobody else of it.

Programs word it as they like; the path, or that it was a connection, is what counts. Standard library only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

DENIED = re.compile(r"Permission denied|Operation not permitted|Read-only file system|Invalid cross-device link")
"""The kernel's words (EACCES, EPERM, EROFS, EXDEV) as the C library gives them."""
_CONNECTION = re.compile(
    r"Cannot connect to host|establish a new connection|ConnectError|urlopen error"
    r"|PermissionError: \[Errno 13\] Permission denied$"
)
"""What programs say of a connection that was denied (by Landlock: EACCES); of a file they say which."""
_QUOTED = re.compile(r"""['"](/[^'"\n]{1,4000})['"]""")
_BARE = re.compile(r"""(?:^|[\s:(=])(/[^\s'":,;)]{1,4000})""")


def denied_path(line: str) -> str | None:
    """The path that a line says was denied; None when it says nothing of the kind."""
    if DENIED.search(line) is None or denied_connection(line):
        return None
    found = _QUOTED.search(line) or _BARE.search(line)
    return found[1].rstrip(".") if found else None


def denied_connection(line: str) -> bool:
    """Whether a line says that a connection was denied."""
    return "Permission denied" in line and _CONNECTION.search(line.rstrip()) is not None


def denied_paths(lines: Iterable[str]) -> Counter[str]:
    """How often each path was denied, in the order in which they first were."""
    return Counter(path for line in lines if (path := denied_path(line)) is not None)
