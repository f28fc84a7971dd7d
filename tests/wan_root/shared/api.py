"""A stand-in for Wan2GP's ``shared/api.py``: its names, its threads, and its faults, written from a description of
them. What a job does is in ``wgp.py``.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import os
import queue
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_GENERATION_LOCK = threading.RLock()
_RUNTIME = None


@dataclass(frozen=True)
class StreamMessage:
    stream: str
    text: str


@dataclass(frozen=True)
class ProgressUpdate:
    phase: str
    status: str
    progress: int
    current_step: int | None
    total_steps: int | None
    raw_phase: str | None = None
    unit: str | None = None


@dataclass(frozen=True)
class PreviewUpdate:
    image: Any
    phase: str
    status: str
    progress: int
    current_step: int | None
    total_steps: int | None


@dataclass(frozen=True)
class SessionEvent:
    kind: str
    data: Any = None
    timestamp: float = field(default_factory=time.time)


@dataclass(frozen=True)
class GeneratedArtifact:
    path: str | None
    media_type: str
    client_id: str = ""


@dataclass(frozen=True)
class GenerationError:
    message: str
    task_index: int | None = None
    task_id: Any = None
    stage: str | None = None

    def __str__(self):
        return self.message

    @property
    def cancelled(self):
        return self.stage == "cancelled" or self.message.strip().lower() == "generation was cancelled"


@dataclass(frozen=True)
class GenerationResult:
    success: bool
    generated_files: list
    errors: list
    total_tasks: int
    successful_tasks: int
    failed_tasks: int
    artifacts: tuple = ()

    @property
    def cancelled(self):
        return len(self.errors) > 0 and all(error.cancelled for error in self.errors)


class SessionStream:
    def __init__(self):
        self._queue = queue.Queue()
        self._closed = threading.Event()
        self._end = object()

    def put(self, kind, data=None):
        if not self._closed.is_set():
            self._queue.put(SessionEvent(kind, data))

    def close(self):
        if not self._closed.is_set():
            self._closed.set()
            self._queue.put(self._end)

    def clear(self):
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        if self._closed.is_set():
            self._queue.put(self._end)

    def get(self, timeout=None):
        try:
            item = self._queue.get(timeout=timeout)
        except queue.Empty:
            return None
        return None if item is self._end else item

    def iter(self, timeout=None):
        while True:
            event = self.get(timeout)
            if event is not None:
                yield event
            elif self.closed:
                return

    @property
    def closed(self):
        return self._closed.is_set()


class _Capture(io.TextIOBase):
    """Takes what anybody in this process prints, whole lines at a time."""

    def __init__(self, name, emit):
        self._name, self._emit, self._rest = name, emit, ""

    def writable(self):
        return True

    def write(self, text):
        *lines, self._rest = re.split(r"[\r\n]", self._rest + text)
        for line in lines:
            if line:
                self._emit(StreamMessage(self._name, line))
        return len(text)


class SessionJob:
    def __init__(self, session):
        self._session = session
        self.events = SessionStream()
        self._done = threading.Event()
        self._cancel_requested = threading.Event()
        self._thread = None
        self._result = None

    def cancel(self):
        self._cancel_requested.set()

    @property
    def cancel_requested(self):
        return self._cancel_requested.is_set()

    @property
    def done(self):
        return self._done.is_set()

    def result(self, timeout=None):
        if not self._done.wait(timeout):
            raise TimeoutError("WanGP session job timed out")
        return self._result or GenerationResult(False, [], [], 0, 0, 0)

    join = result

    def release_output_payload(self):
        self._result = None
        self.events.clear()

    def _set_result(self, result):
        self._result = result
        self._done.set()


@dataclass(frozen=True)
class _Runtime:
    module: Any
    root: Path
    config_path: Path
    cli_args: tuple


class WanGPSession:
    def __init__(
        self,
        *,
        root=None,
        config_path=None,
        output_dir=None,
        callbacks=None,
        cli_args=(),
        console_output=True,
        console_isatty=True,
        webui_state=None,
    ):
        self._root = Path(root or Path(__file__).resolve().parents[1]).resolve()
        self._config_path = Path(config_path or self._root / "wgp_config.json").resolve()
        self._output_dir = None if output_dir is None else Path(output_dir).resolve()
        self._cli_args = tuple(map(str, cli_args))
        self._state = {"gen": {"file_list": [], "abort": False, "progress_phase": ("", -1)}}
        self._active_job = None
        self._job_lock = threading.Lock()

    def ensure_ready(self):
        self._ensure_runtime()
        return self

    def _ensure_runtime(self):
        global _RUNTIME
        if _RUNTIME is not None:
            if (_RUNTIME.root, _RUNTIME.config_path, _RUNTIME.cli_args) != (
                self._root,
                self._config_path,
                self._cli_args,
            ):
                raise RuntimeError("WanGP runtime already loaded with different root/config/cli args")
            return _RUNTIME
        if self._config_path.name != "wgp_config.json":
            raise ValueError("config_path must point to a file named 'wgp_config.json'")
        with _pushd(self._root), _argv(["wgp.py", *self._cli_args]):
            module = importlib.import_module("wgp")
            if Path(module.__file__).resolve().parent != self._root:
                raise RuntimeError(f"WanGP module already loaded from {module.__file__}, expected {self._root}")
        _RUNTIME = _Runtime(module, self._root, self._config_path, self._cli_args)
        return _RUNTIME

    def list_model_defs(self, **filters):
        module = self._ensure_runtime().module
        return [{**copy.deepcopy(found), "model_type": name} for name, found in module.models_def.items()]

    def get_model_def(self, model_type):
        found = self._ensure_runtime().module.get_model_def(model_type)
        return None if found is None else {**copy.deepcopy(found), "model_type": str(model_type)}

    def get_default_settings(self, model_type):
        if self.get_model_def(model_type) is None:
            raise ValueError(f"Unknown model_type: {model_type}")
        runtime = self._ensure_runtime()
        with _pushd(runtime.root):
            return {**runtime.module.get_default_settings(model_type), "model_type": model_type}

    def list_loras(self, model_type):
        runtime = self._ensure_runtime()
        with _pushd(runtime.root):
            found = sorted(path.name for path in Path(runtime.module.get_lora_dir(model_type)).glob("*.safetensors"))
        return {"model_type": model_type, "supported": True, "loras": found, "count": len(found)}

    def get_model_availability(self, model_type):
        if self.get_model_def(model_type) is None:
            raise ValueError(f"Unknown model_type: {model_type}")
        status = self._ensure_runtime().module.availability(model_type)
        return {"model_type": model_type, "status": status, "status_code": 0, "available": status == "available"}

    def submit_task(self, settings, callbacks=None):
        if not isinstance(settings, dict):
            raise TypeError("Task 1 must be a dictionary")
        settings = copy.deepcopy(settings)
        length = settings.get("video_length")
        if isinstance(length, str) and length.strip().lower().endswith("s"):
            if not re.fullmatch(r"\s*[0-9.]+\s*s\s*", length.lower()):
                raise ValueError("video_length seconds must use a positive value such as '10s' or '5.5s'")
        self._ensure_runtime()
        print(f"WanGP API got a task for {settings.get('model_type')}")
        return self._submit([{"id": 1, "params": settings, "plugin_data": {}}])

    def submit_manifest(self, settings_list, callbacks=None):
        return self._submit([{"id": n, "params": one, "plugin_data": {}} for n, one in enumerate(settings_list, 1)])

    def submit_media_postprocessing(
        self,
        media_source,
        *,
        temporal_upsampling="",
        spatial_upsampling="",
        film_grain_intensity=0,
        film_grain_saturation=0.5,
        seed=-1,
        api_options=None,
        return_media=False,
        callbacks=None,
        **settings_overrides,
    ):
        return self.submit_task(
            {
                "mode": "edit_postprocessing",
                "video_source": os.fspath(media_source),
                "temporal_upsampling": temporal_upsampling,
                "spatial_upsampling": spatial_upsampling,
                "film_grain_intensity": film_grain_intensity,
                "seed": seed,
                **settings_overrides,
            }
        )

    def _submit(self, tasks):
        with self._job_lock:
            if self._active_job is not None and not self._active_job.done:
                raise RuntimeError("WanGP session already has a generation in progress")
            job = self._active_job = SessionJob(self)
            job._thread = threading.Thread(
                target=_run_job, args=(self, job, tasks), daemon=True, name="wangp-session-job"
            )
            job._thread.start()
            return job

    def cancel(self):
        if self._active_job is not None:
            self._active_job.cancel()

    def close(self):
        runtime = self._ensure_runtime()
        with _GENERATION_LOCK, _pushd(runtime.root):
            runtime.module.release_model()


def init(
    *,
    root=None,
    config_path=None,
    output_dir=None,
    callbacks=None,
    cli_args=(),
    console_output=True,
    console_isatty=True,
    webui_state=None,
):
    return WanGPSession(
        root=root,
        config_path=config_path,
        output_dir=output_dir,
        callbacks=callbacks,
        cli_args=cli_args,
        console_output=console_output,
        console_isatty=console_isatty,
        webui_state=webui_state,
    ).ensure_ready()


def _run_job(session, job, tasks):
    """Reads the worker's queue. Whatever fails in here ends the job, and not the worker."""
    runtime = session._ensure_runtime()
    module, gen = runtime.module, session._state["gen"]
    base, summary, said = len(gen["file_list"]), {"errors": [], "failed": 0}, queue.Queue()
    try:
        with _GENERATION_LOCK, _pushd(runtime.root):
            if session._output_dir is not None:
                session._output_dir.mkdir(parents=True, exist_ok=True)
                module.save_path = str(session._output_dir)
            gen.update(abort=False, progress_phase=("", -1))
            if module.gen_in_progress:
                module.written("trampled")  # the end of the job before would reset what is set here
            module.gen_in_progress = True
            job.events.put("started", {"tasks": len(tasks)})
            worker = threading.Thread(
                target=_work,
                args=(session, module, job, tasks, said, summary),
                daemon=True,
                name="wangp-session-worker",
            )
            worker.start()
            while True:
                if job.cancel_requested:
                    gen["abort"] = True
                    if module.wan_model is not None:
                        module.wan_model._interrupt = True
                try:
                    command, data = said.get(timeout=0.01)
                except queue.Empty:
                    continue
                if command == "worker_exit":
                    break
                _pass_on(session, job, module, command, data)
            worker.join(0.1)
            files = [str(Path(path).resolve()) for path in gen["file_list"][base:]]
            if job.cancel_requested and not summary["errors"]:
                summary["errors"].append(GenerationError("Generation was cancelled", stage="cancelled"))
                summary["failed"] = 1
            errors = list(summary["errors"])
            result = GenerationResult(not errors, files, errors, len(tasks), len(tasks) - summary["failed"], 1)
            job.events.put("completed", result)
            job._set_result(result)
    except BaseException as error:
        failure = GenerationError(str(error) or type(error).__name__, stage="runtime")
        result = GenerationResult(False, [], [failure], len(tasks), 0, 1)
        job.events.put("error", failure)
        job.events.put("completed", result)
        job._set_result(result)
    finally:
        job.events.close()
        time.sleep(module.teardown_s)
        gen.update(abort=False, progress_phase=("", -1))
        module.gen_in_progress = False
        session._active_job = None


def _work(session, module, job, tasks, said, summary):
    captures = [_Capture(name, lambda message: job.events.put("stream", message)) for name in ("stdout", "stderr")]
    try:
        with contextlib.redirect_stdout(captures[0]), contextlib.redirect_stderr(captures[1]):
            for index, task in enumerate(tasks, 1):
                if not _one_task(session, module, job, index, task, said, summary):
                    break
    except BaseException as error:
        failure = GenerationError(str(error) or type(error).__name__, stage="runtime")
        summary["errors"].append(failure)
        said.put(("error", failure))
    finally:
        said.put(("worker_exit", None))


def _one_task(session, module, job, index, task, said, summary):
    """Whether the next one is to be done."""
    errors = []

    def failed(message, stage):
        errors.append(GenerationError(message, index, task["id"], stage))
        said.put(("error", errors[-1]))

    def send_cmd(command, data=None):
        if command == "error":
            failed(str(data), "generation")
        else:
            said.put((command, data))

    settings, refusal = module.validate_task(task, session._state)
    if settings is None:
        failed(refusal, "validation")
    else:
        known = set(module.KNOWN_SETTINGS)
        used = {key: value for key, value in settings.items() if key in known}
        try:
            success = module.generate_media(task, send_cmd, state=session._state, **used)
        except BaseException as error:
            success = False
            if not errors:
                failed(str(error) or type(error).__name__, "generation")
        cancelled = session._state["gen"]["abort"] or job.cancel_requested
        if cancelled:
            failed("Generation was cancelled", "cancelled")
        elif not success and not errors:
            failed(f"Task {index} did not complete successfully", "generation")
    summary["errors"] += errors
    summary["failed"] += bool(errors)
    return not any(error.cancelled for error in errors)


def _pass_on(session, job, module, command, data):
    if command == "progress":
        (step, steps), status = data
        # From shared state, which may have moved on since.
        phase = session._state["gen"]["progress_phase"][0] or "inference"
        job.events.put("progress", ProgressUpdate(phase, status, 20, step, steps))
    elif command == "preview":
        image = module.generate_preview(data)
        job.events.put("preview", PreviewUpdate(image, "inference", "", 20, None, None))
    else:
        job.events.put(command, data)


@contextlib.contextmanager
def _pushd(place):
    """Of the whole process, as the engine does it."""
    before = os.getcwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _argv(argv):
    before, sys.argv = sys.argv, list(argv)
    try:
        yield
    finally:
        sys.argv = before
