"""What somebody may have meant by a name that is not there. Bounded: graphs are strangers', comparing names is slow."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

COMPARED = 2000
"""Names that are looked at."""
LONGEST = 100
"""A longer name is not compared, characters: the time grows with the product of both lengths."""
SHOWN, SHOWN_CHARS = 5, 60


def closest(wanted: str, present: Iterable[str], most: int = 3, cutoff: float = 0.5) -> list[str]:
    """The names most like ``wanted``, best first; ``cutoff`` 0..1 is how alike they must be."""
    if len(wanted) > LONGEST:
        return []
    names = [name for name in islice(present, COMPARED) if len(name) <= LONGEST]
    return difflib.get_close_matches(wanted, names, n=most, cutoff=cutoff)


def there_is(wanted: str, present: Iterable[str]) -> str:
    """``; there is 'a', 'b'``: the names most like ``wanted``, else the first ones; nothing when there are none."""
    names = list(islice(present, COMPARED))
    found = closest(wanted, names) or names[:SHOWN]
    return f"; there is {', '.join(repr(name[:SHOWN_CHARS]) for name in found)}" if found else ""
