"""Lengths and sizes that a model can make: the nearest to what was asked, and both are told.

A video model works in groups of frames and blocks of pixels. The engine cuts down to the grid in silence (80 frames
become 77, 720 lines 704); here the count goes to the nearest that there is, and of two equally near to the smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wan2gp.handlers.wan_values import Pixels, Seconds


@dataclass(frozen=True)
class FrameRule:
    """A model makes ``offset + n × step`` frames and never fewer than ``least``."""

    least: int = 5
    step: int = 4
    offset: int = 1

    def nearest(self, asked: int) -> int:
        """The length that is made for ``asked`` frames."""
        if self.step <= 1:
            return max(asked, self.least)
        below = (asked - self.offset) // self.step * self.step + self.offset
        found = below if asked - below <= below + self.step - asked else below + self.step
        return max(found, self._first)

    @property
    def _first(self) -> int:
        return self.offset + math.ceil(max(0, self.least - self.offset) / self.step) * self.step


def frames_of(asked: int | Seconds, fps: float) -> int:
    """``asked`` in frames, before the model's grid."""
    return asked if isinstance(asked, int) else max(1, round(asked.seconds * fps))


def on_grid(size: Pixels, block: int) -> Pixels:
    """Cut down to whole blocks, as the engine does; at least one."""
    return Pixels(max(block, size.width // block * block), max(block, size.height // block * block))


def at_most(size: Pixels, longest: int) -> Pixels:
    """Scaled down so that no side is longer, in the same shape; 0: any size."""
    side = max(size.width, size.height)
    return size if not longest or side <= longest else _scaled(size, longest / side)


def of_area(size: Pixels, area: int) -> Pixels:
    """As many pixels as ``area``, about, in the same shape."""
    return _scaled(size, math.sqrt(area / (size.width * size.height)))


def _scaled(size: Pixels, factor: float) -> Pixels:
    return Pixels(max(1, round(size.width * factor)), max(1, round(size.height * factor)))
