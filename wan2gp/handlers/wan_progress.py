"""How far a generation is, from what its engine says: a fraction of the whole, the step, and the time to its end.

The engine's phases are read from shared state when their event is handled, and may be stale: what counts is its steps.
They begin anew with each window of a long video and with each result.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from wan2gp.engine_process.process import monotonic
from wan2gp.handlers.api import Job
from wan2gp.wan_sidecar.work import Event, Loaded, Loading, Preview, Step

BEGIN, END = 0.02, 0.95
"""Of the whole run: where the results begin and end. Before are inputs, behind are files."""
LOAD, STEPS = 0.1, 0.9
"""Of one result: where its load ends, if there is one, and its steps."""
WINDOW = re.compile(r"Window (\d{1,4})/(\d{1,4})")
DECODING = ("decoding", "downloading_output")
SMOOTH = 0.3
"""How much the newest step counts in the time that one takes."""
LONGEST_DETAIL = 200


class WanProgress:
    """Of one task; what it hears it reports. ``results``: how many are made."""

    def __init__(self, job: Job, results: int, clock: Callable[[], float] = monotonic) -> None:
        self._job = job
        self._results = max(1, results)
        self._clock = clock
        self._done = 0
        self._fraction = 0.0
        self._window, self._windows = 1, 1
        self._step: int | None = None
        self._steps: int | None = None
        self._step_s: float | None = None
        """Of one step, smoothed; seconds."""
        self._decode_s: float | None = None
        """Of one result; known when one has been made."""
        self._stepped_at: float | None = None
        self._decoding_at: float | None = None
        self._preview: str | None = None
        self._phase = "step"
        self._detail: str | None = None

    def hear(self, event: Event) -> None:
        """One event of the result that is being made."""
        if isinstance(event, Loading):
            self._tell(self._within(0.0), "load", event.model)
        elif isinstance(event, Loaded):
            self._tell(self._within(LOAD), "load", event.model)
        elif isinstance(event, Preview):
            self._preview = Path(event.path).name
            self._tell(0.0, self._phase, self._detail)
        elif isinstance(event, Step):
            self._stepped(event)

    def hear_finishing(self, event: Event) -> None:
        """One event of what is done with a result that is there: the end is near, how near is not told."""
        if isinstance(event, Step):
            self._tell(END, "decode", event.status[:LONGEST_DETAIL] or None)

    def one_done(self) -> None:
        """A result has been made; the next begins."""
        now = self._clock()
        if self._decoding_at is not None:
            self._decode_s = now - self._decoding_at
        self._done += 1
        self._begin()
        self._tell(self._within(0.0), "decode", None)

    def again(self) -> None:
        """The same result is made once more."""
        self._begin()

    def _begin(self) -> None:
        self._window, self._windows = 1, 1
        self._step = self._steps = None
        self._stepped_at = self._decoding_at = None

    # --- steps -------------------------------------------------------------------------------------------------------

    def _stepped(self, event: Step) -> None:
        now = self._clock()
        if (found := WINDOW.search(event.status)) is not None:
            self._enter(int(found[1]), int(found[2]))
        self._count(event.step, event.steps, now)
        self._phase = "decode" if self._decodes(event) else "step"
        if self._phase == "decode" and self._decoding_at is None:
            self._decoding_at = now
        self._detail = event.status[:LONGEST_DETAIL] or None
        self._tell(self._within(self._share()), self._phase, self._detail)

    def _enter(self, window: int, windows: int) -> None:
        if window != self._window:
            self._stepped_at = self._decoding_at = None
            self._step = None
        self._window, self._windows = max(1, window), max(1, windows, window)

    def _count(self, step: int | None, steps: int | None, now: float) -> None:
        """Between two steps goes the time of one; the first comes with what was prepared for it."""
        if step is None or not steps or steps < 0 or not 0 <= step <= steps:
            return
        if self._step is not None and step > self._step and self._stepped_at is not None:
            took = (now - self._stepped_at) / (step - self._step)
            self._step_s = took if self._step_s is None else SMOOTH * took + (1 - SMOOTH) * self._step_s
        if self._step is None or step != self._step:
            self._stepped_at = now
        if self._step is not None and step < self._step:  # another phase, or a window that says nothing of it
            self._decoding_at = None
        self._step, self._steps = step, steps

    def _decodes(self, event: Step) -> bool:
        over = self._steps is None or self._step is None or self._step >= self._steps
        return over and event.phase in DECODING

    def _share(self) -> float:
        """Of the result that is being made."""
        step = self._step / self._steps if self._step is not None and self._steps else 0.0
        return LOAD + (STEPS - LOAD) * (self._window - 1 + step) / self._windows

    # --- telling -----------------------------------------------------------------------------------------------------

    def _within(self, share: float) -> float:
        return BEGIN + (END - BEGIN) * min(1.0, (self._done + share) / self._results)

    def _tell(self, fraction: float, phase: str, detail: str | None) -> None:
        """Never less than before: steps begin anew, what was done does not."""
        self._fraction = max(self._fraction, fraction)
        self._job.progress(
            self._fraction,
            phase,
            step=self._step,
            steps=self._steps,
            detail=detail,
            eta_s=self._eta_s() if phase in ("step", "decode") else None,
            preview=self._preview,
        )

    def _eta_s(self) -> float | None:
        """To the end of all results. What comes after the steps is known from the second result on."""
        if self._step_s is None or not self._steps:
            return None
        now = self._clock()
        left = self._steps - (self._step or 0)
        left += self._steps * (self._windows - self._window)
        left += self._steps * self._windows * (self._results - self._done - 1)
        found = max(0, left) * self._step_s
        if self._stepped_at is not None and self._decoding_at is None:
            found -= min(now - self._stepped_at, self._step_s)
        if self._decode_s is not None:
            gone = now - self._decoding_at if self._decoding_at is not None else 0.0
            found += max(0.0, self._decode_s - gone) + self._decode_s * (self._results - self._done - 1)
        return round(max(0.0, found), 1)
