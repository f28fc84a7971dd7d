"""Kinds of files that are kept for all tasks, and where each lies below its directory. A leaf; nothing is looked up."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from wan2gp.lora_names import resolved, stored_at

LORA, WEIGHTS = "lora", "weights"
KINDS = frozenset({LORA, WEIGHTS})
"""Of a :class:`~wan2gp.protocol.Source`: what is fetched stays where it is kept, and several tasks use it."""
FOLDERS = {LORA: "loras", WEIGHTS: "weights"}
"""Below the directory for models."""
LONGEST_PART = 120
"""Characters."""


def place_of(kind: str, url: str) -> PurePosixPath:
    """Where the file of a URL lies below the directory of its kind.

    Weights lie as on the hub, by owner, repository and path, so that an operator can put them there by hand.
    """
    if kind == LORA:
        return stored_at(url)
    parts = urlsplit(resolved(url))
    names = [_safe(part) for part in unquote(parts.path).split("/") if part]
    if len(names) > 4 and names[2] == "resolve":
        revision = [] if names[3] == "main" else [f"@{names[3]}"]
        return PurePosixPath(*names[:2], *revision, *names[4:])
    return PurePosixPath(_safe(parts.netloc.rpartition("@")[2].lower()), *names)


def _safe(part: str) -> str:
    """One part of a path: no dots alone, and nothing hidden."""
    return re.sub(r"[^\w.+@-]", "_", part).lstrip(".")[:LONGEST_PART] or "_"
