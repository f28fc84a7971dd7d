"""Places outside of their own that handlers may write to, and by whose word."""

from __future__ import annotations

from collections.abc import Mapping

from wan2gp.sandbox.links import Way


def trusted(ways: Mapping[str, Way]) -> tuple[set[str], set[str]]:
    """Of places that handlers may write to, those that no handler can have made lead elsewhere, by a link that it laid
    in another of them; and the others.

    A link that an operator has laid in one of them cannot be told from a handler's.
    """
    good: set[str] = set()
    waiting = dict(ways)
    while waiting:
        ends = {place: found.end for place, found in waiting.items()}
        sure = {
            place
            for place, found in waiting.items()
            if not found.passes(end for other, end in ends.items() if other != place)
        }
        if not sure:  # each by the word of another
            return good, set(ways) - good
        good |= sure
        waiting = {
            place: found
            for place, found in waiting.items()
            if place not in sure and not found.passes(ways[one].end for one in good)
        }
    return good, set(ways) - good
