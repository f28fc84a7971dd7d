"""Whether a prompt's websocket can be believed: it is kept open, replaced when silent, and its silence gets a meaning.

Three things look alike from here: a node that says nothing for an hour, a link that delivers nothing any more, and a
server whose worker thread is dead. The first and the last are told apart by silence on a connection that is known to
deliver; one that never delivered anything but its greeting proves nothing.
"""

from __future__ import annotations

from wan2gp.comfy_sidecar.events import EventStream
from wan2gp.comfy_sidecar.prompt_progress import PromptProgress
from wan2gp.engine_process.process import monotonic

RECONNECT_S, GAP_S = 5.0, 1.0
"""Between two tries to connect again; and before the first: the server must have noticed the end of the old one, since
two under one id make both deaf."""
QUIET_S = 60.0
"""A connection that was silent for so long is replaced, once; twice as long before the next time."""


class Hearing:
    """The stream of one prompt. The id stays: the prompt was posted with it, and its messages go there only."""

    def __init__(self, stream: EventStream, progress: PromptProgress, stuck_s: float) -> None:
        self._stream = stream
        self._progress = progress
        self._shortest_quiet_s = min(QUIET_S, stuck_s / 4) if stuck_s else QUIET_S
        self._quiet_s = self._shortest_quiet_s
        self._heard_s: float | None = None
        self._since_s = monotonic()
        self._next_connect_s = 0.0
        self.refused = False
        """Whether it broke and could not be made again, since the last time that it was there."""

    @property
    def hears(self) -> bool:
        """Whether progress, if there were any, would be heard."""
        return self._stream.alive and self._stream.delivers

    def keep(self) -> None:
        """Call often. Connects what broke, and breaks what is silent."""
        now_s = monotonic()
        if self._stream.alive:
            self._next_connect_s = now_s + GAP_S
            self.refused = False
            self._replace_when_silent(now_s)
        elif now_s >= self._next_connect_s:
            self.refused = not self._stream.connect()
            self._next_connect_s = monotonic() + RECONNECT_S

    def _replace_when_silent(self, now_s: float) -> None:
        if self._progress.last_message_s != self._heard_s:
            self._heard_s, self._quiet_s = self._progress.last_message_s, self._shortest_quiet_s
            self._since_s = now_s
        elif now_s - self._since_s > self._quiet_s:
            self._since_s = now_s
            self._quiet_s *= 2
            self._stream.close()
