"""A file of this machine that a row names: only in directories that the operator has opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from wan2gp.handlers.api import TaskFailure


def local_file(text: str, what: str, allowed: Sequence[str], max_bytes: int) -> Path:
    """The file at ``text``, without symbolic links. ``what`` names it in messages; ``max_bytes`` 0: any size.

    Raises :class:`TaskFailure` (``input.bad_params``, ``.not_found``, ``.too_large``) unless its directory is allowed.
    """
    if not allowed:
        sentence = f"{what}: this worker reads no files of its own: give a `url`, or set inputs.allow_paths"
        raise TaskFailure("input.bad_params", sentence)
    if not text.startswith("/") or "\0" in text:
        raise TaskFailure("input.bad_params", f"{what} must be an absolute path")
    path = Path(os.path.realpath(text))
    if not any(path.is_relative_to(os.path.realpath(place)) for place in allowed):
        # Whether it exists stays unsaid: a row's author must not learn this machine's files.
        raise TaskFailure("input.bad_params", f"{what} is outside of the directories in inputs.allow_paths")
    try:
        status = path.stat()
    except OSError as error:
        raise TaskFailure("input.not_found", f"{what} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise TaskFailure("input.bad_params", f"{what} is not a regular file")
    if max_bytes and status.st_size > max_bytes:
        raise TaskFailure("input.too_large", f"{what}: {status.st_size} bytes, the limit is {max_bytes} bytes")
    return path
