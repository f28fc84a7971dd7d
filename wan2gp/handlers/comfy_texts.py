"""The texts that a graph showed: as many of them as a row can hold, and what must become a file instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ROW_CHARS = 64 * 1024
"""Most characters of text in one row's result; a row is read whole by whoever looks at it."""
NODE_CHARS = 16 * 1024
"""Most of one node."""


@dataclass(frozen=True)
class Texts:
    """``kept`` goes into the row; ``cut`` has, in full, what was shortened there; ``warnings`` say so."""

    kept: dict[str, list[str]]
    cut: dict[str, list[str]]
    warnings: tuple[str, ...]


def bound(shown: Mapping[str, list[str]]) -> Texts:
    """Shorten to what a row may hold. What cannot be written as JSON or be stored (NUL) is replaced."""
    kept: dict[str, list[str]] = {}
    cut: dict[str, list[str]] = {}
    warnings = []
    left = ROW_CHARS
    for node_id, texts in shown.items():
        short = _first([_storable(text) for text in texts], min(left, NODE_CHARS))
        left -= sum(map(len, short))
        kept[node_id] = short
        total = sum(map(len, texts))
        if total > sum(map(len, short)):
            cut[node_id] = texts
            warnings.append(f"node {node_id}: its text of {total} characters is shortened here and whole in a file")
    return Texts(kept, cut, tuple(warnings))


def _first(texts: list[str], chars: int) -> list[str]:
    """The first so many characters of all together."""
    found = []
    for text in texts:
        if chars <= 0 and text:
            break
        found.append(text[:chars])
        chars -= len(found[-1])
    return found


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
