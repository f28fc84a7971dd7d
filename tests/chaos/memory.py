"""Whether memory stays flat: per role and life of a supervisor, the last quarter of what was seen against the first."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from tests.chaos.records import History, Life, Rule, Violation

WARM_S = 8.0
"""What a process holds so soon after its role was first seen is its start, which every later one has too."""
SAMPLES_MIN = 8
"""A role that was looked at less often has no quarters to compare."""


def quarters(life: Life) -> dict[str, tuple[float, float]]:
    """By role, the median of the first and of the last quarter, bytes; only for roles that were seen long enough."""
    found = {}
    for role in sorted({sample.role for sample in life.memory}):
        samples = sorted((one for one in life.memory if one.role == role), key=lambda sample: sample.at)
        sizes = [one.rss for one in samples if one.at >= samples[0].at + WARM_S]
        quarter = len(sizes) // 4
        if len(sizes) >= SAMPLES_MIN:
            found[role] = (float(median(sizes[:quarter])), float(median(sizes[-quarter:])))
    return found


def swollen(history: History) -> Iterator[Violation]:
    """The roles whose memory grew by more than the history allows."""
    for life in history.lives:
        for role, (first, last) in quarters(life).items():
            if last > first * history.memory_factor + history.memory_slack:
                grown = f"grew from {first / 2**20:.0f} to {last / 2**20:.0f} MiB"
                said = f"the {role} of {life.worker} (from {life.begun:.3f} on) {grown}"
                yield Violation(None, Rule.MEMORY.value, said)
