"""What `wan2gp-ctl` may ask of the loop: each call is put to the loop's thread and waits a moment for its answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from wan2gp import __version__
from wan2gp.control import ControlRefused
from wan2gp.supervisor.backends import Backend
from wan2gp.supervisor.handler_desk import Freeing
from wan2gp.supervisor.inbox import Inbox
from wan2gp.supervisor.loop import Loop
from wan2gp.supervisor.readiness import obstacles
from wan2gp.supervisor.watches import Watches
from wan2gp.wan_weights import NoWeights, weights_of

T = TypeVar("T")
PATIENCE_S = 5.0
FREED = {
    Freeing.NOW: "handler {handler} was asked to give the GPU's memory back",
    Freeing.LATER: "handler {handler} works: it gives the GPU's memory back after its task",
    Freeing.NOTHING: "handler {handler} has nothing to give back: its process does not run, or comes or goes just now",
}


class LoopOperations:
    """See :class:`wan2gp.supervisor.control_desk.Operations`."""

    def __init__(self, loop: Loop, inbox: Inbox, backend: Backend, watches: Watches) -> None:
        self._loop = loop
        self._inbox = inbox
        self._backend = backend
        self._watches = watches

    def _ask(self, question: Callable[[], T]) -> T:
        try:
            return self._inbox.ask(question, PATIENCE_S)
        except TimeoutError as error:
            raise ControlRefused("busy", f"the supervisor did not answer within {PATIENCE_S:.0f}s") from error

    def status(self) -> Mapping[str, Any]:
        """A snapshot."""
        own = {
            "version": __version__,
            "pid": os.getpid(),
            "queue": self._backend.kind,
            "listening": getattr(self._backend.queue, "listening", False),
        }
        known = self._ask(self._loop.status)
        handlers = [{**handler, **self._watches.held(handler["name"])} for handler in known["handlers"]]
        found = self.obstacles()
        return {**known, **own, "handlers": handlers, "ready": not found, "obstacles": found}

    def obstacles(self) -> Mapping[str, str]:
        """Why no task would be taken now, by code. By the loop, so that one that hangs does not count as ready."""
        return self._ask(lambda: obstacles(self._loop))

    def restart(self, handler: str) -> str:
        """Replace the handler's process; what it runs goes back uncounted."""
        if not self._ask(lambda: self._loop.restart(handler)):
            raise self._unknown(handler, [*self._loop.handlers, "courier"])
        return f"handler {handler} starts anew; what it ran goes back to the queue uncounted"

    def free(self, handler: str) -> str:
        """Let the handler's engine give the GPU back."""
        when = self._ask(lambda: self._loop.free(handler))
        if when is None:
            raise self._unknown(handler, list(self._loop.handlers))
        return FREED[when].format(handler=handler)

    def publish_again(self, task_id: str | None) -> int:
        """Send what could not be published now."""
        return self._ask(lambda: self._loop.publish_again(task_id))

    def models(self, models: Sequence[str], *, fetch: bool) -> Sequence[Mapping[str, Any]]:
        """The weights that the definitions of these models name."""
        path = self._loop.config.wan2gp_path
        if not path:
            raise ControlRefused("bad_request", "this worker has no Wan2GP: set WAN2GP_PATH to its checkout")
        checkout = Path(path).expanduser().absolute()
        try:
            urls = list(dict.fromkeys(url for model in models for url in weights_of(checkout, model)))
        except NoWeights as error:
            raise ControlRefused("bad_request", str(error)) from error
        return self._ask(lambda: self._loop.fetch_models(urls) if fetch else self._loop.models.describe(urls))

    @staticmethod
    def _unknown(handler: str, known: list[str]) -> ControlRefused:
        return ControlRefused("unknown_handler", f"no handler is named {handler}: there are {', '.join(known)}")

    def drain(self) -> None:
        """Claim nothing more."""
        self._ask(self._loop.drain)

    def resume(self) -> None:
        """Claim again."""
        if not self._ask(self._loop.resume):
            raise ControlRefused("wrong_status", "the supervisor stops already")

    def cancel_running(self, task_id: str) -> bool:
        """Tell the handler that has the task."""
        return self._ask(lambda: self._loop.cancel(task_id))
