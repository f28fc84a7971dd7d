"""The same as `tardy`, in a process of its own."""

from __future__ import annotations

from tests.vices.tardy import Vice

__all__ = ["Vice"]
