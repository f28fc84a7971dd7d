"""What the watches tell the desks of their children: how much each holds, and whether that is too much."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True)
class Root:
    """A child to be looked at: its name, its name on the wire, and the process that all of it runs below."""

    name: str
    identity: bytes
    pid: int


@dataclass(frozen=True)
class Excess:
    """A limit that a child is over: it must end now, under its work."""

    code: str
    """One of :mod:`wan2gp.errors`."""
    reason: str
    """A sentence for a person."""


class Verdict(enum.Enum):
    """What follows from a child's weight."""

    FINE = "fine"
    HEAVY = "heavy"
    """It must be replaced before it gets more work."""
    TOO_HEAVY = "too_heavy"
    """It must end now, under its work."""


@dataclass(frozen=True)
class Weight:
    """What all processes of one child hold together, bytes."""

    memory: int
    """Without mapped files, which the kernel takes back when it needs to."""
    gpu: int | None = None
    """None where nothing tells."""


@dataclass(frozen=True)
class Weighed:
    """One child, looked at once."""

    weight: Weight
    verdict: Verdict
    reason: str
    """A sentence for a person, unless it is fine."""
    looked_at: float
    """When the look began, monotonic seconds."""
