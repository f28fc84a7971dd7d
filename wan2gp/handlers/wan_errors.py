"""What becomes of an engine that does not start, and of a job that it did not do, in sentences with a code."""

from __future__ import annotations

import re
import signal
from typing import Any

from wan2gp.handlers.api import Interrupted, TaskFailure
from wan2gp.handlers.classify import BROKEN, classify_text
from wan2gp.handlers.comfy_errors import KILLED
from wan2gp.wan_sidecar.errors import Abandoned, NotInstalled, Unavailable, WanError, Why, describe_exit
from wan2gp.wan_sidecar.verdict import Outcome, Verdict

OUT_OF_MEMORY = "engine.out_of_memory"
OOM_ADVICE = "use fewer frames, a smaller resolution or a smaller model, a higher wan.profile, or a larger GPU"
TAIL_LINES = 30
UNREADABLE = re.compile(
    r"safetensor|deserializ|PytorchStreamReader|UnpicklingError|invalid load key|failed finding central directory"
    r"|Protobuf parsing failed|corrupt",
    re.IGNORECASE,
)
"""What PyTorch, safetensors and ONNX say of a file that is damaged."""
CODES = {
    Outcome.EXITED: "wan.exited",
    Outcome.BROKEN: "wan.exited",
    Outcome.MISSING_WEIGHTS: "wan.missing_weights",
    Outcome.UNKNOWN_MODEL: "wan.unknown_model",
    Outcome.VALIDATION: "wan.validation",
    Outcome.NO_OUTPUTS: "wan.no_outputs",
    Outcome.FAILED: "wan.failed",
}


def cannot_start(error: WanError) -> Exception:
    """Of a start: the task goes back uncounted, whatever it was."""
    if isinstance(error, Abandoned):
        return Interrupted()
    if isinstance(error, NotInstalled):
        return TaskFailure("wan.not_installed", f"Wan2GP is not available on this worker: {error}", engine_down=True)
    detail = {"tail": list(error.tail[-TAIL_LINES:])} if isinstance(error, Unavailable) else {}
    if isinstance(error, Unavailable) and error.why is Why.NO_CUDA:
        sentence = f"Wan2GP finds no CUDA: {error}; look at the driver, and at the PyTorch in its environment"
        return TaskFailure("wan.no_cuda", sentence, engine_down=True, detail=detail)
    return TaskFailure("wan.start_failed", f"Wan2GP does not start: {error}", engine_down=True, detail=detail)


def died(error: WanError) -> TaskFailure:
    """A question that got no answer: the process has ended, or was ended over it."""
    return TaskFailure("wan.exited", f"Wan2GP did not answer: {error}")


def unreadable(verdict: Verdict) -> bool:
    """Whether it sounds as if a file of weights could not be read."""
    return any(UNREADABLE.search(line) for line in (verdict.sentence, *verdict.errors, *verdict.tail[-TAIL_LINES:]))


def failure_of(verdict: Verdict) -> Exception:
    """Of a job that was not done, whose memory did suffice or will not."""
    detail = _detail(verdict)
    if verdict.outcome is Outcome.CANCELLED:
        return Interrupted()
    if verdict.outcome is Outcome.OUT_OF_MEMORY:
        return TaskFailure(OUT_OF_MEMORY, f"{verdict.sentence}; {OOM_ADVICE}", detail=detail)
    meaning = classify_text("\n".join((verdict.sentence, *verdict.errors)))
    if verdict.outcome is Outcome.FAILED and meaning in (BROKEN, "worker.disk_full"):
        # The process that broke is the engine's, and another one takes its place.
        return TaskFailure(str(meaning), verdict.sentence, recycle=False, detail=detail)
    return TaskFailure(CODES[verdict.outcome], verdict.sentence, detail=detail)


def _detail(verdict: Verdict) -> dict[str, Any]:
    detail: dict[str, Any] = {"tail": list(verdict.tail[-TAIL_LINES:])} if verdict.tail else {}
    if verdict.outcome is Outcome.EXITED and describe_exit(-signal.SIGKILL) in verdict.sentence:
        detail[KILLED] = True
    return detail


def killed_again(failure: TaskFailure) -> TaskFailure:
    """The second time that somebody kills the engine under the same task: it is the kernel, for its memory."""
    sentence = "Wan2GP was killed twice under this task, most likely for lack of the machine's memory"
    return TaskFailure(
        OUT_OF_MEMORY, f"{sentence}: {OOM_ADVICE}; {failure.message}", retryable=False, detail=failure.detail
    )
