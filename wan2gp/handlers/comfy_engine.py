"""The ComfyUI under the handler: started when first needed, watched, started again after a death, never latched."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from wan2gp.comfy_sidecar.errors import (
    NotInstalled,
    NotReady,
    SidecarError,
    StartAbandoned,
    StartFailed,
)
from wan2gp.comfy_sidecar.server import ComfyServer, Installation
from wan2gp.comfy_sidecar.vitals import settle
from wan2gp.comfy_sidecar.watchdog import Backoff, Limits, Observation, Verdict, judge
from wan2gp.denials import denied_connection, denied_paths
from wan2gp.engine_process.process import monotonic
from wan2gp.handlers.api import HandlerContext, Interrupted, TaskFailure
from wan2gp.handlers.comfy_errors import start_trouble
from wan2gp.handlers.comfy_external import ExternalServer
from wan2gp.handlers.comfy_live import Live
from wan2gp.handlers.comfy_params import ComfySettings
from wan2gp.handlers.comfy_warmup import WarmUpFailed, warm_up
from wan2gp.processes import held

LOOK_S = 0.1
"""Between two looks at an idle server."""
WAIT_STEP_S = 0.1
SETTLE_S = 2.0
"""Longest wait for the end of what a server does after a prompt; it collects garbage for up to a second."""
DENIALS_TOLD = 50
"""After so many paths no more are told; the log has them all."""
OUR_FOLDER = "wan2gp"
"""Below the server's input and output directories: everything that runs put there."""


class ComfyEngine:
    """Every method but the watcher's runs in the handler's main thread."""

    def __init__(self, context: HandlerContext, settings: ComfySettings) -> None:
        self._context = context
        self._settings = settings
        self._installation = Installation(
            settings.path, settings.python, settings.args, settings.port, tuple(settings.ports), settings.connects
        )
        self._home = context.home / "engine"
        self._server: ComfyServer | None = None
        self._live: Live | None = None
        self._backoff = Backoff()
        self._last_cause: str | None = None
        self._greeted = False
        self._swept = False
        self._used_s = monotonic()
        self._warmed: ComfyServer | None = None
        """The server that the warm-up workflow was tried on."""
        self._denied: set[str] = set()
        self._unconnected = False
        self._turn = threading.Lock()
        """Held while a task runs or the server is handled: the watcher looks only when it is free."""
        self._closing = threading.Event()
        self._elsewhere = ExternalServer(settings.url, context, self._closing) if settings.url else None
        self._watcher: threading.Thread | None = None

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """The engine is in use: the watcher keeps its hands off."""
        with self._turn:
            try:
                yield
            finally:
                self._used_s = monotonic()
                self._tell_denials()

    # --- starting ----------------------------------------------------------------------------------------------

    def ensure(
        self,
        event: Callable[..., None],
        abandoned: Callable[[], bool],
        *,
        for_task: bool,
    ) -> Live:
        """A server that answers. Raises :class:`TaskFailure`, or :class:`Interrupted` when ``abandoned``.

        ``event`` states facts; ``for_task``: somebody waits for a result, not only for the engine.
        """
        self._notice_death()
        try:
            if self._elsewhere is not None:
                self._live = self._elsewhere.find(abandoned)
                self._watch()
                return self._live
            return self._live or self._own(event, abandoned, for_task)
        except NotInstalled as error:
            detail = {"reason": str(error)}
            raise TaskFailure("comfy.not_installed", "ComfyUI not available on this worker", detail=detail) from error
        except StartAbandoned as error:
            raise Interrupted from error

    def _own(self, event: Callable[..., None], abandoned: Callable[[], bool], for_task: bool) -> Live:
        self._installation.check()
        if for_task and not self._greeted and self._server is None:
            event("comfy.first_task")
        self._greeted = self._greeted or for_task
        self._await_backoff(event, abandoned)
        try:
            self._start_and_wait(event, abandoned)
        except StartFailed as error:
            raise self._failed_start(event, "comfy.start_failed", "ComfyUI startup failed", error) from error
        except NotReady as error:
            raise self._failed_start(event, "comfy.not_ready", "ComfyUI failed to become ready", error) from error
        assert self._server is not None
        server, self._last_cause = self._server, None
        self._live = Live(server.client, server, self._installation.name, server.about)
        failed = server.failed_imports()
        self._context.engine_state(
            "ready", pid=server.process.pid, port=server.port, **server.about, custom_nodes_failed=failed
        )
        event("comfy.started_ok")
        self._tell_denials()
        for words in failed:
            event("comfy.log_warning", text=f"ComfyUI started without a custom node: {words}")
        self._watch()
        return self._live

    def _await_backoff(self, event: Callable[..., None], abandoned: Callable[[], bool]) -> None:
        if self._server is not None or self._last_cause is None:
            return
        due_s = self._backoff.remaining_s(monotonic())
        event("comfy.restarting", delay_s=round(due_s, 2), cause=self._last_cause)
        end_s = monotonic() + due_s
        while (left_s := end_s - monotonic()) > 0:
            if abandoned():
                raise StartAbandoned
            self._closing.wait(min(left_s, WAIT_STEP_S))

    def _start_and_wait(self, event: Callable[..., None], abandoned: Callable[[], bool]) -> None:
        """One more try on another port when somebody took ours between the look and the bind."""
        self._start(event)
        try:
            self._wait(abandoned)
        except StartFailed:
            if self._server is None or not self._server.port_was_taken:
                raise
            self._discard(0)
            self._start(event, other_port=True)
            self._wait(abandoned)
        event("comfy.ready")
        self._warm_up(event, abandoned)

    def _warm_up(self, event: Callable[..., None], abandoned: Callable[[], bool]) -> None:
        """Once in a server's life. One that dies of it is replaced by one that is not asked to."""
        path, server = self._settings.warmup_workflow, self._server
        assert server is not None
        if not path or self._warmed is server:
            return
        self._warmed = server
        event("comfy.warming_up", path=path)
        live = Live(server.client, server, self._installation.name, server.about)  # for its catalogue
        try:
            seconds = warm_up(server, Path(path), self._settings.start_timeout_s, live.node_info, abandoned)
        except WarmUpFailed as error:
            event("comfy.warm_up_failed", reason=str(error))
            if error.spoilt:
                self._discard(0)
                self._start(event)
                self._warmed = self._server
                self._wait(abandoned)
                event("comfy.ready")
        else:
            event("comfy.warmed_up", seconds=round(seconds, 2))

    def _start(self, event: Callable[..., None], *, other_port: bool = False) -> None:
        if self._server is not None:  # a start that was abandoned goes on
            return
        self._sweep()
        event("comfy.starting", path=self._installation.path)
        self._server = ComfyServer.start(self._installation, self._home, other_port=other_port)
        pid, port = self._server.process.pid, self._server.port
        self._context.engine_state("starting", pid=pid, port=port)
        event("comfy.started", pid=pid)

    def _wait(self, abandoned: Callable[[], bool]) -> None:
        assert self._server is not None
        self._server.wait_ready(self._settings.start_timeout_s, abandoned)

    def _failed_start(self, event: Callable[..., None], code: str, sentence: str, error: SidecarError) -> TaskFailure:
        """Nothing is left and nothing is latched: the next call tries again, a little later."""
        trouble = start_trouble(self._server.process.lines() if self._server is not None else ())
        reason = f"{sentence}: {trouble}{error}"
        self._discard(0)
        self._backoff.died(monotonic(), 0.0)
        self._last_cause = sentence
        event("comfy.start_failed", reason=reason)
        self._context.engine_state("failed", reason=reason)
        return TaskFailure(code, reason, engine_down=True)

    def _sweep(self) -> None:
        """What an earlier life of this handler left; its processes ended with it."""
        if not self._swept:
            for leftover in (*(self._home / name / OUR_FOLDER for name in ("input", "output")), self._home / "temp"):
                shutil.rmtree(leftover, ignore_errors=True)
            self._swept = True

    # --- ending ------------------------------------------------------------------------------------------------

    def lost(self, cause: str) -> None:
        """The server is gone or must go: end what is left of it; the next task starts another, after a pause."""
        if self._elsewhere is not None:
            self._live = None
            self._context.event("comfy.external_lost", cause=self._elsewhere.lose(cause))
            return
        lived_s = self._server.lived_s() if self._server else 0.0
        self._discard(0)
        self._backoff.died(monotonic(), lived_s)
        self._last_cause = cause
        self._context.event("comfy.stopped", cause=cause)
        self._context.engine_state("stopped", cause=cause)

    def proved(self) -> None:
        """A prompt ended well: a death from now on is the first in a row."""
        self._backoff.proved()

    def retire(self, cause: str, grace_s: float = 1.0) -> None:
        """End a healthy server; the next start needs no pause."""
        if self._server is None:
            return
        self._discard(grace_s)
        self._context.event("comfy.stopped", cause=cause)
        self._context.engine_state("stopped", cause=cause)

    def free(self) -> None:
        """Ask the server to give models and caches back, if there is one."""
        if self._asked_to_free():
            self._context.event("comfy.freed")

    def unload(self) -> None:
        """Give the GPU's memory back, for another engine: a server that cannot be asked to is ended."""
        if self._live is not None and not self.make_room():
            self.retire("it could not be asked to free its memory")

    def make_room(self) -> bool:
        """The same, done before the next prompt: a request that comes while the server collects its garbage, as it
        does at the end of a prompt, is not noticed before the end of the next. So ask again when it is quiet."""
        if not self._asked_to_free():
            return False
        if self._server is not None:
            settle(self._server.process, SETTLE_S)
        else:
            self._closing.wait(SETTLE_S)
        self.free()
        self._closing.wait(WAIT_STEP_S)
        return True

    def _asked_to_free(self) -> bool:
        if self._live is None:
            return False
        try:
            self._live.client.free()
        except SidecarError as error:  # it is only a request; a server in trouble is found elsewhere
            self._context.event("comfy.log_warning", text=f"ComfyUI could not be asked to free its memory: {error}")
            return False
        return True

    def close(self) -> None:
        """End everything. Safe to call again."""
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join()
        self._discard(0.5)

    def _discard(self, grace_s: float) -> None:
        self._tell_denials()
        live, self._live = self._live, None
        server, self._server = self._server, None
        if self._elsewhere is not None:
            self._elsewhere.drop()
        elif live is not None:
            live.close()
        if server is not None:
            server.stop(grace_s)

    def _tell_denials(self) -> None:
        """What the server's nodes were not allowed, each once in this process's life."""
        if self._server is None:
            return
        for path in denied_paths(self._server.process.noted).keys() - self._denied:
            if len(self._denied) < DENIALS_TOLD:
                self._denied.add(path)
                self._context.event("comfy.denied", path=path)
        if not self._unconnected and any(map(denied_connection, self._server.process.noted)):
            self._unconnected = True
            self._context.event("comfy.unconnected")

    def _notice_death(self) -> None:
        if self._live is not None and self._server is not None and self._server.exit_code() is not None:
            cause = f"ComfyUI ended while idle: {self._server.obituary()}"
            self.lost(cause)

    # --- watching ----------------------------------------------------------------------------------------------

    def slim(self) -> None:
        """Between two tasks: a server that holds more memory than the machine can spare is replaced."""
        server = self._server
        if self._live is None or server is None:
            return
        now_s, limit = monotonic(), self._settings.soft_limit_bytes()
        seen = Observation(now_s, server.exit_code(), now_s, None, held(server.process.pids(), limit))
        if judge(seen, Limits(memory_bytes=limit)) is Verdict.BLOATED:
            detail = f"it holds {seen.rss_bytes >> 20} MiB of memory after its task"
            self._context.event("comfy.verdict", verdict=Verdict.BLOATED.value, detail=detail)
            self.retire(detail)

    def _watch(self) -> None:
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._look_after, name="comfy-watch", daemon=True)
            self._watcher.start()

    def _look_after(self) -> None:
        while not self._closing.wait(LOOK_S):
            if self._turn.acquire(blocking=False):
                try:
                    self._notice_death()
                    self._stop_idle()
                    if self._elsewhere is not None:
                        self._elsewhere.look()
                        self._live = self._elsewhere.live
                finally:
                    self._turn.release()

    def _stop_idle(self) -> None:
        """The next task starts it again. An external server is not ours to stop."""
        limit_s = self._settings.idle_stop_s
        if not limit_s or self._server is None or self._live is None or monotonic() - self._used_s <= limit_s:
            return
        self._discard(1.0)
        self._context.event("comfy.idle_stopped", idle_s=limit_s)
        self._context.engine_state("stopped", cause=f"idle for {limit_s:g} s; the next task starts it")
