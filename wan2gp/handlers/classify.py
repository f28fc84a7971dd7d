"""From an exception, or an engine's words, to a code of :mod:`wan2gp.errors`. Pure; imports no engine.

The strings are what CUDA, ROCm, PyTorch and the kernel say; they are compared without regard to case.
"""

from __future__ import annotations

import errno
import re
import traceback

from wan2gp.errors import retryable
from wan2gp.handlers.api import Interrupted, TaskFailure
from wan2gp.protocol import Cancelled, Failed, Outcome

OUT_OF_MEMORY = re.compile(
    r"out of memory|outofmemoryerror|memoryerror|can(?:not|'t) allocate memory|unable to allocate|bad_?alloc"
    r"|defaultcpuallocator|alloc_failed|cudaerrormemoryallocation|hiperroroutofmemory|not enough memory",
    re.IGNORECASE,
)
CUDA_BROKEN = re.compile(
    r"illegal memory access|device-side assert|unspecified launch failure|misaligned address|illegal instruction"
    r"|uncorrectable ecc|invalid program counter|illegal address|hardware stack error|nvlink error"
    r"|cuda error: (?:unknown error|initialization error|an illegal)|device.{0,20} is lost|gpu has fallen off the bus"
    r"|no cuda gpus are available|cudaerror(?:illegaladdress|launchfailure|assert|eccuncorrectable)",
    re.IGNORECASE,
)
DISK_FULL = re.compile(r"no space left on device|disk quota exceeded|errno 28\b|errno 122\b", re.IGNORECASE)
BROKEN = "engine.cuda_broken"
FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
TRACE_CHARS = 4000


def classify_text(text: str) -> str | None:
    """``engine.cuda_broken``, ``engine.out_of_memory``, ``worker.disk_full`` or None.

    A broken context comes first: what fails after it often says "out of memory" too.
    """
    if CUDA_BROKEN.search(text):
        return BROKEN
    if OUT_OF_MEMORY.search(text):
        return "engine.out_of_memory"
    return "worker.disk_full" if DISK_FULL.search(text) else None


def classify(error: BaseException) -> Outcome:
    """The outcome of a run that raised."""
    if isinstance(error, Interrupted):
        return Cancelled()
    if isinstance(error, TaskFailure):
        return _declared(error)
    code = _code(error)
    sentence = {
        BROKEN: "the GPU's context is broken, the process is replaced",
        "engine.out_of_memory": "the engine ran out of memory: give smaller inputs, or use a larger GPU",
        "worker.disk_full": "the worker's disk is full",
        "handler.crashed": "the handler raised an error that it does not know",
    }[code]
    return Failed(
        code,
        f"{sentence} ({_name(error)}: {str(error).strip()[:500]})",
        retryable(code),
        detail={"traceback": _trace(error)},
        recycle=code == BROKEN,
    )


def _declared(error: TaskFailure) -> Failed:
    again = retryable(error.code) if error.retryable is None else error.retryable
    recycle = error.code == BROKEN if error.recycle is None else error.recycle
    return Failed(error.code, error.message, again, error.detail, recycle, error.engine_down)


def _code(error: BaseException) -> str:
    """Looks at causes too: libraries wrap what CUDA said."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            break
        if isinstance(seen, OSError) and seen.errno in FULL_ERRNOS:
            return "worker.disk_full"
        if code := classify_text(f"{_name(seen)}: {seen}"):
            return code
        seen = seen.__cause__ or seen.__context__
    return "handler.crashed"


def _name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _trace(error: BaseException) -> str:
    """The end of the traceback; without the values of variables, which may be the user's."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))[-TRACE_CHARS:]
