"""How long a transfer is tried: failures that pass lead to growing pauses, a stop ends every wait."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from wan2gp.supervisor.publish import PublishFailed
from wan2gp.supervisor.upload_file import check_stop

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Patience:
    """``_s`` are seconds. ``tries``: in a row without any progress, before whoever asked has to wait."""

    tries: int = 4
    first_s: float = 0.5
    max_s: float = 8.0
    connect_s: float = 5.0
    write_s: float = 30.0
    """The longest that the network takes nothing more of a body."""
    answer_s: float = 60.0

    def persist(self, step: Callable[[], _Result], stop: threading.Event) -> _Result:
        """``step()``, again after failures that pass. It must be safe to repeat."""
        failures = 0
        while True:
            check_stop(stop)
            try:
                return step()
            except PublishFailed as failure:
                failures += 1
                self.wait(failures, failure, stop)

    def wait(self, failures: int, failure: PublishFailed, stop: threading.Event) -> None:
        """Pause after one more failure; raises it when that is no use, and ends at once with ``stop``."""
        check_stop(stop)
        if self._give_up(failures, failure):
            raise failure
        stop.wait(self._pause_s(failures, failure.retry_after_s))
        check_stop(stop)

    def _pause_s(self, failures: int, asked_s: float | None) -> float:
        """Before the next try, with jitter; ``asked_s``: what the other side wants at least."""
        grown: float = self.first_s * 2.0 ** min(failures - 1, 10)
        return max(min(self.max_s, grown) * random.uniform(0.5, 1.0), asked_s or 0.0)

    def _give_up(self, failures: int, failure: PublishFailed) -> bool:
        """True when the failure is the caller's to deal with."""
        too_long = (failure.retry_after_s or 0.0) > self.max_s
        return failure.permanent or failures >= self.tries or too_long


def apart(work: Callable[[], None], stop: threading.Event) -> None:
    """``work()`` in a thread of its own, so that ``stop`` ends the wait for it at once, whatever call it hangs in.

    What is left behind notices at its next step, at the latest when its time-out runs out. Raises what it raised.
    """
    over = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # it is raised where somebody waits for it
            errors.append(error)
        finally:
            over.set()

    threading.Thread(target=run, name="transfer", daemon=True).start()
    while not over.wait(0.05):
        check_stop(stop)
    if errors:
        raise errors[0]
