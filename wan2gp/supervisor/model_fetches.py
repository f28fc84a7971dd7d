"""Weights that the operator has fetched before any task needs them: a few at a time, by the courier."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wan2gp.errors import error_message
from wan2gp.model_places import WEIGHTS, place_of
from wan2gp.protocol import Failed, Fetched, Source
from wan2gp.supervisor.queue import ClaimedTask
from wan2gp.supervisor.running import Running
from wan2gp.supervisor.wanted import MayFetch, Named, refusal

MODELS = "models"
"""In place of a handler's name, and of a task's id."""
AT_ONCE = 2
MOST = 1000
"""Files that are remembered, those that are done included."""
WAITING, FETCHING, KEPT, FAILED = "waiting", "fetching", "kept", "failed"


@dataclass
class _File:
    url: str
    running: Running
    state: str = WAITING
    error: str | None = None

    @property
    def sources(self) -> dict[str, Source]:
        return {str(place_of(WEIGHTS, self.url)): Source(self.url, WEIGHTS)}


class ModelFetches:
    """Used from the loop's thread."""

    def __init__(
        self,
        fetch: Callable[[Running, Mapping[str, Source]], None],
        may_fetch: MayFetch,
        clock: Callable[[], float],
    ) -> None:
        self._fetch = fetch
        self._may_fetch = may_fetch
        self._clock = clock
        self._files: dict[str, _File] = {}
        self._count = itertools.count(1)

    def want(self, urls: Iterable[str]) -> None:
        """Fetch them, those that failed before once more."""
        for url in urls:
            known = self._files.pop(url, None)
            if known is not None and known.state in (WAITING, FETCHING):
                self._files[url] = known
                continue
            file = self._files[url] = _File(url, self._pretended())
            refused = refusal(Named({}), file.sources, 1, self._may_fetch)
            if refused is not None:
                file.state, file.error = FAILED, error_message(refused.code, refused.message)
        done = [url for url, file in self._files.items() if file.state in (KEPT, FAILED)]
        for url in done[: max(0, len(self._files) - MOST)]:
            del self._files[url]
        self._go_on()

    def _pretended(self) -> Running:
        """The courier's desk serves tasks: this is one as far as it needs to know."""
        number = next(self._count)
        task = ClaimedTask(f"{MODELS}-{number}", MODELS, {}, 1, 1, token="", lease_id=f"{number:08x}")
        return Running(task, MODELS, "", self._clock())

    def _go_on(self) -> None:
        busy = sum(file.state == FETCHING for file in self._files.values())
        for file in [file for file in self._files.values() if file.state == WAITING][: max(0, AT_ONCE - busy)]:
            file.state = FETCHING
            self._fetch(file.running, file.sources)

    def answered(self, running: Running, answer: Fetched) -> None:
        """By the courier's desk."""
        for file in self._files.values():
            if file.running is running:
                failure: Failed | None = answer.failure
                file.state = KEPT if failure is None else FAILED
                file.error = None if failure is None else error_message(failure.code, failure.message)
        self._go_on()

    def describe(self, urls: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """All that were wanted, or some."""
        asked = None if urls is None else set(urls)
        return [
            {
                "file": str(place_of(WEIGHTS, file.url)),
                "state": file.state,
                "detail": file.running.detail if file.state == FETCHING else None,
                "error": file.error,
            }
            for file in self._files.values()
            if asked is None or file.url in asked
        ]
