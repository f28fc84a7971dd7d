"""What a child is told at its birth: one JSON document on its standard input, never in arguments or environment.

The shim writes it and closes the pipe, so nothing of it (the nonce above all) can be read from ``/proc`` later.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Boot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first thing a child reads. ``target`` is ``module:attribute``; ``settings`` are JSON values, no secrets."""

    name: str
    target: str
    endpoint: str
    """ZeroMQ endpoint of the supervisor's ROUTER."""
    identity: str
    """``<handler>#<incarnation>#<128-bit nonce>``."""
    home: str
    """Absolute path of the handler's own directory; it exists."""
    settings: dict[str, Any] = {}
    secrets: dict[str, str] = {}
    """The tokens that this handler asked for, and no other credential."""
    warm: bool = False
    """Start the engine before saying hello."""
    beat_s: float = 2.0
    """Seconds between two beats."""

    def __repr__(self) -> str:  # nonce and tokens stay out of tracebacks
        return f"Boot({self.name})"


def encode_boot(boot: Boot) -> bytes:
    """The document for the child's standard input."""
    return msgspec.json.encode(boot)


def decode_boot(document: bytes) -> Boot:
    """Raises ``msgspec.DecodeError`` or ``msgspec.ValidationError`` when it is not one."""
    return msgspec.json.decode(document, type=Boot)
