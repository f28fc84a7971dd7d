"""Searching for inputs that break a promise: a bounded slice for every run, and a long search that keeps what it finds.

A promise is a function of one input that raises when it is broken. The corpus, ``tests/corpus/<kind>/``, holds inputs
that once broke it or nearly did, each a file; they are tried first, always. A long search writes its smallest finding
there. ``WAN2GP_FUZZ_S``: seconds that all long searches take together, 600 by default.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

CORPUS = Path(__file__).parent / "corpus"
SECONDS = float(os.environ.get("WAN2GP_FUZZ_S", "600"))
LONG_SEARCHES = 5
"""So many tests share the time."""
SHARE_S = SECONDS / LONG_SEARCHES
ROUND = 500
"""Examples between two looks at the clock."""
Promise = Callable[[Any], None]


def corpus(kind: str) -> Iterator[Any]:
    """Texts, bytes or JSON values, by the files' suffixes."""
    for path in sorted((CORPUS / kind).iterdir()):
        if path.suffix == ".json":
            yield json.loads(path.read_text())
        elif path.suffix == ".txt":
            yield from path.read_text(encoding="utf-8").splitlines()
        else:
            yield path.read_bytes()


def keep(kind: str, found: Any) -> Path:
    """Put a finding into the corpus."""
    content = found if isinstance(found, bytes) else json.dumps(found).encode()
    suffix = ".bin" if isinstance(found, bytes) else ".json"
    path = CORPUS / kind / f"found-{hashlib.sha256(content).hexdigest()[:12]}{suffix}"
    path.write_bytes(content)
    return path


def slice_of(promise: Promise, strategy: SearchStrategy[Any], examples: int) -> None:
    """The same examples each time."""
    _round(promise, strategy, settings(max_examples=examples, derandomize=True), None)


def search(kind: str | None, promise: Promise, strategy: SearchStrategy[Any], seconds: float = SHARE_S) -> int:
    """Other examples each time, for ``seconds``. Returns how many rounds there were; raises the first finding, which
    is put into the corpus of that ``kind``, if there is one."""
    last: list[Any] = []

    def watched(example: Any) -> None:
        try:
            promise(example)
        except BaseException:
            last[:] = [example]  # hypothesis ends with the smallest
            raise

    end, rounds = time.monotonic() + seconds, 0
    try:
        while rounds == 0 or time.monotonic() < end:
            _round(watched, strategy, settings(max_examples=ROUND), time.time_ns())
            rounds += 1
    except BaseException as error:
        if last and kind is not None:
            keep(kind, last[0])
        raise error
    return rounds


def _round(promise: Promise, strategy: SearchStrategy[Any], bounds: settings, seed: int | None) -> None:
    @settings(bounds, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=PHASES)
    @given(strategy)
    def tried(example: Any) -> None:
        promise(example)

    (tried if seed is None else hypothesis.seed(seed)(tried))()


PHASES = (Phase.explicit, Phase.generate, Phase.target, Phase.shrink)
