"""A ComfyUI that somebody else runs (``COMFY_URL``): looked for, looked at, let go of; never started or stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable

from wan2gp.comfy_sidecar.about import read_about
from wan2gp.comfy_sidecar.client import ComfyClient, without_credentials
from wan2gp.comfy_sidecar.errors import ApiError, SidecarError, StartAbandoned, Unreachable
from wan2gp.engine_process.process import monotonic
from wan2gp.handlers.api import HandlerContext, TaskFailure
from wan2gp.handlers.comfy_live import NOT_OURS, Live

PATIENCE_S = 10.0
"""How long it may be silent before a task: somebody else's prompt may hold its interpreter."""
LOOK_S = 10.0
"""Between two looks while nothing runs."""
LIFE_S = 300.0
"""One that was found so long ago may have been started anew meanwhile, with other nodes."""
STEP_S = 0.1


class ExternalServer:
    """For one thread at a time. ``closing`` is set when nobody waits for anything any more."""

    def __init__(self, url: str, context: HandlerContext, closing: threading.Event) -> None:
        self._url = url
        self._context = context
        self._closing = closing
        self._words = {"url": without_credentials(url), "whose": "external (COMFY_URL), not ours to restart"}
        self._found_s = self._looked_s = monotonic()
        self.live: Live | None = None

    def find(self, abandoned: Callable[[], bool]) -> Live:
        """Asked before each task: it may have ended, and nobody tells us.

        Raises :class:`TaskFailure` when it is silent, :class:`StartAbandoned` when ``abandoned``.
        """
        client = self._client()
        try:
            about = self._ask(client, abandoned)
        except (Unreachable, ApiError) as error:
            client.close()
            sentence = f"ComfyUI failed to become ready: {self.lose(self._silence(error))}"
            raise TaskFailure("comfy.not_ready", sentence, engine_down=True) from error
        except StartAbandoned:
            if self.live is None:
                client.close()
            raise
        return self._found(client, about)

    def look(self) -> None:
        """Now and then while nothing runs, so that `status` tells of its end, and of its return."""
        if monotonic() - self._looked_s < LOOK_S:
            return
        self._looked_s = monotonic()
        client = self._client()
        try:
            self._found(client, read_about(client.system_stats()))
        except (Unreachable, ApiError) as error:
            if self.live is None:
                client.close()
            else:
                self._context.event("comfy.external_lost", cause=self.lose(self._silence(error)))

    def lose(self, cause: str) -> str:
        """To let go of it is all that can be done. Returns the sentence."""
        self.drop()
        reason = cause + NOT_OURS
        self._context.engine_state("failed", **self._words, reason=reason)
        return reason

    def drop(self) -> None:
        """Close our connections to it."""
        live, self.live = self.live, None
        if live is not None:
            live.close()

    def _client(self) -> ComfyClient:
        return ComfyClient(self._url, local=False) if self.live is None else self.live.client

    def _ask(self, client: ComfyClient, abandoned: Callable[[], bool]) -> dict[str, str]:
        end_s = monotonic() + PATIENCE_S
        while True:
            try:
                return read_about(client.system_stats())
            except Unreachable:
                if monotonic() >= end_s:
                    raise
            if abandoned() or self._closing.wait(STEP_S):
                raise StartAbandoned

    def _found(self, client: ComfyClient, about: dict[str, str]) -> Live:
        self._looked_s = now_s = monotonic()
        if self.live is None or self.live.about != about or now_s - self._found_s > LIFE_S:
            if self.live is not None:
                self.live.stream.close()
            self.live, self._found_s = Live(client, None, "comfyui", about), now_s
            self._context.engine_state("ready", **self._words, **about)
        return self.live

    def _silence(self, error: SidecarError) -> str:
        return f"{self._words['url']} does not answer ({error})"
