"""The books: what a run left behind, held against what is promised. Pure: a history in, violations out."""

from __future__ import annotations

from tests.chaos.records import (
    FINAL,
    Artifact,
    Cancelled,
    Deed,
    Event,
    History,
    Inserted,
    Life,
    Row,
    Sample,
    Violation,
)

__all__ = [
    "FINAL",
    "Artifact",
    "Cancelled",
    "Deed",
    "Event",
    "History",
    "Inserted",
    "Life",
    "Row",
    "Sample",
    "Violation",
]
