"""One prompt in the queue of a ComfyUI, from the POST to its ending. The poll is the truth, the websocket a hint."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator

from wan2gp.comfy_sidecar.errors import ApiError, PromptRefused, SidecarError, Unreachable
from wan2gp.comfy_sidecar.hearing import Hearing
from wan2gp.comfy_sidecar.outputs import Ending, read_ending
from wan2gp.comfy_sidecar.prompt_progress import Pace, PromptProgress, Snapshot, weigh
from wan2gp.comfy_sidecar.workflow import Graph, title
from wan2gp.engine_process.process import monotonic
from wan2gp.handlers.api import Interrupted, Job, TaskFailure
from wan2gp.handlers.comfy_engine import ComfyEngine
from wan2gp.handlers.comfy_errors import unreadable_result
from wan2gp.handlers.comfy_judge import PromptJudge
from wan2gp.handlers.comfy_live import Live
from wan2gp.handlers.comfy_params import ComfySettings
from wan2gp.handlers.comfy_preflight import refused
from wan2gp.handlers.comfy_preview import PreviewFile

TICK_S = 0.1
"""Between two looks at cancellation and at the process."""
FIRST_POLL_S, DEAF_POLL_S, LONGEST_POLL_S = 0.02, 0.25, 1.0
"""Between two looks at the history: longest with a websocket that would wake us."""
QUEUE_LOOK_S = 2.0
REPORT_S, REASSURE_S = 0.25, 30.0
"""Between two reports: least while it moves, and most while it does not, since the watch itself goes on."""
SUBMITS = 3
DOUBT_S = 60.0
"""How long an unanswered POST may stay in doubt."""
STEP_SHARE = (0.1, 0.95)
"""The part of the whole run's fraction that the nodes take."""


class PromptRun:
    """Post, wait, end. Make one per attempt: the prompt id is its own."""

    def __init__(self, engine: ComfyEngine, live: Live, job: Job, graph: Graph, settings: ComfySettings) -> None:
        self.prompt_id = str(uuid.uuid4())
        self._engine = engine
        self._live = live
        self._job = job
        self._graph = graph
        self._settings = settings
        self._progress = PromptProgress(self.prompt_id, weigh(graph, self._is_output))
        self._pace = Pace()
        self._picture = PreviewFile(job)
        self._doubted = False
        self._idle = threading.Event()
        """Never set: to wait on."""
        self._deaf = False
        self._poll_s, self._next_poll_s = FIRST_POLL_S, 0.0
        self._next_queue_s = self._next_report_s = 0.0
        self._reported: tuple[Snapshot, str | None] | None = None

    def run(self) -> Ending:
        """Raises :class:`TaskFailure`, or :class:`Interrupted` when the task was cancelled; nothing stays queued."""
        stream = self._live.fresh_stream()
        self._hearing = Hearing(stream, self._progress, self._settings.stuck_s)
        self._judge = PromptJudge(
            self._engine,
            self._live,
            self._job,
            self._settings,
            self._hearing,
            self._progress,
            self._where,
            self._withdraw,
        )
        stream.follow(self._progress)
        try:
            self._submit(stream.client_id)
            self._job.event("comfy.queued", prompt_id=self.prompt_id)
            return self._wait()
        finally:
            stream.follow(None)

    def _is_output(self, node_id: str) -> bool:
        """Only for the progress: a server that does not answer is found elsewhere."""
        with contextlib.suppress(Unreachable):
            return bool((self._live.node_info(self._graph[node_id]["class_type"]) or {}).get("output_node"))
        return False

    # --- posting -------------------------------------------------------------------------------------------------

    def _submit(self, client_id: str) -> None:
        """After a doubtful answer the prompt is looked up before it is sent again: a 500 may well have queued it."""
        doubt: SidecarError | None = None
        for _ in range(SUBMITS):
            self._judge.check_exit()
            try:
                node_errors = self._live.client.post_prompt(self._graph, self.prompt_id, client_id)
            except PromptRefused as error:
                raise refused(self._graph, error.error, error.node_errors, self._live) from error
            except (Unreachable, ApiError) as error:
                doubt = error
                if self._arrived():
                    self._doubted = True
                    return
                continue
            if node_errors:  # accepted, but some outputs would silently be left out
                self._withdraw()
                raise refused(self._graph, {}, node_errors, self._live)
            return
        raise TaskFailure("comfy.api_error", f"ComfyUI did not take the graph: {doubt}") from doubt

    def _arrived(self) -> bool:
        """Whether the server has the prompt after all. Asks until it answers, it died, or the doubt lasts too long."""
        end_s = monotonic() + min(DOUBT_S, self._settings.unresponsive_s or DOUBT_S)
        while monotonic() < end_s:
            self._judge.check_exit()
            if self._job.cancelled():
                self._cancel()
            with contextlib.suppress(Unreachable, ApiError):
                client = self._live.client
                found = self.prompt_id in client.queue() or client.history(self.prompt_id) is not None
                self._judge.answered()
                return found
            self._pause()
        self._engine.lost("unresponsive while a graph was posted")
        sentence = "ComfyUI stopped answering while the graph was posted" + self._live.not_ours()
        raise TaskFailure("comfy.unresponsive", sentence)

    # --- waiting -------------------------------------------------------------------------------------------------

    def _wait(self) -> Ending:
        while True:
            woken = self._progress.changed.wait(min(TICK_S, self._poll_s))
            if woken:
                self._progress.changed.clear()
                self._poll_s = FIRST_POLL_S
            if self._job.cancelled():
                self._cancel()
            if woken or monotonic() >= self._next_poll_s:
                if (ending := self._look()) is not None:
                    return ending
            self._report()
            self._judge.look()
            self._listen()

    def _look(self) -> Ending | None:
        self._poll_s = min(self._poll_s * 2, LONGEST_POLL_S if self._hearing.hears else DEAF_POLL_S)
        try:
            entry = self._live.client.history(self.prompt_id)
            self._judge.answered()
            if entry is None and monotonic() >= self._next_queue_s:
                entry = self._look_at_queue()
        except Unreachable:
            entry = None
        except ApiError as error:
            self._judge.answered()
            self._unreadable(error)
            entry = None
        self._next_poll_s = monotonic() + self._poll_s
        if entry is None:
            return None
        self._check_outputs(entry)
        return read_ending(entry)

    def _check_outputs(self, entry: dict[str, object]) -> None:
        """The answer that would have named outputs that are left out was lost: see which ones were taken."""
        prompt = entry.get("prompt")
        if not self._doubted or not isinstance(prompt, list) or len(prompt) < 5 or not isinstance(prompt[4], list):
            return
        taken = {str(node_id) for node_id in prompt[4]}
        for node_id, node in self._graph.items():
            if node_id not in taken and (self._live.node_info(node["class_type"]) or {}).get("output_node"):
                raise refused(self._graph, {}, {node_id: {"errors": []}}, self._live)

    def _look_at_queue(self) -> dict[str, object] | None:
        """The entry of a prompt that ended between two looks. One that is nowhere was forgotten by a restart."""
        self._next_queue_s = monotonic() + QUEUE_LOOK_S
        queue = self._live.client.queue()
        self._judge.note_queue(queue)
        if self.prompt_id in queue:
            return None
        entry = self._live.client.history(self.prompt_id)
        if entry is None:
            self._judge.check_exit()
            raise TaskFailure("comfy.exited", "ComfyUI no longer knows the prompt: it was started anew meanwhile")
        return entry

    def _unreadable(self, error: ApiError) -> None:
        """The history of a prompt whose node showed what is no JSON answers 500 until it is deleted."""
        with contextlib.suppress(Unreachable, ApiError):
            if self.prompt_id not in self._live.client.queue():
                self._live.client.forget(self.prompt_id)
                raise unreadable_result(str(error)) from error

    def _listen(self) -> None:
        """A deaf run loses its progress, and would look stuck."""
        self._hearing.keep()
        if self._hearing.refused and not self._deaf:
            self._job.event("comfy.log_warning", text="ComfyUI's websocket is gone: the result is polled for")
        self._deaf = self._hearing.refused

    def _report(self) -> None:
        now_s = monotonic()
        snapshot = self._progress.snapshot()
        preview = self._picture.keep(self._progress.preview, now_s)
        if now_s < self._next_report_s + (REASSURE_S if (snapshot, preview) == self._reported else 0.0):
            return
        self._reported, self._next_report_s = (snapshot, preview), now_s + REPORT_S
        first, last = STEP_SHARE
        fraction = round(first + (last - first) * snapshot.fraction, 4)
        if snapshot.node_id is None:
            self._job.progress(fraction, "load", detail="queued")
            return
        self._pace.note(now_s, snapshot.fraction)
        self._job.progress(
            fraction,
            "step",
            step=snapshot.step,
            steps=snapshot.steps,
            detail=title(self._graph, snapshot.node_id),
            eta_s=self._pace.eta_s(now_s, snapshot.fraction),
            preview=preview,
        )

    def _where(self) -> str:
        node_id = self._progress.snapshot().node_id
        return "" if node_id is None else f", last at node {node_id} ({title(self._graph, node_id)})"

    # --- ending --------------------------------------------------------------------------------------------------

    def _cancel(self) -> None:
        """Leaves nothing of the prompt running; always raises :class:`Interrupted`."""
        if not self._withdraw():
            self._engine.lost("a cancelled prompt did not stop")
        raise Interrupted

    def _withdraw(self) -> bool:
        """Delete and interrupt until the prompt is in neither list: one interrupt right after the POST may be lost.

        False when it still runs after the grace. A server that died took it along.
        """
        for _ in self._attempts(self._settings.cancel_grace_s):
            if self._live.exit_code() is not None:
                return True
            with contextlib.suppress(Unreachable, ApiError):
                client = self._live.client
                client.delete_pending(self.prompt_id)
                client.interrupt(self.prompt_id)
                if self.prompt_id not in client.queue():
                    return True
        return False

    def _attempts(self, total_s: float) -> Iterator[None]:
        end_s = monotonic() + total_s
        while monotonic() < end_s:
            yield
            self._pause()

    def _pause(self) -> None:
        """A tick, or less when the process ends."""
        if self._live.server is not None:
            self._live.server.process.wait(TICK_S)
        else:
            self._idle.wait(TICK_S)
