"""What became of a job: judged by its files and errors, never by the engine's word ``success``."""

from __future__ import annotations

import ast
import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wan2gp.wan_sidecar.errors import describe_exit
from wan2gp.wan_sidecar.protocol import Ended

SENTENCE_CHARS = 2000
OUT_OF_MEMORY = re.compile(
    r"unsufficient V?RAM|insufficient V?RAM|out of memory|OutOfMemoryError|can't allocate memory|cannot allocate memory"
    r"|not enough memory|std::bad_alloc|\bMemoryError\b|too many resources requested",
    re.IGNORECASE,
)
"""The engine says it in three forms, the first with this spelling."""
POISONED = re.compile(r"CUDA error|CUDNN_STATUS|device-side assert|NCCL error|illegal memory access", re.IGNORECASE)
"""After these the process's CUDA context is of no use."""
NOT_IN_CACHE = re.compile(
    r"locate the file on the Hub|requested files in the local cache|offline mode is enabled", re.I
)
"""The hub's own words, where a module had taken its function before it could be replaced."""
NO_DEFINITION = "'NoneType' object has no attribute 'get'"
"""How the engine says that it has no such model."""
GENERIC = re.compile(r",? *please check your terminal for more information\.? *(?=.)", re.IGNORECASE)
NO_PROGRAM = re.compile(r"No such file or directory: '(ffmpeg|ffprobe)'")
LAST_LINES = 40


class Outcome(enum.Enum):
    OK = "ok"
    CANCELLED = "cancelled"
    OUT_OF_MEMORY = "out_of_memory"
    """Of the card or of the machine: which of the two the engine says is often wrong."""
    MISSING_WEIGHTS = "missing_weights"
    UNKNOWN_MODEL = "unknown_model"
    VALIDATION = "validation"
    """The engine refused the settings."""
    NO_OUTPUTS = "no_outputs"
    """It says that it succeeded, and there is no file."""
    FAILED = "failed"
    EXITED = "exited"
    """Its process ended."""
    BROKEN = "broken"
    """Its process can take no further job and was ended: a part of it still worked, or it was silent for too long."""


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    sentence: str
    """What happened, for the task's row; "" when it is OK."""
    files: tuple[Path, ...] = ()
    """What was made: regular files, not empty, below the job's own directory, in the engine's order. Also where the
    outcome is not OK."""
    errors: tuple[str, ...] = ()
    """The engine's own messages."""
    tail: tuple[str, ...] = ()
    """The last lines it printed during the job."""
    fresh: bool = False
    """The process is gone: the next job starts another."""


def verdict(ended: Ended, files: Sequence[Path], *, cancel_asked: bool) -> Verdict:
    """Of a job whose end was told. ``files``: those of ``ended.files`` that are there and may be taken."""
    errors = tuple(readable(error.message) for error in ended.errors)
    outcome, sentence = _outcome(ended, bool(files), errors, cancel_asked)
    fresh = ended.unfit or (outcome is not Outcome.OK and _poisoned(ended, errors))
    return Verdict(outcome, sentence[:SENTENCE_CHARS], tuple(files), errors, tuple(ended.tail), fresh)


def _outcome(ended: Ended, made: bool, errors: tuple[str, ...], cancel_asked: bool) -> tuple[Outcome, str]:
    stages = {error.stage for error in ended.errors}
    first = errors[0] if errors else ""
    if ended.success and made and not ended.errors:
        return Outcome.OK, ""
    if cancel_asked or ended.cancelled or "cancelled" in stages:
        # Only when all errors are cancellations does the engine itself call it one.
        return Outcome.CANCELLED, "the task was cancelled"
    if ended.missing:
        return Outcome.MISSING_WEIGHTS, _missing(ended)
    if "model" in stages or NO_DEFINITION in first:
        return Outcome.UNKNOWN_MODEL, first if "model" in stages else "the engine lists no such model"
    if stages & {"validation", "submit"}:
        return Outcome.VALIDATION, first
    if _is_out_of_memory(ended, errors):
        return Outcome.OUT_OF_MEMORY, _memory(ended, errors)
    if any(NOT_IN_CACHE.search(error) for error in errors):
        return Outcome.MISSING_WEIGHTS, f"the engine misses a file and does not say which: {first}"
    if ended.unfit:
        return Outcome.BROKEN, _told(first) or "a part of the engine went on after its job had ended"
    if ended.success or not errors:
        return Outcome.NO_OUTPUTS, _nothing(ended)
    return Outcome.FAILED, _told(first)


def _missing(ended: Ended) -> str:
    names = dict.fromkeys(f"{file.repo}/{file.file}" if file.repo else file.url for file in ended.missing)
    return f"the engine misses {', '.join(names)}: {ended.missing[0].why}"


def _is_out_of_memory(ended: Ended, errors: Sequence[str]) -> bool:
    said = [*errors, *ended.tail[-LAST_LINES:]] if not ended.success else errors
    return any(OUT_OF_MEMORY.search(line) for line in said)


def _memory(ended: Ended, errors: Sequence[str]) -> str:
    """With the line that names the bytes, which the engine's own sentence leaves out, and sometimes contradicts."""
    found = [line for line in ended.tail[-LAST_LINES:] if OUT_OF_MEMORY.search(line) and readable(line) not in errors]
    first = errors[0] if errors else ""
    parts = dict.fromkeys(part for part in (_told(first), *found[-1:]) if part)
    return "the engine ran out of memory: " + "; ".join(parts)


def _nothing(ended: Ended) -> str:
    last = ended.tail[-1] if ended.tail else "it printed nothing"
    lost = f", and what it names is not there ({ended.files[0]})" if ended.files else ""
    return f"the engine made no file{lost}: {last}"


def _told(message: str) -> str:
    """Without the reference to a terminal that nobody sees, where it says more than that."""
    if program := NO_PROGRAM.search(message):
        return f"the engine needs the program {program[1]}: install FFmpeg, or put it into the checkout's ffmpeg_bins"
    return GENERIC.sub(": ", message)


def readable(message: str) -> str:
    """An engine's message as text: some arrive as the ``repr`` of a string, in quotes and with backslashes."""
    text = message.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        try:
            inner = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # it only looks like one: 'a' and 'b'
            inner = None
        text = inner if isinstance(inner, str) else text
    return text.strip()


def _poisoned(ended: Ended, errors: Sequence[str]) -> bool:
    said = [*errors, *ended.tail[-LAST_LINES:]]
    return any(POISONED.search(line) and not OUT_OF_MEMORY.search(line) for line in said)


def death(code: int, tail: Sequence[str], *, cancel_asked: bool) -> Verdict:
    """Of a job in which the engine's process ended."""
    if cancel_asked:
        return Verdict(Outcome.CANCELLED, "the task was cancelled", tail=tuple(tail), fresh=True)
    last = f": {tail[-1]}" if tail else ""
    guess = ", which the kernel does when the machine's memory is used up" if code == -9 else ""
    sentence = f"the engine's process ended during the task ({describe_exit(code)}{guess}){last}"
    return Verdict(Outcome.EXITED, sentence[:SENTENCE_CHARS], tail=tuple(tail), fresh=True)


def broken(sentence: str, tail: Sequence[str], *, cancel_asked: bool) -> Verdict:
    """Of a job whose process had to be killed."""
    outcome = Outcome.CANCELLED if cancel_asked else Outcome.BROKEN
    return Verdict(outcome, "the task was cancelled" if cancel_asked else sentence, tail=tuple(tail), fresh=True)
