"""Looks at disks that may not answer: a network volume that hangs holds up a thread, and nobody who waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Of = TypeVar("Of")


class Answer(Generic[Of]):
    """What a look finds, once it has."""

    def __init__(self, look: Callable[[], Of]) -> None:
        self._look = look
        self._found: Of | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="look", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found = self._look()
        except BaseException as error:  # raised again where it is asked for
            self._error = error

    def wait(self, seconds: float) -> bool:
        """Whether there is an answer by then."""
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def get(self, otherwise: Of) -> Of:
        """It, or ``otherwise`` as long as there is none. Raises what the look raised."""
        if self._thread.is_alive():
            return otherwise
        if self._error is not None:
            raise self._error
        return self._found  # type: ignore[return-value]


def ask(looks: Mapping[Key, Callable[[], Of]], seconds: float) -> dict[Key, Answer[Of]]:
    """All at once, and wait for them, but no longer than that."""
    answers = {key: Answer(look) for key, look in looks.items()}
    ends = time.monotonic() + seconds
    for answer in answers.values():
        answer.wait(ends - time.monotonic())
    return answers
