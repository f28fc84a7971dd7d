"""A second :mod:`tests.vices.hog`, so that two of them can be told apart."""

from __future__ import annotations

from tests.vices.hog import Vice

__all__ = ["Vice"]
