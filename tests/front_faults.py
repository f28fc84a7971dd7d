"""What can go wrong between a worker and the project, ordered by a test and met by the next requests that fit."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["status", "hang", "reset", "cut_after", "cut_answer", "slow"]


@dataclass(eq=False)
class Fault:
    """``path`` is a part of the requests' path with its query; ``method`` narrows it down.

    - ``status``: answered by the front with ``status``, ``headers`` and ``body``; nobody else hears of the request.
    - ``hang``: taken and never answered; after ``delay_s``, if given, or when the fault is taken back, it is reset.
    - ``reset``: the connection breaks after ``after_bytes`` of the request's body went through; with 0 before anything.
    - ``cut_after``: what is behind the front does all of it, and the connection breaks instead of the answer.
    - ``cut_answer``: the connection breaks after ``after_bytes`` of the answer's body.
    - ``slow``: ``delay_s`` later than usual.
    """

    path: str
    kind: Kind
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | str | Mapping[str, Any] = b""
    times: int | None = 1
    """How many requests meet it; None: all until it is taken back."""
    delay_s: float = 0.0
    method: str | None = None
    skip: int = 0
    """How many requests that fit are let through before."""
    after_bytes: int = 0
    hits: int = 0
    """How many requests met it."""
    lifted: threading.Event = field(default_factory=threading.Event)

    @property
    def payload(self) -> tuple[bytes, str]:
        """The body and its content type."""
        if isinstance(self.body, Mapping):
            return json.dumps(self.body).encode(), "application/json; charset=utf-8"
        return self.body.encode() if isinstance(self.body, str) else self.body, "text/plain; charset=utf-8"

    def fits(self, method: str, path: str) -> bool:
        return self.path in path and self.method in (None, method)


class Faults:
    """Used by the test's thread and by the front's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._active.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """Requests that hang in it are reset. Safe to repeat."""
        with self._lock:
            self._active = [one for one in self._active if one is not fault]
        fault.lifted.set()

    def clear(self) -> None:
        with self._lock:
            gone, self._active = self._active, []
        for fault in gone:
            fault.lifted.set()

    def meet(self, method: str, path: str) -> Fault | None:
        """The first fault that this request meets; it counts as met."""
        with self._lock:
            for fault in self._active:
                if not fault.fits(method, path):
                    continue
                if fault.skip:
                    fault.skip -= 1
                elif fault.times is None or fault.hits < fault.times:
                    fault.hits += 1
                    return fault
            return None
