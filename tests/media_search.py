"""Runs as a program: looks at spoilt media with the probes of inputs and results, in a process that may die of them.

``python -m tests.media_search FOLDER SECONDS SEED``: one slice of fixed examples for 0 seconds, else others until the
time is up. In ``FOLDER``, ``example.<suffix>`` is the file that was looked at last. Its memory is bounded.
"""

from __future__ import annotations

import resource
import sys
import time
import warnings
from pathlib import Path

from tests.fuzzing import corpus, search, slice_of
from tests.promises_media import EDITS, edited, is_judged_in_words, originals

SUFFIX = {"image": ".png", "video": ".mp4", "audio": ".wav"}
SLICE = 60
MEMORY = 6 << 30


def main(folder: Path, seconds: float) -> None:
    """Raises what breaks the promise."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))
    whole = originals()

    def promise(example: tuple[int, list[tuple[str, int, bytes]]]) -> None:
        kind, content = whole[example[0] % len(whole)]
        judge(kind, edited(content, example[1]))

    def judge(kind: str, content: bytes) -> None:
        is_judged_in_words(kind, content, folder / f"example{SUFFIX[kind]}")

    for kind, content in whole:
        judge(kind, content)
    for content in corpus("media"):
        for kind in SUFFIX:
            judge(kind, content)
    if seconds:
        began = time.monotonic()
        rounds = search(None, promise, EDITS, seconds)
        print(f"{rounds} rounds in {time.monotonic() - began:.0f} s")
    else:
        slice_of(promise, EDITS, SLICE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
