"""The values on the links: frames, sound, clips. Frames are made anew at each reading: memory stays small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]
    """Height x width x 3, RGB."""

HELD_BYTES = 256 * 1024 * 1024
"""Frames that fit in this much memory are kept; others are decoded again at each pass."""


@dataclass(frozen=True)
class Frames:
    """An IMAGE: `count` pictures of one size. `read` starts a new pass over them."""

    count: int
    width: int
    height: int
    read: Callable[[], Iterator[Pixels]]

    def __str__(self) -> str:
        return f"<{self.count} frames {self.width}x{self.height}>"

    def mapped(self, change: Callable[[Pixels], Pixels], width: int, height: int) -> Frames:
        return Frames(self.count, width, height, lambda: map(change, self.read()))

    def first(self, count: int) -> Frames:
        return Frames(count, self.width, self.height, lambda: islice(self.read(), count))

    def back_and_forth(self) -> Frames:
        """There and back without repeating the ends."""
        count = self.count + max(self.count - 2, 0)
        return Frames(count, self.width, self.height, lambda: chain(self.read(), self._back()))

    def _back(self) -> Iterator[Pixels]:
        """From the last but one to the second, in as many passes as keep the memory small."""
        fitting = max(1, HELD_BYTES // (self.width * self.height * 3))
        for end in range(self.count - 1, 1, -fitting):
            held = list(islice(self.read(), max(1, end - fitting), end))
            while held:
                yield held.pop()

    def followed_by(self, other: Frames) -> Frames:
        count = self.count + other.count
        return Frames(count, self.width, self.height, lambda: chain(self.read(), other.read()))


def of_list(pictures: list[Pixels], width: int, height: int) -> Frames:
    return Frames(len(pictures), width, height, lambda: iter(pictures))


@dataclass(frozen=True)
class Audio:
    """An AUDIO: a part of the sound of a file, decoded when it is needed. The file may have no sound."""

    path: Path
    start_s: float = 0.0
    duration_s: float | None = None

    def __str__(self) -> str:
        return f"<sound of {self.path.name}>"


@dataclass(frozen=True)
class Clip:
    """A VIDEO. `source` is the file it was loaded from, unchanged, or None."""

    frames: Frames
    fps: Fraction
    audio: Audio | None
    source: Path | None = None

    def __str__(self) -> str:
        return f"<clip of {self.frames.count} frames>"


def png_texts(prompt: Any, extra_pnginfo: Any) -> dict[str, Any]:
    """What ComfyUI writes into a file: the prompt and whatever the client gave as extra_pnginfo."""
    texts = {} if prompt is None else {"prompt": prompt}
    return texts | (extra_pnginfo or {})
