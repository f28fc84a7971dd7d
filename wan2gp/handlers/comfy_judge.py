"""What is wrong with a prompt that runs, and the ladder for it: found at each look, raised as the task's failure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from wan2gp.comfy_sidecar.client import Queue
from wan2gp.comfy_sidecar.hearing import Hearing
from wan2gp.comfy_sidecar.prompt_progress import PromptProgress
from wan2gp.comfy_sidecar.vitals import Vitals
from wan2gp.comfy_sidecar.watchdog import Limits, Observation, Verdict, judge
from wan2gp.engine_process.process import monotonic
from wan2gp.handlers.api import Job, TaskFailure
from wan2gp.handlers.comfy_engine import ComfyEngine
from wan2gp.handlers.comfy_errors import bloated, exited
from wan2gp.handlers.comfy_live import Live
from wan2gp.handlers.comfy_params import ComfySettings
from wan2gp.processes import held


class PromptJudge:
    """For one prompt. ``where`` says at which node it is, as the end of a sentence; ``withdraw`` takes it back and
    says whether that worked."""

    def __init__(
        self,
        engine: ComfyEngine,
        live: Live,
        job: Job,
        settings: ComfySettings,
        hearing: Hearing,
        progress: PromptProgress,
        where: Callable[[], str],
        withdraw: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._live = live
        self._job = job
        self._settings = settings
        self._hearing = hearing
        self._progress = progress
        self._where = where
        self._withdraw = withdraw
        self._memory_limit = limit = settings.hard_limit_bytes()
        weigh = partial(held, limit=limit)
        self._vitals = Vitals(live.server.process, weigh) if live.server is not None else None
        self._began_s = self._answered_s = self._moved_s = monotonic()
        self._running: tuple[str, ...] = ()
        self._read_lines = live.lines_printed()

    def answered(self) -> None:
        """The server answered a question just now."""
        self._answered_s = monotonic()

    def note_queue(self, queue: Queue) -> None:
        """While others' prompts run before ours, their going on is our progress."""
        if queue.running != self._running:
            self._running = queue.running
            self._moved_s = monotonic()

    def look(self) -> None:
        """Raises :class:`TaskFailure` when something is wrong; then nothing of the prompt runs on."""
        self.check_exit()
        self._check_worker()
        seen = self._observe(monotonic())
        verdict = judge(seen, self._limits())
        if verdict is Verdict.UNRESPONSIVE:
            silent_s = seen.now_s - seen.last_answer_s
            self._give_up(
                verdict,
                "comfy.unresponsive",
                f"ComfyUI has not answered for {silent_s:.0f} s{self._live.not_ours()}",
            )
        if verdict is Verdict.BLOATED:
            self._end_bloated(seen.rss_bytes)
        if verdict is Verdict.STUCK:
            self._end_stuck(seen)
        self._check_run_time(seen.now_s)

    def check_exit(self) -> None:
        """Raises when the process is gone: whatever answers on its port by then is somebody else."""
        code = self._live.exit_code()
        if code is None:
            return
        assert self._live.server is not None
        obituary = self._live.server.obituary()
        lines = self._live.server.process.lines()
        self._engine.lost(f"died during a run: {obituary}")
        raise exited(code, obituary, lines)

    # --- observing -----------------------------------------------------------------------------------------------

    def _observe(self, now_s: float) -> Observation:
        moved_s = max(self._moved_s, self._progress.last_message_s or 0.0)
        rss_bytes = 0
        if self._vitals is not None:
            self._vitals.look_at_memory(now_s)
            rss_bytes = self._vitals.rss_bytes
            if not self._hearing.hears:
                self._vitals.look_for_life(now_s)
                moved_s = max(moved_s, self._vitals.moved_s)
        return Observation(now_s, None, self._answered_s, moved_s, rss_bytes)

    def _limits(self) -> Limits:
        """A server elsewhere shows no sign of life but its messages: without them it gets more time."""
        limits = Limits(self._settings.unresponsive_s, self._settings.stuck_s, self._memory_limit)
        if self._vitals is None and not self._hearing.hears:
            return Limits(limits.unresponsive_s, limits.unsure_stuck_s)
        return limits

    # --- verdicts ------------------------------------------------------------------------------------------------

    def _check_worker(self) -> None:
        """Most deaths of ComfyUI's worker thread are in the log; what is not shows as missing progress."""
        server = self._live.server
        if server is None or server.process.printed == self._read_lines:
            return
        before, self._read_lines = self._read_lines, server.process.printed
        if server.worker_died(before):
            sentence = "ComfyUI's worker thread ended: no prompt would ever run again" + self._where()
            self._give_up(Verdict.STUCK, "comfy.stuck", sentence)

    def _check_run_time(self, now_s: float) -> None:
        limit_s = self._settings.run_timeout_s
        if limit_s and now_s - self._began_s > limit_s:
            self._stop_prompt(Verdict.STUCK)
            sentence = f"the prompt did not end within COMFY_RUN_TIMEOUT_S = {limit_s:g} s{self._where()}"
            raise TaskFailure("comfy.stuck", sentence, retryable=False)

    def _give_up(self, verdict: Verdict, code: str, sentence: str) -> None:
        self._job.event("comfy.verdict", verdict=verdict.value, detail=sentence)
        self._engine.lost(sentence)
        raise TaskFailure(code, sentence)

    def _end_bloated(self, rss_bytes: int) -> None:
        """At once: the kernel, or whoever watches this process, would soon end more than the server."""
        failure = bloated(rss_bytes, self._memory_limit, self._where())
        self._job.event("comfy.verdict", verdict=Verdict.BLOATED.value, detail=failure.message)
        self._engine.retire("it held too much memory during a run", grace_s=0.0)
        raise failure

    def _end_stuck(self, seen: Observation) -> None:
        assert seen.last_progress_s is not None
        self._stop_prompt(Verdict.STUCK)
        still_s = seen.now_s - seen.last_progress_s
        raise TaskFailure("comfy.stuck", f"ComfyUI made no progress for {still_s:.0f} s{self._where()}")

    def _stop_prompt(self, verdict: Verdict) -> None:
        """The ladder: ask for the end of the prompt; when it does not come, end the server."""
        self._job.event("comfy.verdict", verdict=verdict.value, detail="interrupting" + self._where())
        if not self._withdraw():
            self._engine.lost("a prompt that could not be interrupted")
