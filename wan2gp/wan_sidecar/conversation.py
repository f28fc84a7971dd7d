"""What is said while a job runs: events upward, cancels and files downward, and how long each may take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from wan2gp.engine_process.process import monotonic
from wan2gp.wan_sidecar import protocol
from wan2gp.wan_sidecar.errors import BadWord
from wan2gp.wan_sidecar.link import HostLink
from wan2gp.wan_sidecar.protocol import Ended
from wan2gp.wan_sidecar.work import (
    Event,
    Loaded,
    Loading,
    OnEvent,
    Preview,
    Said,
    Step,
    Supply,
    WanLimits,
    Want,
)

SLICE_S = 0.1
_Answer = TypeVar("_Answer")


class Conversation:
    """Of one job."""

    def __init__(
        self,
        number: int,
        preview: Path | None,
        limits: WanLimits,
        supply: Supply,
        on_event: OnEvent,
        cancelled: Callable[[], bool],
    ) -> None:
        self._number = number
        self._preview = preview
        self._limits = limits
        self._supply = supply
        self._on_event = on_event
        self._cancelled = cancelled
        self._kill_at: float | None = None
        self.raised: Exception | None = None
        """What one of the three callables raised; the job is cancelled then, and none is called again."""

    @property
    def cancel_asked(self) -> bool:
        return self._kill_at is not None

    def until_ended(self, link: HostLink) -> Ended:
        """Raises Gone, and BadWord also when it takes too long: the process is to be ended then."""
        heard_at = monotonic()
        while True:
            self._look(link)
            heard = link.hear(SLICE_S)
            if isinstance(heard, Ended) and heard.id == self._number:
                return heard
            if heard is not None:
                self._take(link, heard)
                heard_at = monotonic()  # a file that was waited for is no silence
            self._check(heard_at)

    def _look(self, link: HostLink) -> None:
        if self._kill_at is None and (self.raised is not None or self._call(self._cancelled)):
            self._kill_at = monotonic() + self._limits.cancel_grace_s
            link.send("cancel", id=self._number)

    def _check(self, heard_at: float) -> None:
        now = monotonic()
        if self._kill_at is not None and now > self._kill_at:
            raise BadWord(f"the engine did not stop within {self._limits.cancel_grace_s:g} s")
        if now - heard_at > self._limits.stuck_s:
            raise BadWord(f"the engine gave no sign of life for {self._limits.stuck_s:g} s")

    def _take(self, link: HostLink, heard: protocol.Heard) -> None:
        if isinstance(heard, protocol.Wanted):
            self._provide(link, heard)
            return
        if getattr(heard, "id", None) != self._number:
            raise BadWord(f"the engine's process said, out of turn: {type(heard).__name__}")
        event = self._event(heard)
        if event is not None and self.raised is None:
            self._call(lambda: self._on_event(event))

    def _event(self, heard: protocol.Heard) -> Event | None:
        if isinstance(heard, protocol.NowLoading):
            return Loading(heard.model)
        if isinstance(heard, protocol.NowLoaded):
            return Loaded(heard.model, heard.seconds)
        if isinstance(heard, protocol.Progress):
            return Step(heard.step, heard.steps, heard.phase, heard.status)
        if isinstance(heard, protocol.Remark):
            return Said(heard.text)
        return Preview(self._preview) if self._preview is not None else None

    def _provide(self, link: HostLink, wanted: protocol.Wanted) -> None:
        path: str | None = None
        why = "the task was cancelled"
        if self.raised is None and not self.cancel_asked:
            want = Want(wanted.url, wanted.repo, wanted.file, Path(wanted.place))
            found = self._call(lambda: self._supply(want))
            if isinstance(found, Path):
                path = str(found)
            elif found is not None:
                why = found
        link.send("have", want=wanted.want, path=path, why=why)

    def _call(self, call: Callable[[], _Answer]) -> _Answer | None:
        try:
            return call()
        except Exception as error:  # the caller's: it is raised to it when the engine is idle again
            self.raised = error
            return None
