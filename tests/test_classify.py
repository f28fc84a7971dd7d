"""What engines say when they fail, and what it means."""

from __future__ import annotations

import errno

import pytest

from wan2gp.errors import REGISTRY
from wan2gp.handlers.api import Interrupted, TaskFailure
from wan2gp.handlers.classify import classify, classify_text
from wan2gp.protocol import Cancelled, Failed


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "engine.out_of_memory"),
        ("torch.cuda.OutOfMemoryError: Allocation on device", "engine.out_of_memory"),
        ("HIP out of memory. Tried to allocate", "engine.out_of_memory"),
        ("RuntimeError: CUDA error: out of memory", "engine.out_of_memory"),
        ("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)", "engine.out_of_memory"),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", "engine.out_of_memory"),
        ("numpy.core._exceptions._ArrayMemoryError: Unable to allocate 10 GiB", "engine.out_of_memory"),
        ("std::bad_alloc", "engine.out_of_memory"),
        ("MemoryError: ", "engine.out_of_memory"),
        ("CUDA error: an illegal memory access was encountered", "engine.cuda_broken"),
        ("CUDA error: device-side assert triggered", "engine.cuda_broken"),
        ("CUDA error: unspecified launch failure", "engine.cuda_broken"),
        ("CUDA error: uncorrectable ECC error encountered", "engine.cuda_broken"),
        ("CUDA error: misaligned address; then CUDA out of memory", "engine.cuda_broken"),
        ("OSError: [Errno 28] No space left on device", "worker.disk_full"),
        ("ValueError: shapes do not match", None),
        ("KeyError: 'memory'", None),
    ],
)
def test_the_words_of_engines_have_a_meaning(text: str, code: str | None) -> None:
    assert classify_text(text) == code


@pytest.mark.parametrize(
    ("error", "code", "retryable", "recycle"),
    [
        (MemoryError(), "engine.out_of_memory", True, False),
        (RuntimeError("CUDA error: an illegal memory access"), "engine.cuda_broken", True, True),
        (OSError(errno.ENOSPC, "No space left"), "worker.disk_full", True, False),
        (OSError(errno.EDQUOT, "quota"), "worker.disk_full", True, False),
        (ValueError("odd"), "handler.crashed", False, False),
        (RecursionError("deep"), "handler.crashed", False, False),
    ],
)
def test_an_exception_becomes_a_failure(error: Exception, code: str, retryable: bool, recycle: bool) -> None:
    failed = classify(error)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.retryable, failed.recycle) == (code, retryable, recycle)
    assert code in REGISTRY
    assert type(error).__name__ in failed.message


def test_a_cause_behind_the_error_counts() -> None:
    try:
        try:
            raise RuntimeError("CUDA out of memory")
        except RuntimeError as inner:
            raise ValueError("sampling failed") from inner
    except ValueError as error:
        failed = classify(error)
    assert isinstance(failed, Failed) and failed.code == "engine.out_of_memory"
    assert "CUDA out of memory" in failed.detail["traceback"]


def test_a_declared_failure_is_kept_as_it_was() -> None:
    failed = classify(TaskFailure("comfy.stuck", "why", retryable=False, detail={"a": 1}, recycle=True))
    assert failed == Failed("comfy.stuck", "why", False, {"a": 1}, True, False)
    by_registry = classify(TaskFailure("comfy.stuck", "why"))
    assert isinstance(by_registry, Failed) and by_registry.retryable
    assert classify(Interrupted()) == Cancelled()


@pytest.mark.parametrize(("said", "recycle"), [(None, True), (True, True), (False, False)])
def test_a_process_that_says_its_gpu_is_broken_is_replaced_unless_it_has_done_so(said: bool, recycle: bool) -> None:
    failed = classify(TaskFailure("engine.cuda_broken", "why", recycle=said))
    assert isinstance(failed, Failed) and failed.recycle is recycle
