"""JSON that Postgres accepts: jsonb knows neither NUL, nor lone surrogates, nor NaN; a child may report them all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec

REPLACEMENT = "\ufffd"


def to_json(value: Any) -> str:
    """``value`` as JSON text; what jsonb cannot hold is replaced (characters by U+FFFD, numbers by null)."""
    try:
        text = json.dumps(value, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(clean(value), default=_plain)
    return json.dumps(clean(value), default=_plain) if "\\u0000" in text or "\\ud" in text else text


def from_json(data: bytes | str) -> Any:
    """What Postgres sent as JSON. Raises :class:`ValueError` or :class:`RecursionError` where Python cannot hold it."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return json.loads(data)  # slower, and lets more pass; what it says of the rest is what callers know


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")


def clean(value: Any) -> Any:
    """``value`` without what neither text nor jsonb of Postgres can hold."""
    if isinstance(value, str):
        if value.isprintable():
            return value
        return value.replace("\0", REPLACEMENT).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean(key) if isinstance(key, str) else key: clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list | tuple) else value
