"""One job of the engine's, heard to its very end. Standard library only.

The engine's callbacks are not used: one that raises ends the thread that reads the worker's queue, while the worker
goes on. Its word that a job is over is not the end of it either: threads are joined before anything else is done.
"""

from __future__ import annotations

import collections
import os
import sys
import threading
import time
import traceback
from typing import Any, Protocol

from wan2gp.wan_sidecar.host_downloads import Downloads
from wan2gp.wan_sidecar.host_line import Line

PUMP_S = 0.1
"""How long a cancel may wait to be read."""
TAIL_LINES = 200
LINE_CHARS = 500
MESSAGE_CHARS = 4000
PREVIEW_S = 0.5
"""Between two previews."""
WORKER = "wangp-session-worker"
LOADING = "Loading model"
LOADED = "Model loaded"


class Sessions(Protocol):
    """What a job needs of the engine."""

    def session(self, output: str) -> Any: ...

    def loaded(self) -> str | None: ...


class HostJob:
    def __init__(self, engine: Sessions, line: Line, downloads: Downloads, request: dict[str, Any]) -> None:
        self._engine = engine
        self._line = line
        self._downloads = downloads
        self._request = request
        self._number = request["id"]
        self._model = str(request["settings"].get("model_type", ""))
        self._tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._errors: list[dict[str, Any]] = []
        self._result: Any = None
        self._load_began: float | None = None
        self._previewed = 0.0

    def run(self) -> bool:
        """Do it, and say how it ended. False: this process can do no other job."""
        self._downloads.job_begins()
        printed = sys.stdout, sys.stderr
        try:
            job = self._submit()
            if job is not None:
                self._pump(job)
        finally:
            self._downloads.refuse_all()
        ended = job is None or _ended(job, self._request["join_s"])
        fit = ended and (sys.stdout, sys.stderr) == printed
        self._say_ended(job, fit)
        if job is not None:
            job.release_output_payload()
        return fit

    def _submit(self) -> Any:
        """The running job, or None when the engine refused it."""
        request = self._request
        try:
            session = self._engine.session(request["output"])
            if request["do"] == "finish":
                return session.submit_media_postprocessing(request["file"], **request["settings"])
            if session.get_model_def(self._model) is None:
                self._errors.append({"message": f"the engine lists no model {self._model!r}", "stage": "model"})
                return None
            return session.submit_task(request["settings"])
        except BaseException as error:  # it raises ValueError, TypeError, RuntimeError and others for bad settings
            self._told("".join(traceback.format_exception(type(error), error, error.__traceback__)))
            self._errors.append({"message": _short(f"{type(error).__name__}: {error}"), "stage": "submit"})
            return None

    def _pump(self, job: Any) -> None:
        """Until the stream of events is closed and empty."""
        while True:
            event = job.events.get(timeout=PUMP_S)
            if event is not None:
                self._event(event)
            elif job.events.closed:
                return
            self._heard(job)

    def _heard(self, job: Any) -> None:
        while (request := self._line.hear(0)) is not None:
            if request["do"] == "cancel" and request["id"] == self._number:
                job.cancel()
                self._downloads.refuse_all()
            elif request["do"] == "have":
                self._downloads.answer(request)

    def _event(self, event: Any) -> None:
        handle = getattr(self, f"_on_{event.kind}", None)
        if handle is not None:
            handle(event.data)

    def _on_stream(self, message: Any) -> None:
        self._told(message.text)

    def _on_status(self, text: Any) -> None:
        text = str(text or "")
        self._told(text)
        if text.startswith(LOADING):
            self._load_began = time.monotonic()
            self._line.say("loading", id=self._number, model=self._model)
        elif text.startswith(LOADED):
            took = time.monotonic() - (self._load_began or time.monotonic())
            self._line.say("loaded", id=self._number, model=self._engine.loaded() or self._model, seconds=took)
        else:
            self._line.say("said", id=self._number, text=_short(text))

    def _on_info(self, text: Any) -> None:
        """Some refusals arrive only so, and are called a success later."""
        self._told(str(text))
        self._line.say("said", id=self._number, text=_short(str(text)))

    def _on_progress(self, update: Any) -> None:
        self._line.say(
            "progress",
            id=self._number,
            step=_count(update.current_step),
            steps=_count(update.total_steps),
            phase=str(update.phase),
            status=_short(str(update.status)),
        )

    def _on_preview(self, update: Any) -> None:
        path, now = self._request.get("preview"), time.monotonic()
        if path is None or update.image is None or now - self._previewed < PREVIEW_S:
            return
        self._previewed = now
        try:
            new = f"{path}.new"
            update.image.convert("RGB").save(new, "JPEG", quality=80)
            os.replace(new, path)
        except OSError as error:  # a full disk: the job has better things to fail of
            self._told(f"no preview: {error}")
            return
        self._line.say("preview", id=self._number)

    def _on_error(self, error: Any) -> None:
        self._told(str(error))

    def _on_completed(self, result: Any) -> None:
        self._result = result

    def _told(self, text: str) -> None:
        """For the log too: what the engine prints during a job reaches nobody else."""
        lines = [line for line in text.replace("\r", "\n").split("\n") if line.strip()]
        self._tail.extend(line[:LINE_CHARS] for line in lines)
        if lines:
            os.write(2, ("\n".join(lines) + "\n").encode(errors="replace"))

    def _say_ended(self, job: Any, fit: bool) -> None:
        result = self._result
        errors = self._errors + [
            {"message": _short(str(error.message)), "stage": str(error.stage or "")}
            for error in (result.errors if result is not None else ())
        ]
        self._line.say(
            "ended",
            id=self._number,
            success=bool(result is not None and result.success),
            cancelled=bool(job is not None and job.cancel_requested),
            files=[str(path) for path in (result.generated_files if result is not None else ())],
            errors=errors,
            missing=list(self._downloads.missing),
            tail=list(self._tail),
            model=self._engine.loaded(),
            unfit=not fit,
        )


def _ended(job: Any, join_s: float) -> bool:
    """Whether nothing of it works any more. Its result comes before its teardown, which resets what the next job sets,
    and a worker whose reader failed works on."""
    until = time.monotonic() + join_s
    runs = job._thread  # there is no public way to wait for it
    threads = [one for one in threading.enumerate() if one is runs or one.name == WORKER]
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def _count(given: Any) -> int | None:
    return int(given) if isinstance(given, (int, float)) else None


def _short(text: str) -> str:
    return text[:MESSAGE_CHARS]
